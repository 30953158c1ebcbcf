"""English text as bytes: the dictionary GCIDE, its entries with their quotations.

40 million bytes in one order, cut 90 : 5 : 5 into training, validation and test text, as enwik8 is.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from subquad.data import fetch
from subquad.data.image_set import Bytes
from subquad.data.reading import read_bytes
from subquad.data.token_rows import Vocabulary

BYTES = Vocabulary(letters=256, size=256)
SHARES = (0.90, 0.95)  # where training and validation text end
LARGEST = 50_000_000  # bytes of the file, more than it has


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSet:
    """Bytes (N,), uint8, in three parts; ``source`` says in one line where they came from."""

    train: Bytes
    validation: Bytes
    test: Bytes
    source: str


def load_text(folder: Path | None = None) -> TextSet:
    """Return the dictionary's text.

    Args:
        folder: where gcide.dict lies; None means where ``subquad data gcide`` puts it.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not the one that it should be.
    """
    where = fetch.cache_dir() / "gcide" if folder is None else folder
    path = where / fetch.TEXT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: bring it with `subquad data gcide`, or name the folder that "
            "holds it"
        )
    data = read_bytes(path, LARGEST)
    fetch.check_md5(path, data, fetch.TEXT_MD5[fetch.TEXT_FILE])
    return split(data, source="the dictionary GCIDE")


def split(data: bytes, *, source: str) -> TextSet:
    """Cut a text into its three parts.

    Raises:
        ValueError: if a part would be empty.
    """
    text = np.frombuffer(data, np.uint8)
    train, validation, test = np.split(text, [int(share * len(text)) for share in SHARES])
    if not min(len(train), len(validation), len(test)):
        raise ValueError(f"data must have bytes for all three parts, got {len(text)} bytes")
    return TextSet(
        train=train,
        validation=validation,
        test=test,
        source=f"{source}, {len(train):,} bytes to train on, {len(validation):,} to validate, "
        f"{len(test):,} to test",
    )


def source_text() -> TextSet:
    """Return the source of a module of Python's library: text that is always there, for tests."""
    return split(Path(argparse.__file__).read_bytes(), source="the source of Python's argparse")
