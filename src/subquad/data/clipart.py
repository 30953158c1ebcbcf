"""Drawings of 64 x 64 in colour: the Open Clip Art Library, in the public domain.

They are drawings, not photographs, and unevenly spread over their classes, which are the folders
that the library keeps them in. What the paper's ImageNet64 has in size these have too: 12,288
bytes a picture.

A drawing is put in the middle of a white square and shrunk to 64 x 64 by means of its pixels;
drawings that are the same afterwards are kept once, and the few of more than 89 million pixels,
which Pillow takes for an attack, are left out. The order is fixed and mixes all classes.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from subquad.data import fetch
from subquad.data.image_set import Bytes, ImageSet
from subquad.files import atomic_path

PACKAGE = "openclipart-png"
FOLDER = Path("usr/share/openclipart/png")
COUNT, MD5 = (
    8121,
    "41f46c43e549e9ea1c0565454e5d6b07",
)  # of the PNG files, one after another in the order of their names
FILES = ("images.npy", "labels.npy")
SIDE = 64
CLASSES = (
    "animals", "buildings", "buttons", "computer", "containers", "decorations", "education",
    "electronics", "food", "geography", "logos", "office", "people", "plants", "recreation",
    "science", "shapes", "signs_and_symbols", "special", "tools", "transportation", "unsorted",
)  # fmt: skip
TEST = 0.1  # share of the drawings


def fetch_clipart(folder: Path | None = None) -> Path:
    """Bring the drawings into ``folder`` (None: the cache) and return it; takes some minutes.

    Files that are there already are looked at (kind, shape, classes) and kept.

    Raises:
        FileNotFoundError: if apt-get or dpkg-deb is missing.
        ValueError: if the package holds other drawings than expected, or a file there is none of
            ours.
        OSError: if the download fails or the folder cannot be written.
    """
    where = fetch.cache_dir() / "clipart" if folder is None else folder
    if all((where / file).is_file() for file in FILES):
        _read(where)
        return where
    if where.exists() and not where.is_dir():
        raise NotADirectoryError(f"{where} is a file, expected a folder")
    with fetch.scratch_beside(where) as temporary:
        root = fetch.unpack_debian(PACKAGE, Path(temporary)) / FOLDER
        paths = sorted(root.rglob("*.png"), key=lambda path: path.relative_to(root).as_posix())
        _check(paths)
        images, labels = read_drawings(paths, root)
    where.mkdir(exist_ok=True)
    for file, values in zip(FILES, (images, labels), strict=True):
        with atomic_path(where / file) as temporary_file, temporary_file.open("wb") as stream:
            np.save(stream, values)
    return where


def load_clipart(folder: Path | None = None) -> ImageSet:
    """Return the drawings, always split in the same way.

    Args:
        folder: where the files lie; None means where ``subquad data clipart`` puts them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is not what it should be.
    """
    where = fetch.cache_dir() / "clipart" if folder is None else folder
    for file in FILES:
        if not (where / file).is_file():
            raise FileNotFoundError(
                f"{where / file} is missing: bring it with `subquad data clipart`, or name the "
                "folder that holds it"
            )
    images, labels = _read(where)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(TEST * len(images))])
    return ImageSet(
        train=images[train],
        train_labels=labels[train],
        test=images[test],
        test_labels=labels[test],
        source=f"drawings of the Open Clip Art Library, {SIDE} x {SIDE}: {len(train):,} to train "
        f"on, {len(test):,} to test",
    )


def made_up_drawings(*, count: int = 40, side: int = 8, seed: int = 0) -> ImageSet:
    """Return white squares with a coloured rectangle each: for tests, not for a claim."""
    rng = np.random.default_rng(seed)
    images = np.full((count, side, side, 3), 255, np.uint8)
    for image in images:
        (top, bottom), (left, right) = np.sort(rng.integers(0, side, (2, 2)))
        image[top : bottom + 1, left : right + 1] = rng.integers(0, 256, 3)
    labels = np.zeros(count, np.uint8)
    cut = round(TEST * count)
    return ImageSet(
        train=images[cut:],
        train_labels=labels[cut:],
        test=images[:cut],
        test_labels=labels[:cut],
        source="made-up drawings",
    )


def read_drawings(paths: Sequence[Path], root: Path) -> tuple[Bytes, Bytes]:
    """Return the drawings (N, 64, 64, 3), each once, and their classes (N,); see the module.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if a file is no picture, or lies in a folder that is no class.
    """
    found: dict[bytes, int] = {}
    for path in paths:
        name = path.relative_to(root).parts[0]
        if name not in CLASSES:
            raise ValueError(f"{path} must lie below one of {', '.join(CLASSES)}, got {name}")
        drawing = _drawing(path)
        if drawing is not None:
            found.setdefault(drawing.tobytes(), CLASSES.index(name))
    images = np.frombuffer(b"".join(found), np.uint8).reshape(-1, SIDE, SIDE, 3)
    return images, np.array(list(found.values()), np.uint8)


def _drawing(path: Path) -> NDArray[np.uint8] | None:
    """Return a drawing (64, 64, 3), None if it has too many pixels."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = (SIDE, SIDE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                drawing = ImageOps.pad(
                    picture.convert("RGBA"), size, Image.Resampling.BOX, color=(255, 255, 255, 0)
                )
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    paper = Image.new("RGBA", size, "white")
    paper.alpha_composite(drawing)
    return np.asarray(paper.convert("RGB"))


def _check(paths: Sequence[Path]) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        digest.update(path.read_bytes())
    if len(paths) != COUNT or digest.hexdigest() != MD5:
        raise ValueError(
            f"the package {PACKAGE} must hold {COUNT:,} drawings with the md5 {MD5}, got "
            f"{len(paths):,} with {digest.hexdigest()}"
        )


def _read(where: Path) -> tuple[Bytes, Bytes]:
    images, labels = (_load(where / file) for file in FILES)
    if labels.ndim != 1 or not len(labels) or labels.max() >= len(CLASSES):
        raise ValueError(
            f"{where / FILES[1]} must hold classes from 0 to {len(CLASSES) - 1}, one a drawing, "
            f"got shape {labels.shape} with {labels.max(initial=0)}"
        )
    if images.shape != (len(labels), SIDE, SIDE, 3):
        raise ValueError(
            f"{where / FILES[0]} must have the shape {(len(labels), SIDE, SIDE, 3)}, as many as "
            f"{FILES[1]} has labels, got {images.shape}"
        )
    return images, labels


def _load(path: Path) -> Bytes:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{path} must hold an array of bytes, got {kind}")
    return found
