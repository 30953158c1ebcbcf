"""Variable chains of antibodies: simulated repertoires of human heavy chains, split by V gene.

They come of AIRRSHIP (Sutherland, Cowan 2023, "AIRRSHIP: simulating human B cell receptor
repertoire sequences"): gene usage, trimming, junctions and mutations are drawn as they were counted
in real repertoires. Nothing selects the simulated mutations, so that at the full rate a chain looks
less like one of a living cell; MUTATIONS is the factor on the rate. It was chosen by looking: at
the full rate AntiBERTy guesses less than the 80% of the residues that the experiment needs to begin
with, and the more the lower the rate.

The package is downloaded from PyPI and run, in a process and a folder of its own; the same version
and seed give the same file, which is checked.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subquad.data.fetch import (
    TIMEOUT,
    Files,
    cache_dir,
    check_md5,
    fetch_checked,
    run_program,
)
from subquad.data.image_set import Bytes

PACKAGE = "airrship==0.1.5"
FILE = "heavy_chains.fasta"
MD5 = {FILE: "45f1e4c11812bca65222c2032334f466"}
COUNT, SEED = 4000, 1
MUTATIONS = "0.3"  # of the measured rate

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
TEST_GENES = 0.12  # share of the V genes that are held out
VALIDATION, TEST = 64, 200  # chains of these, at most
SPAN, ALIKE = 5, 0.7  # residues in a row; share of them in common that makes a near duplicate
LENGTHS = (90, 126)  # that fit into 128 tokens with their ends

_BASES = "TCAG"
_CODE = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_CODONS = {
    a + b + c: _CODE[16 * i + 4 * j + k]
    for i, a in enumerate(_BASES)
    for j, b in enumerate(_BASES)
    for k, c in enumerate(_BASES)
}


@dataclass(frozen=True, kw_only=True, eq=False)
class AntibodySet:
    """Chains as ids of ``RESIDUES``, uint8, in three parts; ``source`` says where they are from."""

    train: tuple[Bytes, ...]
    validation: tuple[Bytes, ...]
    test: tuple[Bytes, ...]
    source: str


def fetch_antibodies(folder: Path | None = None) -> Path:
    """Simulate the chains into ``folder`` (None: the cache) and return it; about a minute.

    Raises:
        ValueError: if the file, made or already there, is another than expected.
        OSError: if the download or the simulation fails, or the folder cannot be written.
    """
    return fetch_checked("antibodies", MD5, folder, _simulate)


def load_antibodies(folder: Path | None = None) -> AntibodySet:
    """Return the chains, always split in the same way.

    Args:
        folder: where the file lies; None means where ``subquad data antibodies`` puts it.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is another than expected.
    """
    path = (cache_dir() / "antibodies" if folder is None else folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: bring it with `subquad data antibodies`")
    data = path.read_bytes()
    check_md5(path, data, MD5[FILE])
    return split(read_chains(data, path))


def read_chains(data: bytes, path: Path) -> list[tuple[str, str]]:
    """Return V gene and residues of each chain of a FASTA file with lines ``>gene``.

    Raises:
        ValueError: if the file is none.
    """
    chains = []
    for record in data.decode("ascii").split(">")[1:]:
        gene, _, body = record.partition("\n")
        residues = "".join(body.split())
        if not gene or not residues or set(residues) - set(RESIDUES):
            raise ValueError(f"{path} must hold V genes and residues, got {record[:40]!r}")
        chains.append((gene.strip(), residues))
    if not chains:
        raise ValueError(f"{path} must hold chains, got none")
    return chains


def split(chains: Sequence[tuple[str, str]]) -> AntibodySet:
    """Hold out whole V genes to test and validate on, and leave out what is too much alike.

    A chain of these is left out if one chain to be trained on has 70 % of its stretches of five
    residues, as of chains about 93 % alike.

    Raises:
        ValueError: if a part would be empty.
    """
    unique = list({residues: gene for gene, residues in chains if _fits(residues)}.items())
    genes = sorted({gene for _, gene in unique})
    order = np.random.default_rng(0)
    chosen = set(order.permutation(genes)[: max(1, round(TEST_GENES * len(genes)))].tolist())
    train = [residues for residues, gene in unique if gene not in chosen]
    held_out = [residues for residues, gene in unique if gene in chosen]
    kept = _unlike(held_out, train)
    order.shuffle(kept)
    count = max(1, min(VALIDATION, len(kept) // 4))
    validation, test = kept[:count], kept[count : count + TEST]
    if not (train and validation and test):
        raise ValueError(
            f"chains must give three parts that are not empty, got {len(unique)} of {len(genes)} "
            f"V genes, {len(kept)} of them to test on"
        )
    return AntibodySet(
        train=tuple(map(_ids, train)),
        validation=tuple(map(_ids, validation)),
        test=tuple(map(_ids, test)),
        source=f"heavy chains simulated by {PACKAGE}: {len(train):,} to train on, "
        f"{len(validation):,} to validate and {len(test):,} to test, of {len(chosen)} V genes that "
        f"no other has; {len(held_out) - len(kept):,} near duplicates left out",
    )


def made_up_antibodies(*, seed: int = 0, num_genes: int = 20, members: int = 12) -> AntibodySet:
    """Return random ancestors with mutated descendants: for tests, not for a claim."""
    rng = np.random.default_rng(seed)
    chains = []
    for gene in range(num_genes):
        ancestor = rng.integers(0, len(RESIDUES), int(rng.integers(*LENGTHS)))
        for _ in range(members):
            changed = rng.random(len(ancestor)) < 0.05
            drawn = rng.integers(0, len(RESIDUES), len(ancestor))
            ids = np.where(changed, drawn, ancestor)
            chains.append((f"gene {gene}", "".join(RESIDUES[i] for i in ids)))
    return split(chains)


def translate(bases: str) -> str:
    """Return the residues of a reading frame; X for a codon that is none."""
    return "".join(_CODONS.get(bases[i : i + 3], "X") for i in range(0, len(bases) - 2, 3))


def _fits(residues: str) -> bool:
    return LENGTHS[0] <= len(residues) <= LENGTHS[1]


def _ids(residues: str) -> Bytes:
    return np.array([RESIDUES.index(letter) for letter in residues], np.uint8)


def _unlike(held_out: Sequence[str], train: Sequence[str]) -> list[str]:
    """Return those that share few stretches with each chain of ``train``."""
    where: dict[str, list[int]] = {}
    for i, residues in enumerate(train):
        for stretch in _stretches(residues):
            where.setdefault(stretch, []).append(i)
    kept = []
    for residues in held_out:
        own = _stretches(residues)
        hits = [i for stretch in own for i in where.get(stretch, ())]
        most = int(np.bincount(hits).max()) if hits else 0
        if most < ALIKE * len(own):
            kept.append(residues)
    return kept


def _stretches(residues: str) -> set[str]:
    return {residues[i : i + SPAN] for i in range(len(residues) - SPAN + 1)}


def _simulate(temporary: Path) -> Files:
    """Run the package, and return its productive chains as residues under their V genes."""
    run_program(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "package",
        "--disable-pip-version-check", PACKAGE, folder=temporary,
    )  # fmt: skip
    command = [
        sys.executable, "-c", "from airrship.create_repertoire import main; main()",
        "-o", "chains", "--outdir", "made", "-n", str(COUNT), "--seed", str(SEED),
        "--all_alleles", "--shm", "--shm_multiplier", MUTATIONS,
    ]  # fmt: skip
    fixed = {"PYTHONPATH": str(temporary / "package"), "PYTHONHASHSEED": "0"}
    (temporary / "made").mkdir()
    try:
        done = subprocess.run(
            command, cwd=temporary, env={**os.environ, **fixed}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise OSError(f"the simulation of {PACKAGE} took longer than {TIMEOUT} seconds") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise OSError(f"the simulation of {PACKAGE} failed: {last}")
    lines = (temporary / "made" / "chains.tsv").read_text(encoding="utf-8").splitlines()
    return {FILE: as_fasta(lines).encode("ascii")}


def as_fasta(table: Sequence[str]) -> str:
    """Return the chains of a table with the columns sequence and v_call, whole ones alone.

    Genes with a slash lie outside the locus, where no antibody is made of them.
    """
    head = table[0].split("\t")
    sequence, call = head.index("sequence"), head.index("v_call")
    records = []
    for line in table[1:]:
        cells = line.split("\t")
        residues, gene = translate(cells[sequence].upper()), cells[call].split("*")[0]
        if "/" not in gene and not set(residues) - set(RESIDUES):
            records.append(f">{gene}\n{residues}\n")
    return "".join(records)
