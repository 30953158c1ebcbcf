"""Packed sequences: many laid end to end in one row, with ``cu_seqlens`` as their borders.

Axes: H heads, T packed time, S sequences of a group, L longest of a group.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Attend = Callable[..., Tensor]


def run_packed(
    attend: Attend, cu_seqlens: Int[Tensor, " S_plus_1"], *tensors: Float[Tensor, "1 _ T *_"]
) -> Float[Tensor, "1 H T V"]:
    """Run ``attend(*padded, key_mask)`` on packed sequences; none sees another.

    Sequences of like length (within a factor of 2) share one padded call, so that padding at most
    doubles the tokens however uneven the lengths are, and there are at most log2(T) + 1 calls.

    Args:
        attend: takes the padded tensors (S, H, L, ...) and a key_mask (S, L), returns (S, H, L, V).
        cu_seqlens: borders 0, ..., T; checked by the caller. Empty sequences are passed over.
        tensors: each (1, H, T, ...), or (1, 1, T, ...) where all heads share one.
    """
    spans = [(b - a, a) for a, b in pairwise(cu_seqlens.tolist()) if b > a]
    spans.sort()
    outputs: list[Tensor] = []
    order: list[Tensor] = []
    while spans:
        shortest = spans[0][0]
        group = [span for span in spans if span[0] <= 2 * shortest]
        spans = spans[len(group) :]
        index, mask = _padded_index(group, tensors[0].device)
        padded = [x[0][:, index].transpose(0, 1) for x in tensors]
        y = attend(*padded, mask)
        outputs.append(y.transpose(1, 2)[mask])
        order.append(index[mask])
    position = torch.cat(order).argsort()
    return torch.cat(outputs)[position].transpose(0, 1).unsqueeze(0)


def _padded_index(
    group: list[tuple[int, int]], device: torch.device
) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
    lengths = torch.tensor([length for length, _ in group], device=device)
    starts = torch.tensor([start for _, start in group], device=device)
    offset = torch.arange(group[-1][0], device=device)
    mask = offset < lengths[:, None]
    return starts[:, None] + torch.where(mask, offset, 0), mask


def packed_positions(cu_seqlens: Int[Tensor, " S_plus_1"]) -> Int[Tensor, "1 T"]:
    """Return each packed token's position in its own sequence, (1, T)."""
    lengths = cu_seqlens.diff()
    starts = torch.repeat_interleave(cu_seqlens[:-1], lengths)
    return (torch.arange(len(starts), device=cu_seqlens.device) - starts).unsqueeze(0)
