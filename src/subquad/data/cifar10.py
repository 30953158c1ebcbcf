"""CIFAR-10, from its binary version.

A record is one byte of label and 3,072 of image: 1,024 red, 1,024 green, 1,024 blue, row by row;
a file is 10,000 records. The version for Python is a pickle, which could run any code, so it is
refused. Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from pathlib import Path

import numpy as np

from subquad.data.fetch import cache_dir
from subquad.data.image_set import Bytes, ImageSet
from subquad.data.reading import check_labels, read_bytes

SIDE, CHANNELS = 32, 3
NUM_CLASSES = 10
RECORD = 1 + SIDE * SIDE * CHANNELS  # bytes
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
UNPACKED_AS = "cifar-10-batches-bin"  # the folder inside the archive
TAKE_BINARY = "subquad never unpickles; take the binary version (cifar-10-binary.tar.gz)"


def load_cifar10(folder: Path | None = None, *, per_file: int = 10_000) -> ImageSet:
    """Return CIFAR-10 from its six binary files, as (N, 32, 32, 3).

    Args:
        folder: where the files lie, or the folder around ``cifar-10-batches-bin``; None means
            the folder ``cifar10`` in the cache.
        per_file: how many images each file must hold.

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ValueError: if a file is short, goes on, is a pickle, or holds a label above 9.
    """
    where = cache_dir() / "cifar10" if folder is None else folder
    if (where / UNPACKED_AS).is_dir():
        where = where / UNPACKED_AS
    if not where.is_dir():
        raise FileNotFoundError(
            f"{where} is not a folder with CIFAR-10: unpack cifar-10-binary.tar.gz there, "
            "or name the folder that holds its six .bin files"
        )
    _refuse_python_version(where)
    parts = [_read_records(where / name, per_file) for name in (*TRAIN_FILES, TEST_FILE)]
    test, test_labels = parts.pop()
    count = per_file * len(parts)
    return ImageSet(
        train=np.concatenate([images for images, _ in parts]),
        train_labels=np.concatenate([labels for _, labels in parts]),
        test=test,
        test_labels=test_labels,
        source=f"CIFAR-10, {count:,} training and {per_file:,} test images, from binary files",
    )


def _refuse_python_version(folder: Path) -> None:
    inside = folder / "cifar-10-batches-py"
    pickled = [path for path in (folder / "data_batch_1", inside) if path.exists()]
    if pickled and not (folder / TRAIN_FILES[0]).exists():
        raise ValueError(f"{pickled[0]} is CIFAR-10 as pickles, which {TAKE_BINARY}")


def _read_records(path: Path, count: int) -> tuple[Bytes, Bytes]:
    data = read_bytes(path, count * RECORD + 1)
    # A pickle of protocol 2 or later: 128 is no label, so no record begins so.
    if len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5:
        raise ValueError(f"{path} is a pickle, which {TAKE_BINARY}")
    if len(data) < count * RECORD:
        raise ValueError(
            f"{path} is short: it holds {len(data)} bytes, expected {count * RECORD} "
            f"({count} records of {RECORD})"
        )
    if len(data) > count * RECORD:
        raise ValueError(f"{path} goes on after its {count} records of {RECORD} bytes")
    records = np.frombuffer(data, np.uint8).reshape(count, RECORD)
    labels = records[:, 0].copy()
    check_labels(path, int(labels.max(initial=0)), NUM_CLASSES)
    planes = records[:, 1:].reshape(count, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
