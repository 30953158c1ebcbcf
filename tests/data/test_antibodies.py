import numpy as np
import pytest

from subquad.data import antibodies
from subquad.data.antibodies import (
    RESIDUES,
    as_fasta,
    fetch_antibodies,
    load_antibodies,
    made_up_antibodies,
    read_chains,
    split,
    translate,
)


def words(part):
    return {"".join(RESIDUES[i] for i in chain) for chain in part}


def stretches(residues):
    return {residues[i : i + 5] for i in range(len(residues) - 4)}


def chain(rng, length=100):
    return "".join(rng.choice(list(RESIDUES), length))


def test_codons_become_residues():
    assert translate("ATGGCCTGGTAAGC") == "MAW*"
    assert translate("ATGNCC") == "MX"


def test_a_table_becomes_fasta_without_broken_chains_and_orphan_genes():
    table = [
        "sequence_id\tsequence\tv_call",
        "0\tatggcc\tIGHV1-2*01",
        "1\tATGTAA\tIGHV1-2*01",
        "2\tATGGCC\tIGHV1/OR15-1*01",
    ]
    assert as_fasta(table) == ">IGHV1-2\nMA\n"


def test_no_gene_is_on_both_sides_and_no_near_duplicate():
    rng = np.random.default_rng(0)
    ancestors = [chain(rng) for _ in range(10)]
    chains = [(f"V{i}", a[:k] + chain(rng, 8) + a[k + 8 :]) for i, a in enumerate(ancestors)
              for k in (10, 40, 70)]  # fmt: skip
    first = split(chains)
    held_out = {gene for gene, residues in chains if residues in words(first.test)}
    twin = next(residues for gene, residues in chains if gene not in held_out)
    copied = next(iter(held_out))
    again = split([*chains, (copied, twin[:-1] + ("A" if twin[-1] != "A" else "C"))])
    assert "1 near duplicates left out" in again.source
    train = words(again.train)
    for residues in words(again.test) | words(again.validation):
        own = stretches(residues)
        assert max(len(own & stretches(other)) for other in train) < 0.7 * len(own)
    genes = {part: {gene for gene, residues in chains if residues in words(getattr(again, part))}
             for part in ("train", "test")}  # fmt: skip
    assert not genes["train"] & genes["test"]


def test_the_split_is_always_the_same_and_lengths_fit():
    first, again = made_up_antibodies(), made_up_antibodies()
    for part in ("train", "validation", "test"):
        a, b = getattr(first, part), getattr(again, part)
        assert len(a) == len(b) > 0
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert all(90 <= len(x) <= 126 and x.dtype == np.uint8 for x in a)
    assert not words(first.train) & words(first.test)


def test_too_few_chains_are_refused():
    with pytest.raises(ValueError, match="three parts that are not empty, got 1 of 1 V genes"):
        split([("V1", "A" * 100)])


@pytest.mark.parametrize("data", [b"", b">V1\nMAX\n", b">V1\n\n", b">\nMA\n"])
def test_a_file_without_chains_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="must hold"):
        read_chains(data, tmp_path)


def test_what_is_fetched_is_checked_and_loaded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    text = "".join(f">V{i % 12}\n{chain(rng)}\n" for i in range(80))
    monkeypatch.setattr(antibodies, "_simulate", lambda _: {antibodies.FILE: text.encode()})
    with pytest.raises(ValueError, match="is corrupt or another file"):
        fetch_antibodies(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    import hashlib

    md5 = hashlib.md5(text.encode()).hexdigest()
    monkeypatch.setattr(antibodies, "MD5", {antibodies.FILE: md5})
    with pytest.raises(FileNotFoundError, match="bring it with `subquad data antibodies`"):
        load_antibodies(tmp_path / "new")
    assert fetch_antibodies(tmp_path / "new") == tmp_path / "new"
    assert len(load_antibodies(tmp_path / "new").train) > 40
    (tmp_path / "new" / antibodies.FILE).write_text(">V1\nMA\n")
    with pytest.raises(ValueError, match="is corrupt or another file"):
        load_antibodies(tmp_path / "new")
