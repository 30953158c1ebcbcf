"""Which tokens meet: hashing by random rotations, sorting by bucket, chunks and their windows.

Axes: B batch, H heads, R rounds of hashing, T time, K width of queries and keys, M = buckets / 2,
N chunks, C tokens in a chunk, W tokens in a chunk's window. Nothing here has a gradient.
Source: Kitaev et al. 2020, "Reformer", section 2; Andoni et al. 2015 (the hash).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class Chunks(NamedTuple):
    """The tokens of each round in sorted order, cut into chunks; the last one may have free slots.

    ``position`` is a slot's token, any valid one where ``valid`` is False (padded, or free);
    ``slot`` is the way back: where in the sorted order each token stands.
    """

    position: Int[Tensor, "B H R N C"]
    valid: Bool[Tensor, "B H R N C"]
    slot: Int[Tensor, "B H R T"]


def unit_keys(x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
    """Return x / |x|, the keys that go with shared queries; 0 stays 0 and carries no gradient.

    The largest number is taken out before squaring, so that 1e30 does not overflow in float32.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    x = x / largest.masked_fill(zero, 1)
    squares = x.square().sum(-1, keepdim=True).masked_fill(zero, 1)
    return (x * squares.rsqrt()).masked_fill(zero, 0)


def hash_buckets(
    keys: Float[Tensor, "B H T K"], rotations: Float[Tensor, "R K M"]
) -> Int[Tensor, "B H R T"]:
    """Return each token's bucket in each round: argmax over [x R, -x R], one of 2 M."""
    with torch.no_grad():
        rotated = keys.unsqueeze(2) @ rotations.to(keys.dtype)
        return torch.cat([rotated, -rotated], dim=-1).argmax(-1)


def sort_into_chunks(
    buckets: Int[Tensor, "B H R T"], key_mask: Bool[Tensor, "B T"] | None, *, chunk_size: int
) -> Chunks:
    """Sort tokens by bucket and, within one, by time; cut the order into chunks of ``chunk_size``.

    Tokens that ``key_mask`` hides go behind all others. So the chunks of the valid ones are those
    of the sequence without padding, whatever the padding.
    """
    seq_len = buckets.shape[-1]
    if key_mask is not None:
        buckets = buckets.masked_fill(~key_mask[:, None, None], torch.iinfo(buckets.dtype).max)
    order = buckets.argsort(dim=-1, stable=True)
    slots = torch.arange(seq_len, device=order.device).expand_as(order)
    slot = torch.empty_like(order).scatter_(-1, order, slots)
    free = -seq_len % chunk_size
    position = torch.nn.functional.pad(order, (0, free))
    valid = position.new_ones(position.shape, dtype=torch.bool)
    valid[..., seq_len:] = False
    if key_mask is not None:
        kept = key_mask[:, None, None].expand_as(buckets)
        valid[..., :seq_len] = kept.gather(-1, order)
    shape = (*order.shape[:3], -1, chunk_size)
    return Chunks(position.reshape(shape), valid.reshape(shape), slot)


def gather_chunks(x: Shaped[Tensor, "B H T E"], chunks: Chunks) -> Shaped[Tensor, "B H R N C E"]:
    """Lay tokens into the slots of each round."""
    index = chunks.position.flatten(2).unsqueeze(-1).expand(*x.shape[:2], -1, x.shape[-1])
    return x.gather(2, index).reshape(*chunks.position.shape, x.shape[-1])


def ungather_chunks(
    y: Shaped[Tensor, "B H R N C *E"], chunks: Chunks
) -> Shaped[Tensor, "B H R T *E"]:
    """Take each token's result out of its slot; free slots are left out."""
    flat = y.flatten(3, 4)
    slot = chunks.slot
    if flat.dim() == 5:
        slot = slot.unsqueeze(-1).expand(*slot.shape, flat.shape[-1])
    return flat.gather(3, slot)


def windows(
    x: Shaped[Tensor, "B H R N C *E"], before: int, after: int
) -> Shaped[Tensor, "B H R N W *E"]:
    """Lay before each chunk the ``before`` chunks ahead of it and behind it the ``after`` next.

    Beyond the first and the last chunk stand zeros (False).
    """
    num_chunks = x.shape[3]
    head, tail = (x.new_zeros(*x.shape[:3], n, *x.shape[4:]) for n in (before, after))
    padded = torch.cat([head, x, tail], dim=3)
    shifted = [padded[:, :, :, i : i + num_chunks] for i in range(before + after + 1)]
    return torch.cat(shifted, dim=4)


def seen_pairs(
    chunks: Chunks, *, before: int, after: int, is_causal: bool
) -> tuple[Bool[Tensor, "B H R N C W"], Bool[Tensor, "B H R N C"]]:
    """Return which tokens of its window each slot sees, and which slots see another than itself.

    A token sees itself only where a round shows it nothing else; a padded token sees nothing.
    """
    query = chunks.position.unsqueeze(-1)
    key = windows(chunks.position, before, after).unsqueeze(-2)
    valid = windows(chunks.valid, before, after).unsqueeze(-2) & chunks.valid.unsqueeze(-1)
    others = valid & (key < query if is_causal else key != query)
    has_other = others.any(-1)
    return others | (valid & (key == query) & ~has_other.unsqueeze(-1)), has_other


def times_seen(chunks: Chunks, *, before: int, after: int) -> Int[Tensor, "B H R N C W"]:
    """Count in how many of the R rounds each token of a window lies in the slot's window."""
    rounds, chunk_size = chunks.slot.shape[2], chunks.position.shape[-1]
    chunk_of = (chunks.slot // chunk_size).int().mT  # (B, H, T, R): which chunk, in each round
    query = gather_chunks(chunk_of, chunks)
    key = windows(query, before, after)
    count = None
    for other in range(rounds):
        distance = key[..., other].unsqueeze(-2) - query[..., other].unsqueeze(-1)
        near = ((distance >= -before) & (distance <= after)).int()
        count = near if count is None else count.add_(near)
    assert count is not None
    return count
