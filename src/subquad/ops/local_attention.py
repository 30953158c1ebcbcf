"""Local softmax attention: a token sees those near it, and a few global tokens if asked.

    y_i = sum_j softmax_j(q_i . k_j * scale) v_j   over the j that i sees:
    bidirectional  |i - j| < window,      or i or j is global
    causal         0 <= i - j < window,   or j is global and j <= i

Global are the first ``num_global`` tokens. Positions i, j count valid tokens only: what a mask
hides is as if it had been taken out. Cost O(T window); to decode takes the last ``window`` keys and
values.

Axes: B batch, H heads, T time, W window, G global tokens, K query and key size, V value size.
Source: Beltagy et al. 2020, "Longformer", section 3.1 (here the window counts one side and the
token itself, and global tokens have no projections of their own); Child et al. 2019, section 4.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.checks import check_cu_seqlens, check_key_mask, check_positive, check_qkv
from subquad.ops.local_state import LocalState as LocalState
from subquad.ops.local_state import advance, check_local_state
from subquad.ops.local_state import check_reach as check_reach
from subquad.ops.local_state import local_state as local_state
from subquad.ops.packing import run_packed
from subquad.ops.window import (
    Extra,
    Window,
    attend_masked,
    attend_quadratic,
    attend_window,
    compaction,
)
from subquad.ops.window_state import put, ring_past, ring_positions


def local_visible(
    queries: Int[Tensor, "*rows Tq"],
    keys: Int[Tensor, "*rows Tk"],
    *,
    window: int,
    is_causal: bool = False,
    num_global: int = 0,
) -> Bool[Tensor, "*rows Tq Tk"]:
    """Tell which positions see which: the pattern itself, True where a query sees a key."""
    i, j = queries.unsqueeze(-1), keys.unsqueeze(-2)
    if is_causal:
        return (j <= i) & ((i - j < window) | (j < num_global))
    return ((i - j).abs() < window) | (i < num_global) | (j < num_global)


def local_attention_quadratic(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    *,
    window: int,
    is_causal: bool = False,
    num_global: int = 0,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute the definition in O(T^2); the blocks and the state are tested against it."""
    if key_mask is None:
        key_mask = torch.ones(len(q), q.shape[2], dtype=torch.bool, device=q.device)
    at = key_mask.long().cumsum(1) - 1
    visible = local_visible(at, at, window=window, is_causal=is_causal, num_global=num_global)
    visible = visible & key_mask[:, None, :] & key_mask[:, :, None]
    q, k, v = (x.masked_fill(~key_mask[:, None, :, None], 0) for x in (q, k, v))
    return attend_quadratic(q, k, v, visible, scale)


def local_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    *,
    window: int,
    is_causal: bool = False,
    num_global: int = 0,
    key_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    scale: float | None = None,
    block_size: int | None = None,
) -> Float[Tensor, "B H T V"]:
    """Attend to a window, in O(T window) time and memory.

    Args:
        q: queries (B, H, T, K).
        k: keys (B, H, T, K).
        v: values (B, H, T, V).
        window: tokens seen on one side, the token itself included.
        is_causal: token i sees tokens j <= i only.
        num_global: so many first tokens see all and are seen by all (causal: by all later ones).
        key_mask: (B, T) bool, True = keep. Hidden tokens are as if taken out, so that the window
            counts valid ones; what stands there, NaN included, changes no output and no gradient,
            and the output there is 0. Without ``is_causal`` it costs (B, T, 2 window) of bool.
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
    check_reach(window, num_global)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    if block_size is not None:
        check_positive("block_size", block_size)

    def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        return _attend(
            q, k, v, lengths, window, is_causal, min(num_global, q.shape[2]), scale, block_size
        )

    if cu_seqlens is not None:
        return run_packed(lambda q, k, v, mask: attend(q, k, v, mask.sum(1)), cu_seqlens, q, k, v)
    if key_mask is None:
        return attend(q, k, v, None)
    rows = compaction(key_mask)
    return rows.restore(attend(rows.front(q), rows.front(k), rows.front(v), rows.lengths))


def local_attention_cached(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    state: LocalState,
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
    block_size: int | None = None,
) -> tuple[Float[Tensor, "B H T V"], LocalState]:
    """Go on from ``state`` over T more tokens, causally; window and global tokens are its own.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit.
    """
    check_qkv(q, k, v, is_causal=True)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_local_state(state, k, v)
    rows = None if key_mask is None else compaction(key_mask)
    if rows is not None:
        q, k, v = rows.front(q), rows.front(k), rows.front(v)
    lengths = torch.full_like(state.position, k.shape[2]) if rows is None else rows.lengths
    window, count = state.k.shape[2], state.position
    new = advance(state, k, v, lengths)
    past, extra = window - 1, None
    if state.global_k.shape[2]:
        # Those not read yet lie behind every valid query, which does not see them.
        at = torch.arange(state.global_k.shape[2], device=k.device) - count[:, None] + past
        extra = Extra(new.global_k, new.global_v, at, past + at.shape[1])
    k, v = (torch.cat([ring_past(ring, count), x], 2) for ring, x in ((state.k, k), (state.v, v)))
    reach = Window(past, 0, True, first=(past - count).clamp(min=0), extra=extra)
    y = attend_window(q, k, v, reach, scale=scale, block_size=block_size)
    return y if rows is None else rows.restore(y), new


def local_attention_step(
    q: Float[Tensor, "B H K"],
    k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: LocalState,
    *,
    scale: float | None = None,
    in_place: bool = False,
) -> tuple[Float[Tensor, "B H V"], LocalState]:
    """Go on from ``state`` over one more token; with ``in_place`` its own tables are overwritten.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or device does not fit.
    """
    q, k, v = q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2)
    check_qkv(q, k, v, is_causal=True)
    check_local_state(state, k, v)
    count, window, num_global = state.position, state.k.shape[2], state.global_k.shape[2]
    ring_k, ring_v = (
        put(ring, x, count % window, in_place=in_place) for ring, x in ((state.k, k), (state.v, v))
    )
    global_k, global_v = (
        put(table, x, count, where=count < num_global, in_place=in_place)
        for table, x in ((state.global_k, k), (state.global_v, v))
    )
    new = LocalState(ring_k, ring_v, global_k, global_v, count + 1)
    keys, values, visible = ring_k, ring_v, ring_positions(new.position, window) >= 0
    if num_global:  # from outside the window; inside it the ring has them
        outside = torch.arange(num_global, device=k.device) <= count[:, None] - window
        visible = torch.cat([outside, visible], 1)
        keys, values = torch.cat([global_k, ring_k], 2), torch.cat([global_v, ring_v], 2)
    y = attend_masked(q, keys, values, visible[:, None, None], scale)
    return y.squeeze(2), new


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    window: int,
    is_causal: bool,
    num_global: int,
    scale: float | None,
    block_size: int | None,
) -> Tensor:
    """Attend in rows whose first ``lengths`` tokens are valid, all if None."""
    extra = None
    if num_global:
        at = torch.arange(num_global, device=q.device).unsqueeze(0)
        extra = Extra(k[:, :, :num_global], v[:, :, :num_global], at, num_global)
    end = None if is_causal else lengths
    reach = Window(window - 1, 0 if is_causal else window - 1, is_causal, end=end, extra=extra)
    y = attend_window(q, k, v, reach, scale=scale, block_size=block_size)
    if is_causal or not num_global:
        return y
    visible = torch.ones(1, k.shape[2], dtype=torch.bool, device=k.device)
    if lengths is not None:
        visible = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
    top = attend_masked(q[:, :, :num_global], k, v, visible[:, None, None], scale)
    return torch.cat([top, y[:, :, num_global:]], 2)
