"""Training images in batches: their order, how they are varied, and bytes to numbers.

Images come without replacement, in an order of its own for each pass over the data, varied at
random if asked to be. Order and variation are pure functions of the seed and the step.
"""

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subquad.data.augment import Augmentation, middle
from subquad.data.image_set import ImageSet, Labels
from subquad.tasks.normalizing import Normalization, normalization_of, normalized

__all__ = ["Augmentation", "Bytes", "ImageBatches", "some_places"]

Bytes = NDArray[np.uint8]


class ImageBatches:
    """The micro-batches of a set of images.

    Args:
        images: training and test images with their labels.
        batch_size: images in one micro-batch.
        seed: of the order of the images and of how they are varied.
        augmentation: how training images are varied.
        normalization: where mean and deviation come from; see ``tasks.normalizing``.
        channels_last: lay batches out in memory with the channels last.

    Attributes:
        mean, std: what channels are normalised by, in units of 255 bytes.
        identity: the data and its variation, for a task's identity.

    Raises:
        ValueError: if a number is out of its range, or the images cannot be varied so.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        normalization: Normalization = "data",
        channels_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._augmentation = augmentation
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        augmentation.check_images(images.train.shape[1:])
        self.mean, self.std = normalization_of(images.train, normalization)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.identity: dict[str, Any] = {
            "seed": seed,
            "images": len(images.train),
            "checksum": f"{zlib.crc32(np.ascontiguousarray(images.train).data):08x}",
            "augmentation": augmentation.as_json(),
        }
        # Only where they are used: checkpoints from before these options are to go on.
        if normalization != "data":
            self.identity["normalization"] = normalization
        if channels_last:
            self.identity["channels_last"] = True

    def __call__(self, step: int) -> tuple[Bytes, Labels]:
        """Return the varied images (B, H, W, C) of micro-batch ``step`` and their labels (B,)."""
        first, size = step * self.batch_size, len(self.images.train)
        places = [
            int(self._epoch(i // size)[i % size]) for i in range(first, first + self.batch_size)
        ]
        rng = np.random.default_rng((self.seed, 1, step))
        varied = self._augmentation(self.images.train[places], rng)
        return varied, self.images.train_labels[places]

    def prepared(self, images: Bytes) -> Tensor:
        """Return images (B, H, W, C) as normalised numbers (B, C, H, W).

        Of images that are larger than random crops the middle is taken.
        """
        side = self._augmentation.crop
        if side is not None and images.shape[1:3] != (side, side):
            images = middle(images, side)
        x = normalized(images, self.mean, self.std)
        return x.contiguous(memory_format=self._layout)

    def _epoch(self, number: int) -> NDArray[np.int64]:
        """Return the order of the images in pass ``number``; the last one asked for is kept."""
        if self._order[0] != number:
            rng = np.random.default_rng((self.seed, 0, number))
            self._order = (number, rng.permutation(len(self.images.train)))
        return self._order[1]


def some_places(size: int, count: int | None) -> NDArray[np.int64]:
    """Return ``count`` of ``size`` places in order, always the same ones; all of them for None."""
    if count is None:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).permutation(size)[:count])
