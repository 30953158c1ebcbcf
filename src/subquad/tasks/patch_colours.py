"""What is guessed of a patch: its colours in three bits a channel. Exact: whole numbers only.

Axes: B images, N patches in raster order, P pixels along a side of a patch, C channels.
Source: Dosovitskiy et al. 2021, section 4.6 and appendix B.1.2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subquad.data.image_set import ImageSet

LEVELS = 8  # of a channel: three bits
SMALL_SIDE = 4  # pixels along a side of a patch made small

Bytes = NDArray[np.uint8]
Ids = NDArray[np.int64]


def patches_of(images: NDArray[Any], side: int) -> NDArray[Any]:
    """Return the patches (B, N, P, P, C) of images (B, H, W, C), in raster order.

    Raises:
        ValueError: if ``side`` does not divide the images' sides.
    """
    batch, height, width, channels = images.shape
    if side < 1 or height % side or width % side:
        raise ValueError(f"side must divide {height} and {width}, got {side}")
    grid = images.reshape(batch, height // side, side, width // side, side, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side, side, channels)


def mean_colours(patches: Bytes) -> Ids:
    """Return the class of the mean colour of each patch, (B, N, P, P, C) -> (B, N).

    The mean of each channel, from 0 to 255, is cut to its three highest bits; the first channel
    counts most: ``64 r + 8 g + b``, or the grey level alone. In whole numbers, so exact.
    """
    pixels = patches.shape[2] * patches.shape[3]
    levels = patches.sum((2, 3), dtype=np.int64) * LEVELS // (256 * pixels)
    weights = LEVELS ** np.arange(patches.shape[4])[::-1]
    classes: Ids = levels @ weights
    return classes


def small_patches(patches: Bytes) -> Ids:
    """Return the classes of the 4 x 4 mean colours of each patch, (B, N, P, P, C) -> (B, N, 16).

    Raises:
        ValueError: if P is not a multiple of 4.
    """
    batch, count, side = patches.shape[:3]
    if side % SMALL_SIDE:
        raise ValueError(f"the side of a patch must be a multiple of {SMALL_SIDE}, got {side}")
    parts = patches_of(patches.reshape(-1, *patches.shape[2:]), side // SMALL_SIDE)
    return mean_colours(parts).reshape(batch, count, SMALL_SIDE**2)


def unseen_colours(images: ImageSet, side: int) -> dict[str, float]:
    """Return accuracy and nats of guessing mean colours of test patches by how often each occurs.

    What a model that sees nothing can reach: the classes' frequencies in the training images.
    """
    seen, wanted = (
        np.bincount(mean_colours(patches_of(x, side)).ravel(), minlength=LEVELS ** x.shape[3])
        for x in (images.train, images.test)
    )
    log_shares = np.log((seen + 1) / (seen + 1).sum())
    return {
        "loss": -float((wanted * log_shares).sum() / wanted.sum()),
        "accuracy": float(wanted[seen.argmax()] / wanted.sum()),
    }
