"""Lambdas of a masked context, the causal one: each token's map of the tokens up to itself.

    content    lambda_t = sum_{j <= t} exp(k_j - L_t) v_j^T,   L_t = log sum_{j <= t} exp(k_j)
    position   lambda_t += sum_{0 <= d < W} E_d v_{t-d}^T
    y_t^h      = lambda_t^T q_t^h

Keys are normalised over what a token sees, each of their K channels by itself, so the content is a
running mean of values for each channel: the recurrence of linear attention with a decay
exp(L_{t-1} - L_t) a channel, whose keys are exp(k_t - L_t). Neither is ever above 1, at any
magnitude. L is kept in float64: beside a large L its own growth, by 1 / t a token where keys are
alike, would be rounded away in float32 and the mean become a sum. Position sees the last W tokens.
So the state is of constant size.

Axes: B batch, H queries of a token, G heads of the values (1, or H), T time, K rows of a lambda, V
its columns, W window. Source: Bello 2021, "LambdaNetworks", appendix on masked contexts; the
recurrence is ours.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import check_key_mask, check_positive, check_shape
from subquad.ops.feature_maps import no_autocast
from subquad.ops.linear_attention import linear_attention_chunked
from subquad.ops.linear_state import LinearState
from subquad.ops.window import compaction
from subquad.ops.window_state import check_table, fill, put, ring_past, ring_positions

LOWEST = -1e300  # the logarithm of no weight at all, with room for a difference


class LambdaState(NamedTuple):
    """The past of a causal lambda layer; its size does not depend on how many tokens were read.

    Position p of the values stands in slot p mod W.
    """

    content: Float[Tensor, "B 1 K V"]
    log_sum: Float[Tensor, "B 1 K"]  # L, float64
    values: Float[Tensor, "B 1 W V"]
    position: Int[Tensor, " B"]  # of the next token: how many valid ones were read


def lambda_state(
    batch_size: int, head_dim: int, value_dim: int, like: Tensor, *, window: int
) -> LambdaState:
    """Return the empty past, on the device and in the dtype of ``like``; sums in float32 or wider.

    Raises:
        TypeError: if ``window`` is not an int.
        ValueError: if it is below 1.
    """
    check_positive("window", window)
    wide = torch.promote_types(like.dtype, torch.float32)
    content = like.new_zeros(batch_size, 1, head_dim, value_dim, dtype=wide)
    return LambdaState(
        content,
        torch.full_like(content[..., 0], LOWEST, dtype=torch.float64),
        like.new_zeros(batch_size, 1, window, value_dim),
        torch.zeros(batch_size, dtype=torch.long, device=like.device),
    )


def causal_lambda_quadratic(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B 1 T K"],
    v: Float[Tensor, "B 1 T V"],
    table: Float[Tensor, "K W"],
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute the definition, a softmax of keys for each token; the fast form is tested against it.

    Offsets count valid tokens only.
    """
    if key_mask is None:
        key_mask = torch.ones(len(q), q.shape[2], dtype=torch.bool, device=q.device)
    q, k, v = (x.masked_fill(~key_mask[:, None, :, None], 0) for x in (q, k, v))
    at = key_mask.cumsum(1) - 1
    offset = at[:, :, None] - at[:, None, :]
    visible = torch.ones_like(offset, dtype=torch.bool).tril() & key_mask[:, None, :]
    scores = k.masked_fill(~visible.unsqueeze(-1), -torch.inf)  # (B, T, T, K)
    weights = scores.softmax(2).masked_fill(~visible.unsqueeze(-1), 0)
    near = visible & (offset < table.shape[1])
    embeddings = table.T[offset.clamp(0, table.shape[1] - 1)]
    weights = weights + embeddings.masked_fill(~near.unsqueeze(-1), 0)
    y = torch.einsum("bhtk,btjk,bjv->bhtv", q, weights, v[:, 0])
    return y.masked_fill(~key_mask[:, None, :, None], 0)


def causal_lambda(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B 1 T K"],
    v: Float[Tensor, "B G T V"],
    table: Float[Tensor, "K W"],
    state: LambdaState,
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B H T V"], LambdaState]:
    """Go on from ``state`` over T more tokens, in O(T K (C + V) H) for chunks of C = 16.

    Args:
        q: queries (B, H, T, K).
        k: keys (B, 1, T, K), one for all queries.
        v: values (B, 1, T, V), or (B, H, T, V): one a query, for looking at the weights.
        table: embeddings of the offsets 0, 1, ..., W - 1 into the past (K, W).
        state: the past; ``lambda_state`` makes the empty one.
        key_mask: (B, T) bool, True = keep. Hidden tokens are as if taken out, and the output there
            is 0.

    Returns:
        (B, H, T, V) in the dtype of v, and the state after the last token.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit.
    """
    check_key_mask(key_mask, k, len(k), k.shape[2])
    _check(q, k, v, table, state)
    rows = None if key_mask is None else compaction(key_mask)
    if rows is not None:
        q, k, v = rows.front(q), rows.front(k), rows.front(v)
    lengths = torch.full_like(state.position, k.shape[2]) if rows is None else rows.lengths
    dtype = state.content.dtype
    with no_autocast(q):
        wide_q, wide_k, wide_v, wide_table = (x.to(dtype) for x in (q, k, v, table))
        if rows is not None:
            behind = torch.arange(k.shape[2], device=k.device) >= lengths[:, None]
            wide_k = wide_k.double().masked_fill(behind[:, None, :, None], LOWEST)
        y, content, log_sum = _content(wide_q, wide_k.double(), wide_v, state)
        past = ring_past(state.values, state.position).to(dtype)
        y = y + _position(wide_q, wide_v, wide_table, past)
    total = state.position + lengths
    ring = ring_positions(total, state.values.shape[2])
    values = fill(state.values, v[:, :1].to(state.values.dtype), ring, state.position, lengths)
    new = LambdaState(content, log_sum, values, total)
    y = y.to(v.dtype)
    return y if rows is None else rows.restore(y), new


def causal_lambda_step(
    q: Float[Tensor, "B H K"],
    k: Float[Tensor, "B 1 K"],
    v: Float[Tensor, "B 1 V"],
    table: Float[Tensor, "K W"],
    state: LambdaState,
    *,
    in_place: bool = False,
) -> tuple[Float[Tensor, "B H V"], LambdaState]:
    """Go on from ``state`` over one more token; with ``in_place`` its own tables are overwritten.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or device does not fit.
    """
    _check(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), table, state)
    dtype, window, count = state.content.dtype, state.values.shape[2], state.position
    new_values = v.unsqueeze(2).to(state.values.dtype)
    values = put(state.values, new_values, count % window, in_place=in_place)
    with no_autocast(q):
        wide_q, wide_k, wide_v, wide_table = (x.to(dtype) for x in (q, k, v, table))
        log_sum = torch.logaddexp(state.log_sum, wide_k.double())
        logs = (state.log_sum - log_sum, wide_k.double() - log_sum)
        decay, weight = (x.to(dtype).exp() for x in logs)
        added = weight.unsqueeze(-1) * wide_v.unsqueeze(-2)
        content = torch.addcmul(added, decay.unsqueeze(-1), state.content)
        at = ring_positions(count + 1, window)
        offsets = (count[:, None] - at).clamp(max=window - 1)
        weights = torch.einsum("bhk,kbw->bhw", wide_q, wide_table[:, offsets])
        weights = weights.masked_fill((at < 0).unsqueeze(1), 0)
        y = (wide_q.unsqueeze(2) @ content).squeeze(2) + weights @ values[:, 0].to(dtype)
    if in_place:
        state.content.copy_(content)
        state.log_sum.copy_(log_sum)
        content, log_sum = state.content, state.log_sum
    return y.to(v.dtype), LambdaState(content, log_sum, values, count + 1)


def _content(q: Tensor, k: Tensor, v: Tensor, state: LambdaState) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[1]
    sums = torch.cat([state.log_sum.unsqueeze(2), k], 2).logcumsumexp(2)
    now, before = sums[:, :, 1:], sums[:, :, :-1]
    logs = ((x - now).to(q.dtype) for x in (k, before))
    weight, decay = (x.clamp(max=0).expand(-1, heads, -1, -1) for x in logs)
    content = state.content.expand(-1, heads, -1, -1)
    past = LinearState(content, torch.zeros_like(content[..., 0]))
    y, last = linear_attention_chunked(
        q, weight.exp(), v.expand(-1, heads, -1, -1), past, log_decay=decay, normalize=False
    )
    # Copies: a view would keep the sums of all tokens, and the states of all heads, in memory.
    return y, last.kv[:, :1].clone(), now[:, :, -1].clone()


def _position(
    q: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B G T V"],
    table: Float[Tensor, "K W"],
    past: Float[Tensor, "B 1 P V"],
) -> Float[Tensor, "B H T V"]:
    """Weigh the last W values of each token, block by block: what a block does not see weighs 0."""
    window, count = table.shape[1], q.shape[2]
    size = min(max(window, 16), count)
    short = -count % size
    weights = F.pad(q @ table.flip(1), (0, size, 0, short))  # (B, H, T, W + size)
    number = weights.shape[2] // size
    blocks = weights.reshape(*weights.shape[:2], number, size * (window + size))
    # Row i of a block moves i places to the right: its own value is the last that it sees.
    reach = window + size - 1
    moved = blocks[..., : size * reach].reshape(*blocks.shape[:3], size, reach)
    values = torch.cat([past.expand(-1, v.shape[1], -1, -1), v], 2)
    values = F.pad(values, (0, 0, 0, short)).unfold(2, reach, size)
    y: Tensor = moved @ values.transpose(3, 4)
    return y.flatten(2, 3)[:, :, :count]


def _check(q: Tensor, k: Tensor, v: Tensor, table: Tensor, state: LambdaState) -> None:
    """Check new tokens (B, ., T, .) against each other and the past."""
    for name, x in (("q", q), ("k", k), ("v", v), ("table", table)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of floating point, got {x.dtype}")
    check_shape("k", k, (len(q), 1, *q.shape[2:]))
    check_shape("v", v, (len(q), q.shape[1] if v.shape[1] > 1 else 1, q.shape[2], v.shape[3]))
    window = state.values.shape[2]
    check_shape("table", table, (q.shape[3], window))
    check_table("state.values", state.values, window, "v", v[:, :1])
    check_shape("state.content", state.content, (len(q), 1, q.shape[3], v.shape[3]))
    check_shape("state.log_sum", state.log_sum, (len(q), 1, q.shape[3]))
    check_shape("state.position", state.position, (len(q),))
