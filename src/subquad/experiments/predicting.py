"""Picture files to the classes that a trained classifier gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from subquad.data.augment import middle
from subquad.data.pictures import (
    as_bytes,
    bombs_refused,
    channels_of,
    need_pillow,
    open_picture,
    square,
)
from subquad.tasks.classifier import Classifier, Labels

Bytes = NDArray[np.uint8]
CHANNELS = {1: "grey", 3: "in colours"}


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class, and its share of belief."""

    label: str
    probability: float


class UnfitPictures(ValueError):
    """Files that cannot be told; ``sentences`` has one for each."""

    def __init__(self, sentences: Sequence[str]) -> None:
        more = f" (and {len(sentences) - 1:,} more files)" if len(sentences) > 1 else ""
        super().__init__(sentences[0] + more)
        self.sentences = tuple(sentences)


def read_for(
    labels: Labels, paths: Sequence[Path], *, resize: bool = False, invert: bool = False
) -> Bytes:
    """Return pictures as a classifier takes them, (N, H, W, C) bytes.

    Args:
        labels: the classifier's.
        paths: files of pictures.
        resize: bring pictures of other sizes and channels to the classifier's, where it would
            refuse them: shorter side resized, the middle kept; grey and colours converted.
        invert: turn dark and light around.

    Raises:
        UnfitPictures: if one is no picture, damaged, or of another size or other channels.
        ValueError: if ``resize`` is asked of a classifier of images that are not square.
        ModuleNotFoundError: if Pillow is not installed.
    """
    need_pillow()
    if resize and labels.image_size[0] != labels.image_size[1]:
        raise ValueError(f"resize needs a classifier of squares, got one of {labels.image_size}")
    found, faults = [], []
    with bombs_refused():
        for path in paths:
            try:
                found.append(_read(path, labels, resize or labels.fit == "resize"))
            except ValueError as error:
                faults.append(str(error))
    if faults:
        raise UnfitPictures(faults)
    images = np.stack(found)
    return 255 - images if invert else images


def predict(classifier: Classifier, images: Bytes, *, top: int) -> list[list[Guess]]:
    """Return the ``top`` likeliest classes of each image, the likeliest first.

    Args:
        classifier: whose guesses they are.
        images: as :func:`read_for` returns them.
        top: how many.

    Raises:
        ValueError: if ``top`` is below 1 or above the number of classes.
    """
    names = classifier.labels.classes
    if not 1 <= top <= len(names):
        raise ValueError(f"top must be from 1 to the model's {len(names)} classes, got {top}")
    shares, places = classifier.probabilities(images).topk(top, 1)
    return [
        [Guess(label=names[i], probability=share) for i, share in zip(*row, strict=True)]
        for row in zip(places.tolist(), shares.tolist(), strict=True)
    ]


def _read(path: Path, labels: Labels, resize: bool) -> Bytes:
    if resize:
        side = labels.resize or labels.image_size[0]
        # As the training read it: large photographs at no less than twice the side.
        picture = square(open_picture(path, at_least=2 * side), side)
        fitted: Bytes = middle(as_bytes(picture, labels.channels)[None], labels.image_size[0])[0]
        return fitted
    picture = open_picture(path)
    height, width = labels.image_size
    if picture.size != (width, height):
        raise ValueError(
            f"{path} must be {width} pixels wide and {height} high for this model, "
            f"got {picture.width} and {picture.height}; --resize makes it so"
        )
    if channels_of(picture) != labels.channels:
        raise ValueError(
            f"{path} must be {CHANNELS[labels.channels]} for this model, but it is "
            f"{CHANNELS[channels_of(picture)]}; --resize converts it"
        )
    return as_bytes(picture, labels.channels)
