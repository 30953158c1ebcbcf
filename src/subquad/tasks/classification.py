"""Learning to tell the class of an image.

Images come without replacement, in an order of its own for each pass over the data, shifted and
mirrored at random if asked to be. Order and shifts are pure functions of the seed and the step.
"""

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.data.image_set import ImageSet

QUICK_IMAGES = 1000
EVALUATION_BATCH = 250

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    Args:
        shift: each is moved by up to so many pixels, down and across; zeros (in bytes) come in.
        mirror: half of them are mirrored, left and right. Not for digits or letters.

    Raises:
        ValueError: if ``shift`` is below 0.
    """

    shift: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, got {self.shift}")

    def __call__(self, images: Bytes, rng: np.random.Generator) -> Bytes:
        """Return varied copies of images (N, H, W, C)."""
        count, height, width = images.shape[:3]
        if self.shift:
            pad = self.shift
            room = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
            down, across = rng.integers(0, 2 * pad + 1, (2, count))
            images = np.stack(
                [
                    image[y : y + height, x : x + width]
                    for image, y, x in zip(room, down, across, strict=True)
                ]
            )
        if self.mirror:
            mirrored = rng.random((count, 1, 1, 1)) < 0.5
            images = np.where(mirrored, images[:, :, ::-1], images)
        return images


class ClassificationTask:
    """Minimise the cross-entropy of a model that maps images (B, C, H, W) to logits (B, K).

    Bytes are divided by 255 and brought to mean 0 and variance 1 a channel, by the training
    images' own mean and variance.

    Args:
        model: the model.
        images: training and test images with their labels.
        batch_size: images in one micro-batch.
        seed: of the order of the images and of how they are varied.
        augmentation: how training images are varied.
        label_smoothing: share of the target spread over all classes, at least 0 and below 1.
        evaluation_batch: images in one forward pass of an evaluation.
        quick_images: test images of a quick evaluation, always the same.

    Raises:
        ValueError: if a number is out of its range.
    """

    unit = "nats"
    sample_name = "images"

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        label_smoothing: float = 0.0,
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
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1, got {label_smoothing:g}"
            )
        self.model, self.samples_per_step = model, batch_size
        self._images, self._seed = images, seed
        self._augmentation, self._smoothing = augmentation or Augmentation(), label_smoothing
        self._evaluation_batch, self._quick_images = evaluation_batch, quick_images
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        pixels = images.train.reshape(-1, images.train.shape[3])
        self.mean = pixels.mean(0) / 255
        self.std = np.maximum(pixels.std(0) / 255, 1e-6)
        self.identity: dict[str, Any] = {
            "name": "classification",
            "seed": seed,
            "images": len(images.train),
            "checksum": f"{zlib.crc32(np.ascontiguousarray(images.train).data):08x}",
            "augmentation": asdict(self._augmentation),
            "label_smoothing": label_smoothing,
        }

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the images (B, C, H, W) of micro-batch ``step``, and their labels (B,)."""
        first, size = step * self.samples_per_step, len(self._images.train)
        places = [
            int(self._epoch(i // size)[i % size])
            for i in range(first, first + self.samples_per_step)
        ]
        rng = np.random.default_rng((self._seed, 1, step))
        varied = self._augmentation(self._images.train[places], rng)
        return self._prepared(varied), _labels(self._images.train_labels[places])

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        x, labels = batch
        return F.cross_entropy(self.model(x).float(), labels, label_smoothing=self._smoothing)

    def metric(self, loss: float) -> float:
        """Return nats as they are."""
        return loss

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return nats and the share right, on a fixed sample of the test images or all of them."""
        images, labels = self._images.test, self._images.test_labels
        chosen = np.arange(len(images))
        if not full:
            order = np.random.default_rng(0).permutation(len(images))
            chosen = np.sort(order[: self._quick_images])
        device, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        nats, right = 0.0, 0
        try:
            for start in range(0, len(chosen), self._evaluation_batch):
                part = chosen[start : start + self._evaluation_batch]
                logits = self.model(self._prepared(images[part]).to(device)).float()
                wanted = _labels(labels[part]).to(device)
                nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(1) == wanted).sum())
        finally:
            self.model.train(was_training)
        return {"loss": nats / len(chosen), "accuracy": right / len(chosen)}

    def _prepared(self, images: Bytes) -> Tensor:
        x = (images / np.float32(255) - self.mean) / self.std
        return torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2).contiguous()

    def _epoch(self, number: int) -> NDArray[np.int64]:
        """Return the order of the images in pass ``number``; the last one asked for is kept."""
        if self._order[0] != number:
            rng = np.random.default_rng((self._seed, 0, number))
            self._order = (number, rng.permutation(len(self._images.train)))
        return self._order[1]


def _labels(labels: Bytes) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
