"""Images of a folder, one folder a class, as one array of bytes.

``FOLDER/train/CLASS/*`` with ``FOLDER/val/CLASS/*`` (or valid, validation, test) beside it, or
just ``FOLDER/CLASS/*``: then a share of each class, drawn by a seed, is held back for testing.
Images may lie in folders below their class's. Hidden files are passed over, others are counted.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from subquad.data.image_set import Bytes, ImageSet, Labels
from subquad.data.pictures import (
    as_bytes,
    bombs_refused,
    need_pillow,
    open_picture,
    square,
)

SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
TEST_PARTS = ("val", "valid", "validation", "test")  # the first that is there
PARTS = {"train", "training", "testing", *TEST_PARTS}  # no classes, if there are no others
THREADS = 8
NAMED = 3  # files named where there are many

Unreadable = Literal["refuse", "skip"]
Files = tuple[tuple[Path, int], ...]  # each with its class
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The image files of a folder, not read yet.

    Args:
        folder: it.
        classes: names of the classes, sorted.
        train, test: files with their class.
        others: files that are no images by their name; they are left alone.
        split: in words, where the test images come from.
        unused: names of folders beside the parts, which are left alone too.
    """

    folder: Path
    classes: tuple[str, ...]
    train: Files
    test: Files
    others: tuple[Path, ...]
    split: str
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderImages:
    """Images of a folder, read.

    Args:
        images: all of them.
        classes: names of the classes, in the order of the labels.
        skipped: a sentence for each file that could not be read.
    """

    images: ImageSet
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def list_folder(folder: Path, *, test_share: float = 0.1, seed: int = 0) -> Listing:
    """Find the images of ``folder``.

    Args:
        folder: see the module.
        test_share: share of each class that is held back where the folder has no test images; at
            least one image of each class that has two.
        seed: of which these are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is laid out otherwise, has fewer than two classes, or a class has no
            images.
        OSError: if it cannot be read.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be above 0 and below 1, got {test_share:g}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} must be a folder with images, found none")
    train = folder / "train"
    tests = [folder / name for name in TEST_PARTS if (folder / name).is_dir()]
    # A class may be called train, too: then there are no folders in it.
    parted = train.is_dir() and (bool(tests) or bool(_folders(train)))
    classes, found, others = _classes(train if parted else folder)
    if not parted and set(classes) <= PARTS:
        raise ValueError(
            f"{folder} must hold a folder for each class, or train with val or test beside it, got "
            f"{', '.join(classes)}"
        )
    if not parted or not tests:
        kept, held = _split(found, len(classes), test_share, seed)
        split = f"{test_share:g} of each class held back with seed {seed}"
    else:
        kept, split = found, f"those of {tests[0].name}/"
        _, held, more = _classes(tests[0], known=classes)
        others += more
    taken = {train, *tests[:1]}
    return Listing(
        folder=folder,
        classes=classes,
        train=kept,
        test=held,
        others=others,
        split=split,
        unused=tuple(p.name for p in _folders(folder) if parted and p not in taken),
    )


def read_folder(
    listing: Listing,
    *,
    side: int,
    channels: int = 3,
    unreadable: Unreadable = "refuse",
    memory_gb: float = 4.0,
    progress: Progress | None = None,
) -> FolderImages:
    """Read all images, each brought to ``side`` x ``side``: shorter side resized, the middle kept.

    Args:
        listing: the files.
        side: of the squares.
        channels: 1 (grey) or 3.
        unreadable: files that are no pictures, damaged or too large end it ("refuse"), or are left
            out ("skip").
        memory_gb: the most that the images may take, in 10^9 bytes; they are held in memory.
        progress: called with (images read, images in all) now and then.

    Raises:
        ValueError: if the images would take more memory, files cannot be read, or too few are left.
        ModuleNotFoundError: if Pillow is not installed.
    """
    for name, value in (("side", side), ("memory_gb", memory_gb)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    need_pillow()
    count = len(listing.train) + len(listing.test)
    needed = count * side * side * channels / 1e9
    if needed > memory_gb:
        raise ValueError(
            f"memory_gb must be at least {needed:.3g} for {count:,} images of {side} x {side} "
            f"x {channels} bytes, got {memory_gb:g}; a smaller image size needs less"
        )
    parts: dict[str, Any] = {}
    faults: list[str] = []
    for name, files in (("train", listing.train), ("test", listing.test)):
        done = len(listing.train) if name == "test" else 0
        shown = None if progress is None else partial(_shifted, progress, done, count)
        images, bad = _read([path for path, _ in files], side, channels, shown)
        labels = _labels([label for _, label in files], len(listing.classes))
        if bad:
            faults += bad.values()
            good = np.array([i not in bad for i in range(len(files))])
            images, labels = images[good], labels[good]
        parts |= {name: images, f"{name}_labels": labels}
    if faults and unreadable == "refuse":
        raise ValueError(
            f"{listing.folder} must hold images that can be read: {_first_of(faults)}; "
            "skip leaves such files out"
        )
    _check_left(listing, parts["train_labels"], parts["test_labels"])
    source = (
        f"images of {len(listing.classes)} classes: {len(parts['train']):,} to train on, "
        f"{len(parts['test']):,} to test ({listing.split})"
    )
    if faults:
        source += f"; {len(faults):,} could not be read"
    return FolderImages(
        images=ImageSet(**parts, source=source),
        classes=listing.classes,
        skipped=tuple(faults),
    )


def _shifted(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _first_of(sentences: Sequence[str]) -> str:
    more = f" (and {len(sentences) - 1:,} more)" if len(sentences) > 1 else ""
    return sentences[0] + more


def _read(
    paths: Sequence[Path], side: int, channels: int, progress: Callable[[int], None] | None
) -> tuple[Bytes, dict[int, str]]:
    """Return the images (N, side, side, channels), and a sentence for each that cannot be read."""
    array = np.zeros((len(paths), side, side, channels), np.uint8)
    faults: dict[int, str] = {}

    def read(i: int) -> None:
        try:
            # Twice the side is enough for the filter that shrinks it.
            picture = open_picture(paths[i], at_least=2 * side)
            array[i] = as_bytes(square(picture, side), channels)
        except ValueError as error:
            faults[i] = str(error)

    with bombs_refused(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(read, range(len(paths))), start=1):
            if progress is not None and (done % 100 == 0 or done == len(paths)):
                progress(done)
    return array, dict(sorted(faults.items()))


def _check_left(listing: Listing, train: NDArray[Any], test: NDArray[Any]) -> None:
    counts = np.bincount(train, minlength=len(listing.classes))
    for name, count in zip(listing.classes, counts, strict=True):
        if not count:
            raise ValueError(
                f"class {name!r} of {listing.folder} must have an image to train on that can be "
                "read, found none"
            )
    if not len(test):
        raise ValueError(f"{listing.folder} must have a test image that can be read, found none")


def _labels(labels: Sequence[int], classes: int) -> Labels:
    values = np.array(labels)
    return values.astype(np.uint8) if classes <= 256 else values.astype(np.uint16)


def _classes(
    folder: Path, *, known: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], Files, tuple[Path, ...]]:
    """Return names of classes, files with their class, and the files that are no images."""
    found: list[tuple[Path, int]] = []
    others = [path for path in _entries(folder) if not path.is_dir()]
    stray = [path for path in others if _is_image(path)]
    if stray:
        raise ValueError(
            f"{folder} must hold a folder for each class, found images that lie in none: "
            f"{_first_of([path.name for path in stray])}"
        )
    names = tuple(path.name for path in _folders(folder))
    _check_names(folder, names, known)
    classes = known or names
    for name in names:
        files = list(_files(folder / name, (_identity(folder),)))
        images = [path for path in files if _is_image(path)]
        if not images and known is None:
            raise ValueError(f"class folder {folder / name} must hold images, found none")
        found += [(path, classes.index(name)) for path in images]
        others += [path for path in files if not _is_image(path)]
    if not found:
        raise ValueError(f"{folder} must hold images, found none")
    return classes, tuple(found), tuple(others)


def _check_names(folder: Path, names: tuple[str, ...], known: tuple[str, ...] | None) -> None:
    if known is None and len(names) < 2:
        found = f"the one folder {names[0]!r}" if names else "none"
        raise ValueError(
            f"{folder} must hold a folder for each of two classes or more, got {found}"
        )
    for name in names:
        if known is not None and name not in known:
            raise ValueError(f"{folder} must hold classes that are trained on, got {name!r}")
        if not name.isprintable():
            raise ValueError(f"{folder} must hold folders whose names can be printed, got {name!r}")
    if len(names) > 65536:
        raise ValueError(f"{folder} must hold at most 65,536 classes, got {len(names):,}")


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield all files below ``folder``; links are followed, but in no circle."""
    here = _identity(folder)
    if here in above:
        raise ValueError(f"{folder} must not be a link to a folder that it lies in")
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _split(found: Files, classes: int, share: float, seed: int) -> tuple[Files, Files]:
    """Hold back a share of each class, at least one image; a class's only image is trained on."""
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    labels = np.array([label for _, label in found])
    for label in range(classes):
        places = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held.update(places[:count].tolist())
    if not held:
        raise ValueError("a class must have two images, to train on and to test, found one a class")
    kept = tuple(file for i, file in enumerate(found) if i not in held)
    return kept, tuple(file for i, file in enumerate(found) if i in held)
