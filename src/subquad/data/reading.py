"""Read a file of known size, and say in one sentence what is wrong with it."""

import gzip
import zlib
from pathlib import Path


def read_bytes(path: Path, at_most: int) -> bytes:
    """Return the first ``at_most`` bytes of a file, unpacked if its name ends in .gz.

    The bound keeps a foreign or malicious file from filling the memory: callers ask for one byte
    more than they expect and so see that a file goes on.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``path`` is a folder, cannot be read, or is no whole gzip file.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as packed:
                return packed.read(at_most)
        with path.open("rb") as plain:
            return plain.read(at_most)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, expected a file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def check_labels(path: Path, highest: int, num_classes: int) -> None:
    """Refuse a file whose highest label is no class.

    Raises:
        ValueError: if ``highest`` is not below ``num_classes``.
    """
    if highest >= num_classes:
        raise ValueError(f"{path} holds the label {highest}, expected 0 to {num_classes - 1}")
