"""Packed sequences: their borders checked, and the table of the spans that programs walk over."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.kernels.triton.plan import Plan


class Spans(NamedTuple):
    """Who walks where; in the order of time."""

    table: Tensor  # (spans, 5) int32: sequence, begin, end, the sequence's begin and its end
    first: Tensor  # (sequences + 1,) int32: the first span of each sequence


def read_borders(cu_seqlens: Tensor, q: Tensor) -> list[int]:
    """Return the borders as numbers; waits for the GPU if they lie there.

    Raises:
        TypeError: if they are neither int32 nor int64.
        ValueError: if they are not 0, ..., T in an order that never falls, or the batch is not 1.
    """
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must have shape (sequences + 1,), got {tuple(cu_seqlens.shape)}"
        )
    if len(q) != 1:
        raise ValueError(f"cu_seqlens needs a batch of size 1, got {len(q)}")
    borders: list[int] = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != q.shape[2] or any(b < a for a, b in pairwise(borders)):
        raise ValueError(
            f"cu_seqlens must start with 0, never fall and end with T = {q.shape[2]}, got {borders}"
        )
    return borders


def spans_of(borders: list[int], sizes: Plan, device: torch.device) -> Spans:
    """Cut each sequence into segments; an empty one has one empty span, which hands on its state.

    Args:
        borders: as ``read_borders`` returns them.
        sizes: of the call; segments are the longest spans.
        device: where the tables go.
    """
    cu = torch.tensor(borders, device="cpu")
    counts = (cu.diff() + sizes.segment - 1).div(sizes.segment, rounding_mode="floor").clamp(min=1)
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    sequence = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    place = torch.arange(len(sequence), device="cpu") - first[sequence]
    begin = cu[sequence] + place * sizes.segment
    stop = cu[sequence + 1]
    end = torch.minimum(begin + sizes.segment, stop)
    table = torch.stack((sequence, begin, end, cu[sequence], stop), 1)
    return Spans(*(x.to(torch.int32).to(device) for x in (table, first)))
