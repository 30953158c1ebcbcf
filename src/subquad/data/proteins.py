"""20,000 protein sequences of UniProt, with whole families of them held out.

A family, here: sequences that can be reached from each other by steps between two sequences which
share ten residues in a row. So a family that is held out has no ten residues in a row in common
with any sequence that is trained on. It is a crude stand-in for the paper's Pfam families, and
strict in another way: distant relatives that share no such stretch may be on both sides.

The test set is drawn at random from the rest, as in the paper: its sequences have relatives among
those that are trained on.

Source: the example database of MMseqs2 (Steinegger, Söding 2017), sequences of UniProtKB;
the protocol is that of Choromanski et al. 2021, appendix C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from subquad.data import fetch
from subquad.data.image_set import Bytes
from subquad.data.reading import read_bytes
from subquad.data.token_rows import Vocabulary

LETTERS = "ACDEFGHIKLMNPQRSTVWYBXZUO"  # the 20 amino acids, three ambiguous letters, two rare ones
PROTEINS = Vocabulary(letters=25, boundary=25, mask=26, padding=27, size=28)
UNKNOWN = LETTERS.index("X")

SPAN = 10  # residues in a row that make relatives
FAMILY_SIZES = (5, 100)  # of the families that may be held out
HELD_OUT, TEST, VALIDATION = 0.05, 0.05, 0.02  # shares of the sequences
LARGEST = 20_000_000  # bytes of the file, more than it has


@dataclass(frozen=True, kw_only=True, eq=False)
class ProteinSet:
    """Sequences as ids of ``LETTERS``, uint8, in four parts.

    ``held_out`` has whole families, as many as ``families`` says; ``source`` says in one line where
    the sequences came from and how many they are.
    """

    train: tuple[Bytes, ...]
    validation: tuple[Bytes, ...]
    test: tuple[Bytes, ...]
    held_out: tuple[Bytes, ...]
    families: int
    source: str


def load_proteins(folder: Path | None = None) -> ProteinSet:
    """Return the sequences, always split in the same way; takes a few seconds.

    Args:
        folder: where DB.fasta lies; None means where ``subquad data proteins`` puts it.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not the one that it should be.
    """
    where = fetch.cache_dir() / "proteins" if folder is None else folder
    path = where / fetch.PROTEIN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: bring it with `subquad data proteins`, or name the folder that "
            "holds it"
        )
    data = read_bytes(path, LARGEST)
    fetch.check_md5(path, data, fetch.PROTEIN_MD5[fetch.PROTEIN_FILE])
    return split(read_fasta(data, path), source="the example database of MMseqs2")


def read_fasta(data: bytes, path: Path) -> list[Bytes]:
    """Return the sequences of a FASTA file as ids.

    Raises:
        ValueError: if it is none, or has a sequence that is empty or no protein's.
    """
    if not data.startswith(b">"):
        raise ValueError(f"{path} must begin with >, as a FASTA file does")
    ids = np.full(256, len(LETTERS), np.uint8)
    ids[np.frombuffer(LETTERS.encode(), np.uint8)] = np.arange(len(LETTERS))
    sequences = []
    for record in data[1:].split(b"\n>"):  # a header may hold > too
        header, _, body = record.partition(b"\n")
        letters = np.frombuffer(b"".join(body.split()), np.uint8)
        name = header[:40].decode("latin-1")
        if not len(letters):
            raise ValueError(f"{path} holds no residues under {name!r}")
        sequence = ids[letters]
        if int(sequence.max()) == len(LETTERS):
            wrong = chr(letters[int(sequence.argmax())])
            raise ValueError(f"{path} holds {wrong!r} under {name!r}, which is no residue")
        sequences.append(sequence)
    return sequences


def split(sequences: Sequence[Bytes], *, source: str) -> ProteinSet:
    """Drop repeats, hold out families, and draw a test and a validation set from the rest.

    Raises:
        ValueError: if a part would be empty.
    """
    unique = list({sequence.tobytes(): sequence for sequence in sequences}.values())
    labels, total = families(unique), len(unique)
    sizes = np.bincount(labels)
    order = np.random.default_rng(0)
    may = np.flatnonzero((sizes >= FAMILY_SIZES[0]) & (sizes <= FAMILY_SIZES[1]))
    chosen: list[int] = []
    for family in order.permutation(may):
        if sizes[chosen].sum() >= HELD_OUT * total:
            break
        chosen.append(int(family))
    is_held_out = np.isin(labels, chosen)
    rest = order.permutation(np.flatnonzero(~is_held_out))
    counts = [max(1, round(share * total)) for share in (TEST, VALIDATION)]
    places = np.split(rest, np.cumsum(counts))
    parts = [np.flatnonzero(is_held_out), *places]
    if not all(len(part) for part in parts):
        raise ValueError(
            f"sequences must give four parts that are not empty, got {total} different ones in "
            f"{len(sizes)} families"
        )
    held_out, test, validation, train = (tuple(unique[i] for i in part) for part in parts)
    return ProteinSet(
        train=train,
        validation=validation,
        test=test,
        held_out=held_out,
        families=len(chosen),
        source=f"{source}, {total:,} different sequences: {len(train):,} to train on, "
        f"{len(validation):,} to validate, {len(test):,} to test, and {len(held_out):,} in "
        f"{len(chosen):,} families held out",
    )


def families(sequences: Sequence[Bytes], span: int = SPAN) -> NDArray[np.int64]:
    """Return the family of each sequence, numbered from 0: see the module's docstring.

    Stretches with an unknown residue (X) make no relatives.
    """
    letters = np.concatenate(sequences)
    lengths = np.array([len(sequence) for sequence in sequences])
    owner = np.repeat(np.arange(len(sequences)), lengths)
    count = max(0, len(letters) - span + 1)
    codes = np.zeros(count, np.int64)
    whole = owner[:count] == owner[len(letters) - count :]
    for i in range(span):
        part = letters[i : i + count]
        codes = codes * len(LETTERS) + part
        whole &= part != UNKNOWN
    codes, owner = codes[whole], owner[:count][whole]
    order = np.argsort(codes, kind="stable")
    same = codes[order][1:] == codes[order][:-1]
    pairs = np.unique(np.stack([owner[order][:-1][same], owner[order][1:][same]]), axis=1)
    parent = list(range(len(sequences)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs.T.tolist():
        parent[root(a)] = root(b)
    roots = np.array([root(i) for i in range(len(sequences))])
    labels: NDArray[np.int64] = np.unique(roots, return_inverse=True)[1]
    return labels


def made_up_proteins(*, seed: int = 0, num_families: int = 40, members: int = 8) -> ProteinSet:
    """Return random ancestors with mutated descendants: for tests, not for a claim."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(num_families):
        ancestor = rng.integers(0, 20, rng.integers(30, 60), dtype=np.uint8)
        for _ in range(members):
            mutated = rng.random(len(ancestor)) < 0.03
            drawn = rng.integers(0, 20, len(ancestor), dtype=np.uint8)
            sequences.append(np.where(mutated, drawn, ancestor))
    return split(sequences, source="made-up sequences")
