"""Tiles: parts of (B, H, T, features) tensors small enough for a processor's cache.

What is done to features in several passes is done tile by tile, so that only the last pass goes to
memory. Axes: B batch, H heads, T time, K head width, M features, N heads of a tile, t its tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers in a tile: float32 ones fill half a megabyte, a part of one core's second-level cache.
CPU_TILE = 2**17
# On a GPU a pass through a tile is a kernel launch, so tiles only bound the memory.
GPU_TILE = 2**26

Group = tuple[int, slice]


def tile_size(x: Tensor) -> int:
    """Return how many numbers a tile may have on the device of ``x``."""
    return CPU_TILE if x.device.type == "cpu" else GPU_TILE


def merge_batch(width: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return (B, H, T, ...) tensors as (1, B H, T, ...) where one batch row would not fill a tile.

    ``width`` is M. Where a row fills one, a copy of tensors laid out by token would be wasted.
    """
    first = tensors[0]
    if len(first) == 1 or max(x[0, ..., 0].numel() for x in tensors) * width >= tile_size(first):
        return tensors
    return tuple(x.flatten(0, 1).unsqueeze(0) for x in tensors)


def groups(x: Tensor, width: int) -> Iterator[Group]:
    """Yield (batch row, heads) whose features (N, T, ``width``) fill a tile, or one head at least.

    ``x`` is (B, H, T, ...).
    """
    batch, heads, time = x.shape[:3]
    count = max(1, min(heads, tile_size(x) // (time * width)))
    for b in range(batch):
        for start in range(0, heads, count):
            yield b, slice(start, min(start + count, heads))


def stretches(x: Tensor, group: Group, width: int) -> Iterator[slice]:
    """Yield the tokens of one group, in order, cut so that (N, t, ``width``) is a tile."""
    time = x.shape[2]
    heads = group[1].stop - group[1].start
    count = max(16, tile_size(x) // (heads * width))
    for start in range(0, time, count):
        yield slice(start, min(start + count, time))


def rows(x: Tensor, group: Group, tokens: slice, dtype: torch.dtype) -> Tensor:
    """Return the (N, t, ...) part of x (B, H, T, ...) in ``dtype``."""
    return x[group[0], group[1], tokens].to(dtype)
