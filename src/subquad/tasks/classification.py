"""Learning to tell the class of an image.

The images of a step are a pure function of the seed and the step: see ``tasks.image_batches``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.data.image_set import ImageSet, Labels
from subquad.tasks.accuracy import Accuracy
from subquad.tasks.image_batches import Augmentation, Bytes, ImageBatches, some_places
from subquad.tasks.normalizing import Normalization

__all__ = ["Augmentation", "ClassificationTask"]

QUICK_IMAGES = 1000
EVALUATION_BATCH = 250


class ClassificationTask:
    """Minimise the cross-entropy of a model that maps images (B, C, H, W) to logits (B, K).

    Bytes are divided by 255 and normalised a channel.

    Args:
        model: the model; ``channels_last`` changes how its weights lie in memory.
        images: training and test images with their labels; of test images larger than what
            ``augmentation`` crops the middle is taken.
        batch_size: images in one micro-batch.
        seed: of the order of the images and of how they are varied.
        augmentation: how training images are varied.
        label_smoothing: share of the target spread over all classes, at least 0 and below 1.
        evaluation_batch: images in one forward pass of an evaluation.
        quick_images: test images of a quick evaluation, always the same.
        normalization: mean and deviation of the channels: "data", those of the training images, so
            that they have mean 0 and variance 1; "half", 0.5 and 0.5, which gives numbers from -1
            to 1; "imagenet", those of the published networks, for three channels.
        channels_last: lay images and convolutions out with the channels last, which is often faster
            on CPUs, and on GPUs in mixed precision; numbers are the same up to rounding.
        top_k: "accuracy" is the share of images whose class is the likeliest; for each k above 1
            in here, "accuracy_top{k}" is the share whose class is among the k likeliest.

    Raises:
        ValueError: if a number is out of its range, or an option does not fit the images.
        ModuleNotFoundError: if ``top_k`` needs torchmetrics and it is not installed.
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
        normalization: Normalization = "data",
        channels_last: bool = False,
        top_k: Sequence[int] = (1,),
    ) -> None:
        for name, value in (
            ("evaluation_batch", evaluation_batch),
            ("quick_images", quick_images),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 1, got {label_smoothing:g}"
            )
        self.model, self.samples_per_step = model, batch_size
        self._smoothing = label_smoothing
        self._evaluation_batch, self._quick_images = evaluation_batch, quick_images
        self._batches = ImageBatches(
            images,
            batch_size=batch_size,
            seed=seed,
            augmentation=augmentation or Augmentation(),
            normalization=normalization,
            channels_last=channels_last,
        )
        self._accuracy = Accuracy(top_k)
        if channels_last:
            _lay_channels_last(model)
        self.mean, self.std = self._batches.mean, self._batches.std
        self.identity: dict[str, Any] = {
            "name": "classification",
            **self._batches.identity,
            "label_smoothing": label_smoothing,
        }

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the images (B, C, H, W) of micro-batch ``step``, and their labels (B,)."""
        images, labels = self._batches(step)
        return self.prepared(images), _labels(labels)

    def prepared(self, images: Bytes) -> Tensor:
        """Return images (B, H, W, C) as the model takes them, (B, C, H, W)."""
        return self._batches.prepared(images)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        x, labels = batch
        return F.cross_entropy(self.model(x).float(), labels, label_smoothing=self._smoothing)

    def metric(self, loss: float) -> float:
        """Return nats as they are."""
        return loss

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return nats and shares right, on a fixed sample of the test images or all of them."""
        images, labels = self._batches.images.test, self._batches.images.test_labels
        chosen = some_places(len(images), None if full else self._quick_images)
        device, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        self._accuracy.reset()
        nats = 0.0
        try:
            for start in range(0, len(chosen), self._evaluation_batch):
                part = chosen[start : start + self._evaluation_batch]
                logits = self.model(self.prepared(images[part]).to(device)).float()
                wanted = _labels(labels[part]).to(device)
                nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
                self._accuracy.update(logits, wanted)
        finally:
            self.model.train(was_training)
        return {"loss": nats / len(chosen), **self._accuracy.compute()}


def _lay_channels_last(model: nn.Module) -> None:
    # Convolutions only: a position table of four axes has nothing to win.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)


def _labels(labels: Labels) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
