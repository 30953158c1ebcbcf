"""Strided softmax attention: a token sees those near it, and every stride-th token of all.

    y_i = sum_j softmax_j(q_i . k_j * scale) v_j   over the j that i sees:
    bidirectional  |i - j| < window,      or j mod stride = stride - 1
    causal         0 <= i - j < window,   or j mod stride = stride - 1 and j <= i

The stride-th tokens, the columns, are the paper's "fixed" pattern with one summary cell a block,
both of its parts in one head. With window >= stride any token reaches any other (causal: later) one
in two layers. The paper's other pattern, i - j mod stride = 0, needs every past token to decode;
this one keeps window + T / stride of them. Positions i, j count valid tokens only: what a mask
hides is as if it had been taken out. Cost O(T (window + T / stride)).

Axes: B batch, H heads, T time, W window, C columns, K query and key size, V value size.
Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", sections 4.2, 4.3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.checks import (
    check_cu_seqlens,
    check_key_mask,
    check_positive,
    check_qkv,
    check_shape,
)
from subquad.ops.packing import run_packed
from subquad.ops.window import (
    Extra,
    Window,
    attend_masked,
    attend_quadratic,
    attend_window,
    compaction,
)
from subquad.ops.window_state import check_table, fill, put, ring_past, ring_positions


class StridedState(NamedTuple):
    """The past of causal strided attention: a ring of the last W tokens, and all columns so far.

    It grows: after T tokens it holds W + floor(T / stride) keys and values, and room for more where
    steps in place have made it. Position p stands in slot p mod W of the ring; column c is position
    (c + 1) stride - 1.
    """

    k: Float[Tensor, "B H W K"]
    v: Float[Tensor, "B H W V"]
    column_k: Float[Tensor, "B H C K"]
    column_v: Float[Tensor, "B H C V"]
    position: Int[Tensor, " B"]  # of the next token: how many valid ones were read
    length: int  # tokens read, hidden ones included: room is made for the columns of so many


def strided_state(
    batch_size: int, num_heads: int, key_dim: int, value_dim: int, like: Tensor, *, window: int
) -> StridedState:
    """Return the empty past, on the device and in the dtype of ``like``."""
    check_positive("window", window)
    slots = (window, key_dim), (window, value_dim), (0, key_dim), (0, value_dim)
    tables = [like.new_zeros(batch_size, num_heads, *shape).detach() for shape in slots]
    count = torch.zeros(batch_size, dtype=torch.long, device=like.device)
    return StridedState(tables[0], tables[1], tables[2], tables[3], count, 0)


def strided_visible(
    queries: Int[Tensor, "*rows Tq"],
    keys: Int[Tensor, "*rows Tk"],
    *,
    window: int,
    stride: int,
    is_causal: bool = False,
) -> Bool[Tensor, "*rows Tq Tk"]:
    """Tell which positions see which: the pattern itself, True where a query sees a key."""
    i, j = queries.unsqueeze(-1), keys.unsqueeze(-2)
    visible = ((i - j).abs() < window) | (j % stride == stride - 1)
    return visible & (j <= i) if is_causal else visible


def strided_attention_quadratic(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    *,
    window: int,
    stride: int,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute the definition in O(T^2); the blocks and the state are tested against it."""
    if key_mask is None:
        key_mask = torch.ones(len(q), q.shape[2], dtype=torch.bool, device=q.device)
    at = key_mask.long().cumsum(1) - 1
    visible = strided_visible(at, at, window=window, stride=stride, is_causal=is_causal)
    visible = visible & key_mask[:, None, :] & key_mask[:, :, None]
    q, k, v = (x.masked_fill(~key_mask[:, None, :, None], 0) for x in (q, k, v))
    return attend_quadratic(q, k, v, visible, scale)


def strided_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    *,
    window: int,
    stride: int,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    scale: float | None = None,
    block_size: int | None = None,
) -> Float[Tensor, "B H T V"]:
    """Attend to a window and to every stride-th token.

    Args:
        q: queries (B, H, T, K).
        k: keys (B, H, T, K).
        v: values (B, H, T, V).
        window: tokens seen on one side, the token itself included.
        stride: every so many-th token is seen by all (causal: by all later ones).
        is_causal: token i sees tokens j <= i only.
        key_mask: (B, T) bool, True = keep. Hidden tokens are as if taken out; what stands there,
            NaN included, changes no output and no gradient, and the output there is 0.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        scale: factor on the scores, by default 1 / sqrt(K).
        block_size: queries worked on at once; changes speed only.

    Returns:
        (B, H, T, V).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device, number or mask does not fit.
    """
    check_qkv(q, k, v, is_causal=True)
    check_positive("window", window)
    check_positive("stride", stride)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    if block_size is not None:
        check_positive("block_size", block_size)
    ahead = 0 if is_causal else window - 1

    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        columns = slice(stride - 1, None, stride)
        at = torch.arange(k.shape[2], device=k.device)[columns].unsqueeze(0)
        extra = Extra(k[:, :, columns], v[:, :, columns], at, None) if at.numel() else None
        end = None if is_causal else lengths
        reach = Window(window - 1, ahead, is_causal, end=end, extra=extra)
        return attend_window(q, k, v, reach, scale=scale, block_size=block_size)

    if cu_seqlens is not None:
        return run_packed(lambda q, k, v, mask: attend(q, k, v, mask.sum(1)), cu_seqlens, q, k, v)
    if key_mask is None:
        return attend(q, k, v, None)
    rows = compaction(key_mask)
    return rows.restore(attend(rows.front(q), rows.front(k), rows.front(v), rows.lengths))


def strided_attention_cached(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    state: StridedState,
    *,
    stride: int,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
    block_size: int | None = None,
) -> tuple[Float[Tensor, "B H T V"], StridedState]:
    """Go on from ``state`` over T more tokens, causally; the window is its own.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device, number or mask does not fit.
    """
    check_qkv(q, k, v, is_causal=True)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    _check_state(state, k, v, stride)
    rows = None if key_mask is None else compaction(key_mask)
    if rows is not None:
        q, k, v = rows.front(q), rows.front(k), rows.front(v)
    lengths = torch.full_like(state.position, k.shape[2]) if rows is None else rows.lengths
    count, past = state.position, state.k.shape[2] - 1
    new = _advance(state, k, v, lengths, stride)
    extra = None
    if new.column_k.shape[2]:
        # Those not read yet lie behind every valid query, which does not see them.
        at = _columns(new, stride) - count[:, None] + past
        extra = Extra(new.column_k, new.column_v, at, None)
    k, v = (torch.cat([ring_past(ring, count), x], 2) for ring, x in ((state.k, k), (state.v, v)))
    reach = Window(past, 0, True, first=(past - count).clamp(min=0), extra=extra)
    y = attend_window(q, k, v, reach, scale=scale, block_size=block_size)
    return y if rows is None else rows.restore(y), new


def strided_attention_step(
    q: Float[Tensor, "B H K"],
    k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: StridedState,
    *,
    stride: int,
    scale: float | None = None,
    in_place: bool = False,
) -> tuple[Float[Tensor, "B H V"], StridedState]:
    """Go on from ``state`` over one more token; with ``in_place`` its own tables are overwritten.

    Then the room for columns grows by doubling.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or number does not fit.
    """
    q, k, v = q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2)
    check_qkv(q, k, v, is_causal=True)
    _check_state(state, k, v, stride)
    state, count, window = _with_room(state, 1, stride, in_place), state.position, state.k.shape[2]
    ring_k, ring_v = (
        put(ring, x, count % window, in_place=in_place) for ring, x in ((state.k, k), (state.v, v))
    )
    is_column = count % stride == stride - 1
    column_k, column_v = (
        put(table, x, count // stride, where=is_column, in_place=in_place)
        for table, x in ((state.column_k, k), (state.column_v, v))
    )
    new = StridedState(ring_k, ring_v, column_k, column_v, count + 1, state.length)
    outside = _columns(new, stride) <= count[:, None] - window  # inside it the ring has them
    visible = torch.cat([outside, ring_positions(new.position, window) >= 0], 1)
    keys, values = torch.cat([column_k, ring_k], 2), torch.cat([column_v, ring_v], 2)
    y = attend_masked(q, keys, values, visible[:, None, None], scale)
    return y.squeeze(2), new


def _columns(state: StridedState, stride: int) -> Int[Tensor, "1 C"]:
    """Return the position of each column that there is room for."""
    columns = torch.arange(1, state.column_k.shape[2] + 1, device=state.k.device)
    return (columns * stride - 1).unsqueeze(0)


def _with_room(state: StridedState, more: int, stride: int, in_place: bool) -> StridedState:
    """Return ``state`` after ``more`` tokens with room for their columns, which are not in yet."""
    room, length = state.column_k.shape[2], state.length + more
    needed = length // stride
    if needed > room:
        room = max(needed, 2 * room) if in_place else needed
    grown = []
    for table in (state.column_k, state.column_v):
        added = table.new_zeros(*table.shape[:2], room - table.shape[2], table.shape[3])
        grown.append(torch.cat([table, added], 2) if added.shape[2] else table)
    return state._replace(column_k=grown[0], column_v=grown[1], length=length)


def _advance(
    state: StridedState, k: Tensor, v: Tensor, lengths: Tensor, stride: int
) -> StridedState:
    """Return ``state`` after the first ``lengths`` tokens of k and v."""
    state, count = _with_room(state, k.shape[2], stride, in_place=False), state.position
    total = count + lengths
    ring, columns = ring_positions(total, state.k.shape[2]), _columns(state, stride)
    return StridedState(
        fill(state.k, k, ring, count, lengths),
        fill(state.v, v, ring, count, lengths),
        fill(state.column_k, k, columns, count, lengths),
        fill(state.column_v, v, columns, count, lengths),
        total,
        state.length,
    )


def _check_state(state: StridedState, k: Tensor, v: Tensor, stride: int) -> None:
    check_positive("stride", stride)
    window, columns = state.k.shape[2], state.column_k.shape[2]
    check_table("state.k", state.k, window, "k", k)
    check_table("state.v", state.v, window, "v", v)
    check_table("state.column_k", state.column_k, columns, "k", k)
    check_table("state.column_v", state.column_v, columns, "v", v)
    check_shape("state.position", state.position, (len(k),))
