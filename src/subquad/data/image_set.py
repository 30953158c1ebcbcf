"""What every image data set is given as: bytes and labels, split into training and test images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Labels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images as bytes, (N, H, W, C), with one label an image: a byte, or two (uint16).

    ``source`` says in one line where the images came from and how many they are.

    Raises:
        TypeError: if images are not bytes (uint8), or labels neither uint8 nor uint16.
        ValueError: if the shapes do not fit together, or a part is empty.
    """

    train: Bytes
    train_labels: Labels
    test: Bytes
    test_labels: Labels
    source: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, part), getattr(self, f"{part}_labels")
            _check_bytes(part, images, ndim=4)
            _check_labels(f"{part}_labels", labels)
            if not len(images):
                raise ValueError(f"{part} must hold at least one image, got none")
            if len(images) != len(labels):
                raise ValueError(
                    f"{part} and {part}_labels must be equally many, "
                    f"got {len(images)} images and {len(labels)} labels"
                )
        if self.train.shape[1:] != self.test.shape[1:]:
            raise ValueError(
                "train and test must hold images of one shape, "
                f"got {self.train.shape[1:]} and {self.test.shape[1:]}"
            )


def downsample2x2(images: Bytes) -> Bytes:
    """Halve height and width: each pixel is the mean of 2 x 2, rounded, halves upwards.

    Args:
        images: (N, H, W, C) bytes, H and W even.

    Returns:
        (N, H/2, W/2, C) bytes.

    Raises:
        TypeError: if ``images`` does not hold bytes.
        ValueError: if it has other than four axes, or H or W is odd.
    """
    _check_bytes("images", images, ndim=4)
    height, width = images.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"images must be of even height and width, got {height} x {width}")
    # A sum of four bytes needs ten bits.
    total = images[:, 0::2, 0::2].astype(np.uint16)
    for row, column in ((0, 1), (1, 0), (1, 1)):
        total += images[:, row::2, column::2]
    return ((total + 2) // 4).astype(np.uint8)


def _check_bytes(name: str, array: NDArray[Any], *, ndim: int) -> None:
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must hold bytes (uint8), got {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")


def _check_labels(name: str, array: NDArray[Any]) -> None:
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{name} must be uint8 or uint16, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must have 1 axes, got shape {array.shape}")
