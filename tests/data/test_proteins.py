import hashlib
from pathlib import Path

import numpy as np
import pytest

from subquad.data import fetch
from subquad.data.proteins import (
    LETTERS,
    PROTEINS,
    families,
    load_proteins,
    made_up_proteins,
    read_fasta,
    split,
)

FILE = Path("DB.fasta")


def ids(text):
    return np.array([LETTERS.index(letter) for letter in text], np.uint8)


def text(sequence):
    return "".join(LETTERS[i] for i in sequence)


def test_a_fasta_file_is_read_with_broken_lines_and_arrows_in_headers():
    data = b">sp|A|A_X one (1->3)-x\nMKV\nLA\n>tr|B\nXU\r\n"
    assert [text(sequence) for sequence in read_fasta(data, FILE)] == ["MKVLA", "XU"]
    assert len(LETTERS) == PROTEINS.letters == len(set(LETTERS)) == 25
    special = {PROTEINS.boundary, PROTEINS.mask, PROTEINS.padding}
    assert special == {25, 26, 27}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "DB.fasta must begin with >"),
        (b"MKV", "DB.fasta must begin with >"),
        (b">a\n>b\nMK", "DB.fasta holds no residues under 'a'"),
        (b">a\nMK1", "DB.fasta holds '1' under 'a', which is no residue"),
        (b">a\nmkv", "DB.fasta holds 'm' under 'a'"),
    ],
)
def test_what_is_no_protein_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read_fasta(data, FILE)


def test_families_are_joined_by_ten_residues_in_a_row_and_in_steps():
    a, b, c = "ACDEFGHIKL", "MNPQRSTVWY", "LKIHGFEDCA"
    sequences = [
        "WW" + a,  # shares a with the next
        a + b,  # and this b with the one behind it
        b + "WW",
        c,
        a[:9] + "WW" + c[:9],  # nine are too few
        "X" * 12,
        "X" * 12 + "W",
        "MK",
    ]
    labels = families([ids(one) for one in sequences])
    assert labels[0] == labels[1] == labels[2]
    assert len(set(labels)) == 6


def test_a_stretch_across_two_sequences_makes_no_relatives():
    a = "ACDEFGHIKL"
    labels = families([ids(one) for one in (a[:5], a[5:], a)])
    assert len(set(labels)) == 3


def test_the_parts_are_disjoint_and_what_is_held_out_shares_no_stretch():
    found = made_up_proteins()
    parts = [found.train, found.validation, found.test, found.held_out]
    names = [{sequence.tobytes() for sequence in part} for part in parts]
    assert sum(map(len, names)) == len(set().union(*names)) == sum(map(len, parts))
    stretches = [
        {one[i : i + 10] for one in part for i in range(len(one) - 9)}
        for part in (names[0] | names[1] | names[2], names[3])
    ]
    assert not stretches[0] & stretches[1]
    assert found.families >= 2
    assert 0.05 <= len(found.held_out) / sum(map(len, parts)) < 0.1
    assert f"{len(found.train)} to train on" in found.source
    again = made_up_proteins()
    assert all(np.array_equal(a, b) for a, b in zip(found.test, again.test, strict=True))


def test_repeats_are_dropped_and_too_few_sequences_are_refused():
    base = list(made_up_proteins().train)
    found = split([*base, *base], source="twice")
    parts = (found.train, found.validation, found.test, found.held_out)
    assert sum(map(len, parts)) == len(base)
    with pytest.raises(
        ValueError, match="four parts that are not empty, got 2 different ones in 2"
    ):
        split([ids("ACD"), ids("ACD"), ids("MK")], source="three")


def test_loading_checks_every_byte_and_says_what_brings_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"DB\.fasta is missing: bring it with `subquad da"):
        load_proteins(tmp_path)
    data = b"".join(b">s\n" + text(one).encode() + b"\n" for one in made_up_proteins().train)
    (tmp_path / "DB.fasta").write_bytes(data)
    with pytest.raises(ValueError, match=r"DB\.fasta is corrupt or another file: its md5 is"):
        load_proteins(tmp_path)
    monkeypatch.setitem(fetch.PROTEIN_MD5, "DB.fasta", hashlib.md5(data).hexdigest())
    assert load_proteins(tmp_path).source.startswith("the example database of MMseqs2, ")
