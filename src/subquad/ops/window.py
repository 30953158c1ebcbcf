"""Softmax attention over a window of positions and some keys beside it, in blocks.

What local and strided attention share. Queries are cut into blocks of C; a block sees the S keys of
its queries' windows, an overlapping view of the keys, so nothing of size T x T is ever made and
nothing of size T x window x K is copied. ``scaled_dot_product_attention`` does the arithmetic.

Axes: B batch, H heads, T time (Tq queries at the end of Tk keys), N blocks, C queries of a block,
S keys of a block, E keys beside the window, K query and key size, V value size.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention


class Extra(NamedTuple):
    """Keys that are seen from outside the window too; each is counted once where it is inside.

    ``at`` (B or 1, E): their positions among the keys, in any order; one past a causal query is not
    seen. ``depth``: a number that all of ``at`` are below, or None if they may be anywhere.
    """

    k: Float[Tensor, "B H E K"]
    v: Float[Tensor, "B H E V"]
    at: Int[Tensor, "b E"]
    depth: int | None


class Window(NamedTuple):
    """Which keys a query sees, beside the extra ones: ``back`` before its own and ``ahead`` after.

    Only keys from ``first`` and before ``end`` count, both (B or 1,) or None for all. ``first`` is
    at most the first query's own position. No ``end`` is needed if ``is_causal``: only queries that
    stand behind it, whose outputs mean nothing, see what is there.
    """

    back: int
    ahead: int
    is_causal: bool
    first: Int[Tensor, " B"] | None = None
    end: Int[Tensor, " B"] | None = None
    extra: Extra | None = None


class Blocks(NamedTuple):
    """Queries cut into blocks, with the keys and values of each, and positions among the keys."""

    q: Float[Tensor, "B N H C K"]
    k: Float[Tensor, "B N H S K"]
    v: Float[Tensor, "B N H S V"]
    q_at: Int[Tensor, "n C"]  # n is N, or 1 where one mask serves all blocks
    k_at: Int[Tensor, "n S"]


def attend_window(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    window: Window,
    *,
    scale: float | None,
    block_size: int | None,
) -> Float[Tensor, "B H Tq V"]:
    """Attend; the queries stand at the last Tq positions of the keys.

    Where all blocks but the first and last queries see alike, one small mask (C, S) serves them and
    the blocks are views. Else (keys beside the window anywhere, or rows that end unlike) each block
    has a mask of its own: (B, N, C, E + S) of bool.
    """
    queries, past = q.shape[2], k.shape[2] - q.shape[2]
    size = (64 if window.back < 64 else 128) if block_size is None else block_size
    depth = 0 if window.extra is None else window.extra.depth
    if depth is None or window.end is not None:
        blocks, window = _padded_blocks(q, k, v, window, min(size, queries))
        return _attend(blocks, window, scale)[:, :, :queries]
    reach = window.back + _idle(window, size)
    head = max(0, reach + depth - past, 0 if window.first is None else window.back)
    number = (queries - window.ahead - head) // size
    if number < 2:
        return _attend(_one_block(q, k, v, 0, past), window, scale)
    tail, low = head + number * size, past + head - reach
    cut = Cut(past + head + window.ahead, low, reach + size + window.ahead, size, number,
              past + tail - window.back)  # fmt: skip
    # Along T between B and H: there lie the outputs of SDPA, and its gradients.
    parts = torch.split(q.transpose(1, 2), [head, number * size, queries - tail], 1)
    q_head, q_body, q_tail = (part.transpose(1, 2) for part in parts)
    (k_head, k_body, k_tail), (v_head, v_body, v_tail) = _cut(k, cut), _cut(v, cut)
    outputs = []
    if head:
        outputs.append(_attend(_one_block(q_head, k_head, v_head, 0, past), window, scale))
    window = window._replace(first=None)  # which lies before the windows of all later queries
    body = _even_blocks(q_body, k_body, v_body, low, past + head)
    outputs.append(_attend(body, window, scale))
    if tail < queries:
        last = _one_block(q_tail, k_tail, v_tail, cut.tail, past + tail)
        outputs.append(_attend(last, window, scale))
    return torch.cat([y.transpose(1, 2) for y in outputs], 1).transpose(1, 2)


def attend_masked(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    visible: Bool[Tensor, "b h q Tk"],
    scale: float | None,
) -> Float[Tensor, "B H Tq V"]:
    """Attend where ``visible``, broadcast to (B, H, Tq, Tk).

    What a query that sees nothing gives is finite and means nothing; only padded ones are such.
    """
    blind = ~visible.any(-1, keepdim=True)
    return scaled_dot_product_attention(q, k, v, attn_mask=visible | blind, scale=scale)


def attend_quadratic(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    visible: Bool[Tensor, "b Tq Tk"],
    scale: float | None,
) -> Float[Tensor, "B H Tq V"]:
    """Compute softmax over the visible keys, naively: what the definitions are made of."""
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    visible = visible.unsqueeze(1)
    scores = scores.masked_fill(~visible, -torch.inf)
    highest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - highest.detach()).exp().masked_fill(~visible, 0)
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1)


class Compaction(NamedTuple):
    """Rows with their valid tokens moved to the front, in order, and the way back.

    Positions are then counts of valid tokens, so that left padding, right padding and holes are
    all as if the hidden tokens had been taken out.
    """

    key_mask: Bool[Tensor, "B T"]
    order: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]

    def front(self, x: Float[Tensor, "B H T *K"]) -> Float[Tensor, "B H T *K"]:
        """Move valid tokens to the front; behind them stand zeros, whatever stood there."""
        behind = torch.arange(x.shape[2], device=x.device) >= self.lengths[:, None]
        moved = torch.take_along_dim(x, self.order[:, None, :, None], 2)
        return moved.masked_fill(behind[:, None, :, None], 0)

    def restore(self, y: Float[Tensor, "B H T *V"]) -> Float[Tensor, "B H T *V"]:
        """Move tokens back to where they stood; hidden ones are 0."""
        index = (self.key_mask.long().cumsum(1) - 1).clamp(min=0)
        moved = torch.take_along_dim(y, index[:, None, :, None], 2)
        return moved.masked_fill(~self.key_mask[:, None, :, None], 0)


def compaction(key_mask: Bool[Tensor, "B T"]) -> Compaction:
    """Return how to move the valid tokens of each row to the front."""
    order = (~key_mask).to(torch.uint8).argsort(dim=1, stable=True)
    return Compaction(key_mask, order, key_mask.sum(1))


class Cut(NamedTuple):
    """Where keys are cut: [0, head), ``number`` windows from ``low`` on, and [tail, Tk)."""

    head: int
    low: int
    width: int
    step: int
    number: int
    tail: int


class _Cut(torch.autograd.Function):
    """Cut keys (B, H, T, K) as views: the head, windows (B, H, N, S, K) that overlap, the tail.

    Its gradient clears one tensor and adds rows block by block; those of ``unfold`` and of slices
    clear one for each piece, and took half the time of the whole backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shape, ctx.cut = x.shape, cut
        return x[:, :, : cut.head], _windows(x, cut), x[:, :, cut.tail :]

    @staticmethod
    def backward(ctx: Any, head: Tensor, windows: Tensor, tail: Tensor) -> tuple[Tensor, None]:
        cut, (batch, heads, length, width) = ctx.cut, ctx.shape
        # With room for whole steps. Sums go into reshaped parts of it: torch.compile loses what is
        # added in place to the output of unfold, without an error (torch 2.13).
        room = max(length, cut.low + (cut.number - 1) * cut.step + cut.width + cut.step)
        total = windows.new_zeros(batch, room, heads, width).transpose(1, 2)
        total[:, :, : cut.head] += head
        total[:, :, cut.tail : length] += tail
        for start in range(0, cut.width, cut.step):  # rows that do not overlap
            rows = windows[:, :, :, start : start + cut.step]
            low = cut.low + start
            part = total[:, :, low : low + cut.number * cut.step]
            part = part.view(batch, heads, cut.number, cut.step, width)
            part[:, :, :, : rows.shape[3]] += rows
        return total[:, :, :length], None


def _cut(x: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    pieces: tuple[Tensor, Tensor, Tensor] = _Cut.apply(x, cut)  # type: ignore[no-untyped-call]
    return pieces


def _windows(x: Tensor, cut: Cut) -> Tensor:
    rows = x[:, :, cut.low : cut.low + (cut.number - 1) * cut.step + cut.width]
    return rows.unfold(2, cut.width, cut.step).mT


def _idle(window: Window, size: int) -> int:
    """Return how many keys more to take a block, unseen: SDPA is faster on multiples of 16."""
    return -(window.back + size + window.ahead) % 16


def _attend(blocks: Blocks, window: Window, scale: float | None) -> Tensor:
    """Attend block by block and lay the blocks end to end, (B, H, N * C, V)."""
    batch, number = blocks.q.shape[:2]
    visible, k, v = _visible(blocks, window), blocks.k, blocks.v
    if window.extra is not None:
        beside = (window.extra.k, window.extra.v)
        k, v = (
            torch.cat([x.unsqueeze(1).expand(batch, number, *x.shape[1:]), of_block], 3)
            for x, of_block in zip(beside, (k, v), strict=True)
        )
    if visible.shape[:2] != (1, 1):
        visible = visible.expand(batch, number, -1, -1).flatten(0, 1)
    else:
        visible = visible[0]
    q, k, v = blocks.q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if window.end is None:  # each query sees at least its own key
        y = scaled_dot_product_attention(q, k, v, attn_mask=visible.unsqueeze(1), scale=scale)
    else:
        y = attend_masked(q, k, v, visible.unsqueeze(1), scale)
    return y.view(batch, number, *y.shape[1:]).transpose(1, 2).flatten(2, 3)


def _visible(blocks: Blocks, window: Window) -> Bool[Tensor, "b n C E_plus_S"]:
    q_at, k_at = blocks.q_at.unsqueeze(-1), blocks.k_at.unsqueeze(-2)
    away = k_at - q_at
    visible = ((away >= -window.back) & (away <= window.ahead)).unsqueeze(0)
    if window.first is not None:
        visible = visible & (k_at >= window.first[:, None, None, None])
    if window.end is not None:
        visible = visible & (k_at < window.end[:, None, None, None])
    if window.extra is None:
        return visible
    at = window.extra.at[:, None, None, :]
    away = at - q_at
    beside = away < -window.back
    if not window.is_causal:
        beside = beside | (away > window.ahead)
        if window.end is not None:
            beside = beside & (at < window.end[:, None, None, None])
    batch = max(len(beside), len(visible))
    return torch.cat([x.expand(batch, *x.shape[1:]) for x in (beside, visible)], -1)


def _one_block(q: Tensor, k: Tensor, v: Tensor, k_from: int, q_from: int) -> Blocks:
    """Take all queries as one block; ``k_from``, ``q_from``: positions of the first ones."""
    q_at = torch.arange(q_from, q_from + q.shape[2], device=q.device).unsqueeze(0)
    k_at = torch.arange(k_from, k_from + k.shape[2], device=q.device).unsqueeze(0)
    return Blocks(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), q_at, k_at)


def _even_blocks(q: Tensor, k: Tensor, v: Tensor, k_from: int, q_from: int) -> Blocks:
    """Cut the queries into a block for each window (B, H, N, S, K) of the keys."""
    number, width = k.shape[2:4]
    size = q.shape[2] // number
    q_at = torch.arange(q_from, q_from + size, device=q.device).unsqueeze(0)
    k_at = torch.arange(k_from, k_from + width, device=q.device).unsqueeze(0)
    of_block = q.reshape(*q.shape[:2], number, size, q.shape[3])
    return Blocks(of_block.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), q_at, k_at)


def _padded_blocks(
    q: Tensor, k: Tensor, v: Tensor, window: Window, size: int
) -> tuple[Blocks, Window]:
    """Cut all queries into blocks with masks of their own; windows may stick out at both ends."""
    queries, keys = q.shape[2], k.shape[2]
    past, number, reach = keys - queries, -(-queries // size), window.back + _idle(window, size)
    more = number * size - queries
    q = F.pad(q, (0, 0, 0, more))
    k, v = (F.pad(x, (0, 0, reach - past, more + window.ahead)) for x in (k, v))
    cut = Cut(0, 0, reach + size + window.ahead, size, number, k.shape[2])
    blocks = _even_blocks(q, _cut(k, cut)[1], _cut(v, cut)[1], past - reach, past)
    shift = torch.arange(number, device=q.device)[:, None] * size
    blocks = blocks._replace(q_at=blocks.q_at + shift, k_at=blocks.k_at + shift)
    if window.first is None:
        window = window._replace(first=shift.new_zeros(1))
    if window.end is None and not window.is_causal:
        window = window._replace(end=shift.new_full((1,), keys))
    return blocks, window
