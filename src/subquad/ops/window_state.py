"""Tables of keys and values that go with a causal window: each slot holds one position.

A ring of W slots holds the last W valid tokens, position p in slot p mod W; other tables hold
positions that stay for good. Rows of a batch may have read unlike numbers of tokens.

Axes: B batch, H heads, T new tokens, W slots of a ring, S slots, K key (or value) size.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.checks import check_same_device, check_same_dtype, check_shape


def ring_positions(count: Int[Tensor, " B"], size: int) -> Int[Tensor, "B W"]:
    """Return the position that each slot of a ring holds after ``count`` tokens, < 0 if none."""
    slots, last = torch.arange(size, device=count.device), count[:, None] - 1
    return last - (last - slots) % size


def ring_past(ring: Float[Tensor, "B H W K"], count: Int[Tensor, " B"]) -> Float[Tensor, "B H P K"]:
    """Return the last P = W - 1 tokens in order of time; where there were fewer, the first mean
    nothing.
    """
    size = ring.shape[2]
    slots = (count[:, None] - (size - 1) + torch.arange(size - 1, device=ring.device)) % size
    return torch.take_along_dim(ring, slots[:, None, :, None], 2)


def fill(
    table: Float[Tensor, "B H S K"],
    new: Float[Tensor, "B H T K"],
    at: Int[Tensor, "b S"],
    count: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
) -> Float[Tensor, "B H S K"]:
    """Return ``table`` with new tokens in the slots whose position ``at`` is among theirs.

    Of the new tokens, at positions ``count`` and on, the first ``lengths`` of each row are valid.
    """
    index = at - count[:, None]
    fresh = (index >= 0) & (index < lengths[:, None])
    index = index.clamp(0, new.shape[2] - 1)
    moved = torch.take_along_dim(new, index[:, None, :, None], 2)
    return torch.where(fresh[:, None, :, None], moved, table)


def put(
    table: Float[Tensor, "B H S K"],
    new: Float[Tensor, "B H 1 K"],
    slot: Int[Tensor, " B"],
    *,
    where: Bool[Tensor, " B"] | None = None,
    in_place: bool,
) -> Float[Tensor, "B H S K"]:
    """Return ``table`` with one more token a row, in ``slot``, in the rows named by ``where``."""
    if table.shape[2] == 0:
        return table
    index = slot.clamp(0, table.shape[2] - 1)[:, None, None, None].expand_as(new)
    if where is not None:
        new = torch.where(where[:, None, None, None], new, table.gather(2, index))
    return table.scatter_(2, index, new) if in_place else table.scatter(2, index, new)


def check_table(
    name: str, table: Tensor, size: int, other_name: str, other: Float[Tensor, "B H T K"]
) -> None:
    """Require a table of ``size`` slots that fits the keys or values ``other``.

    Raises:
        TypeError: if its dtype is another.
        ValueError: if its shape, or its device, is another.
    """
    check_shape(name, table, (*other.shape[:2], size, other.shape[3]))
    check_same_device(name, table, other)
    check_same_dtype(name, table, other_name, other)
