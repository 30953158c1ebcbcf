"""Learning to draw images pixel by pixel: the task of sections 4.2.1 and 4.2.2 of the paper.

Source: Katharopoulos et al. 2020. Images come without replacement, in an order of its own for each
pass over the data (the released loader never shuffled).
"""

import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subquad.models import PixelModel

QUICK_IMAGES = 256
EVALUATION_BATCH = 32


class PixelTask:
    """Minimise the nats per byte of a :class:`subquad.models.PixelModel`; report bits/dim.

    Args:
        model: the model; its histogram of first bytes is set from ``train``.
        train, test: images as rows of bytes, uint8 (N, L), L the model's ``seq_len``.
        train_labels, test_labels: classes (N,), needed by a class-conditional model, else unused.
        batch_size: images in one micro-batch.
        seed: seed of the images' order.
        evaluation_batch: images in one forward pass of an evaluation.
        quick_images: test images of a quick evaluation, always the same.

    Raises:
        ValueError: if shapes or labels do not fit the model, or a number is not positive.
        TypeError: if the images are not uint8.
    """

    unit = "bits/dim"
    sample_name = "images"

    def __init__(
        self,
        model: PixelModel,
        train: np.ndarray,
        test: np.ndarray,
        *,
        train_labels: np.ndarray | None = None,
        test_labels: np.ndarray | None = None,
        batch_size: int,
        seed: int = 0,
        evaluation_batch: int = EVALUATION_BATCH,
        quick_images: int = QUICK_IMAGES,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("evaluation_batch", evaluation_batch),
            ("quick_images", quick_images),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        seq_len, num_classes = model.config["seq_len"], model.config["num_classes"]
        self.model = model
        self._train = _Images("train", train, train_labels, seq_len, num_classes)
        self._test = _Images("test", test, test_labels, seq_len, num_classes)
        self.samples_per_step, self._seed = batch_size, seed
        self._evaluation_batch, self._quick_images = evaluation_batch, quick_images
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        counts = np.bincount(train[:, 0], minlength=256).astype(np.float32)
        with torch.no_grad():
            model.first_byte_counts.copy_(torch.from_numpy(counts))
        self.identity: dict[str, Any] = {
            "name": "pixels",
            "seed": seed,
            "images": len(train),
            "checksum": _checksum(train),
            "test_checksum": _checksum(test),
        }

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the images (B, L) uint8 of micro-batch ``step``, and their labels if needed."""
        first = step * self.samples_per_step
        places = range(first, first + self.samples_per_step)
        size = len(self._train.images)
        return self._train.take([int(self._epoch(i // size)[i % size]) for i in places])

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean nats per predicted byte."""
        return self.model.nll(*batch).mean()

    def metric(self, loss: float) -> float:
        """Return nats as bits/dim."""
        return loss / math.log(2)

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return the bits/dim of a fixed sample of the test images, or of all of them."""
        total = len(self._test.images)
        chosen = np.arange(total)
        if not full:
            # The same few for every run, whatever its seed, drawn from all classes.
            chosen = np.sort(np.random.default_rng(0).permutation(total)[: self._quick_images])
        device, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        nats, count = 0.0, 0
        try:
            for part in np.split(
                chosen, range(self._evaluation_batch, len(chosen), self._evaluation_batch)
            ):
                batch = [t.to(device) for t in self._test.take(part.tolist())]
                nll = self.model.nll(*batch)
                nats += float(nll.sum(dtype=torch.float64))
                count += nll.numel()
        finally:
            self.model.train(was_training)
        return {"loss": self.metric(nats / count)}

    def _epoch(self, number: int) -> np.ndarray:
        """Return the order of the images in pass ``number``; the last one asked for is kept."""
        if self._order[0] != number:
            rng = np.random.default_rng((self._seed, number))
            self._order = (number, rng.permutation(len(self._train.images)))
        return self._order[1]


def _checksum(images: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(images).data):08x}"


class _Images:
    """Checked images, with labels if and only if the model wants them."""

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        seq_len: int,
        num_classes: int | None,
    ) -> None:
        if images.dtype != np.uint8:
            raise TypeError(f"{name} must be uint8, got {images.dtype}")
        if images.ndim != 2 or images.shape[1] != seq_len or len(images) == 0:
            raise ValueError(
                f"{name} must have the shape (N, {seq_len}) with N >= 1, got {images.shape}"
            )
        self.images, self.labels = images, None
        if num_classes is None:
            return
        if labels is None or labels.shape != (len(images),):
            got = None if labels is None else labels.shape
            raise ValueError(
                f"{name}_labels must have the shape ({len(images)},) for a model with num_classes, "
                f"got {got}"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name}_labels must be from 0 to {num_classes - 1}, "
                f"got {labels.min()} to {labels.max()}"
            )
        self.labels = labels.astype(np.int64)

    def take(self, places: list[int]) -> tuple[Tensor, ...]:
        """Return the images at ``places``, with their labels if there are any."""
        parts = [self.images[places]]
        if self.labels is not None:
            parts.append(self.labels[places])
        return tuple(torch.from_numpy(part) for part in parts)
