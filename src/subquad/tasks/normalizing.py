"""Bytes of images to the numbers that a network takes."""

from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subquad.ops.checks import check_choice
from subquad.tasks.config import Normalization

__all__ = ["Normalization", "normalization_of", "normalized"]

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float64]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation: what its networks take
CHUNK = 512  # images counted together
LEAST_STD = 1e-6  # a channel of one value has none


def normalization_of(images: Bytes, name: Normalization) -> tuple[Numbers, Numbers]:
    """Return mean and deviation of each channel, in units of 255 bytes.

    Args:
        images: (N, H, W, C).
        name: "data", those of ``images``; "half", 0.5 and 0.5, which gives numbers from -1 to 1;
            "imagenet", those that networks trained on ImageNet take.

    Raises:
        ValueError: if there is none of that name, or "imagenet" is asked for C other than 3.
    """
    check_choice("normalization", name, get_args(Normalization))
    channels = images.shape[3]
    if name == "half":
        return np.full(channels, 0.5), np.full(channels, 0.5)
    if name == "imagenet":
        if channels != 3:
            raise ValueError(f"normalization 'imagenet' needs C = 3, got C = {channels}")
        mean, std = (np.array(values) for values in IMAGENET)
        return mean, std
    return _measured(images)


def normalized(images: Bytes, mean: Numbers, std: Numbers) -> Tensor:
    """Return images (N, H, W, C) of bytes as float32 (N, C, H, W): divided by 255, normalised."""
    x = (images / np.float32(255) - mean) / std
    return torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)


def _measured(images: Bytes) -> tuple[Numbers, Numbers]:
    # Counting bytes is exact and needs no copy of all images as numbers of eight bytes.
    counts = np.zeros((images.shape[3], 256))
    for start in range(0, len(images), CHUNK):
        for channel, count in enumerate(counts):
            part = images[start : start + CHUNK, ..., channel]
            count += np.bincount(part.reshape(-1), minlength=256)
    values = np.arange(256)
    mean = (counts @ values) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean / 255, np.maximum(np.sqrt(variance) / 255, LEAST_STD)
