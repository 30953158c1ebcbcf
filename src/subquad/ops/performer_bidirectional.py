"""Bidirectional FAVOR+ with positive features, stable at any magnitude, in two softmaxes.

With l_jm = log phi_m(k_j) and u_im = w_m . q_i the definition

    y_i = sum_m phi_m(q_i) sum_j phi_m(k_j) v_j / sum_m phi_m(q_i) sum_j phi_m(k_j)

is, each sum over keys divided by itself,

    b_m = log sum_j exp(l_jm)      s_m = sum_j exp(l_jm - b_m) v_j        (softmax over keys)
    y_i = sum_m p_im s_m           p_im = softmax_m(u_im + b_m)           (softmax over features)

|q_i|^2 / 2 cancels. b_m is summed above c_m = max_j l_jm, over valid keys, and p_i above
max_m(u_im + b_m), so both sums that divide are at least 1. Where there is no valid key y_i = 0.

The features never reach memory: they are made tile by tile, keys with a running maximum, and made
again in the backward, which keeps only b and s. ``csrc/favor.h`` and ``csrc/favor_backward.h`` do
the same in C++.

Axes: B batch, H heads, T time (Tq queries, Tk keys), K head width, M features, V value width,
N heads of a tile, t tokens of a tile.
Source: Choromanski et al. 2021, equations 4 and 7; the rearrangement is ours.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.kernels.dispatch import Impl
from subquad.ops.feature_maps import no_autocast
from subquad.ops.native_favor import native_attention
from subquad.ops.once_differentiable import once_differentiable
from subquad.ops.tiles import Group, groups, merge_batch, rows, stretches


def positive_attention(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    directions: Float[Tensor, "M K"],
    half_scale: float,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend to all keys in O((Tq + Tk) M (K + V)) and O((Tq + Tk) (K + V)) memory.

    Args:
        q: queries.
        k: keys.
        v: values; the output has their dtype.
        directions: w_m, times the square root of the scale, in the dtype to compute in. They get
            no gradient.
        half_scale: half the scale: l_jm = w_m . k_j - half_scale |k_j|^2.
        key_mask: True = keep.
        impl: where it is computed; see ``Impl``.

    Raises:
        TypeError: if ``impl`` is no ``Impl``.
        ValueError: if ``impl`` names a form that cannot take the call.
    """
    operators = native_attention(q, k, v, directions.dtype, impl) or (_attend, _differentiate)
    hidden = None if key_mask is None else ~key_mask[:, None].expand(-1, k.shape[1], -1)
    shape = (*q.shape[:3], v.shape[3])
    with no_autocast(q):
        if hidden is None:
            q, k, wide_v = merge_batch(len(directions), q, k, v)
        else:
            q, k, wide_v, hidden = merge_batch(len(directions), q, k, v, hidden)
        y: Tensor = _PositiveAttention.apply(  # type: ignore[no-untyped-call]
            q, k, wide_v, directions, half_scale, hidden, operators
        )
    return y.reshape(shape).to(v.dtype)


def log_features(
    k: Float[Tensor, "N t K"],
    directions: Float[Tensor, "M K"],
    half_scale: float,
    hidden: Bool[Tensor, "N t"] | None,
) -> Float[Tensor, "N t M"]:
    """Return l, -inf where hidden."""
    size = k.square().sum(-1, keepdim=True).mul_(-half_scale)
    if hidden is not None:
        size = size.masked_fill(hidden.unsqueeze(-1), -torch.inf)
    return torch.baddbmm(size, k, _columns(directions, len(k)))


def lowest(dtype: torch.dtype) -> float:
    """Return where a maximum over logarithms starts: finite, with room for a difference."""
    return torch.finfo(dtype).min / 4


def _columns(directions: Tensor, count: int) -> Tensor:
    return directions.T.expand(count, -1, -1)


def _keys(
    k: Tensor, hidden: Tensor | None, group: Group, tokens: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return keys (N, t, K) with 0 where hidden, since NaN would pass through a product with 0."""
    x = rows(k, group, tokens, dtype)
    if hidden is None:
        return x, None
    part = hidden[group[0], group[1], tokens]
    return x.masked_fill(part.unsqueeze(-1), 0), part


def _query_weights(
    q: Float[Tensor, "N t K"], directions: Tensor, log_sums: Float[Tensor, "N M"]
) -> Float[Tensor, "N t M"]:
    """Return p. The sums are taken relative to the largest: small numbers keep more digits."""
    level = (log_sums - log_sums.amax(-1, keepdim=True)).unsqueeze(1)
    return torch.baddbmm(level, q, _columns(directions, len(q))).softmax(-1)


class _PositiveAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        directions: Tensor,
        half_scale: float,
        hidden: Tensor | None,
        operators: tuple[Any, Any],
    ) -> Tensor:
        attend, ctx.differentiate = operators
        out: Tensor
        out, means, log_sums = attend(q, k, v, directions, half_scale, hidden)
        ctx.save_for_backward(q, k, v, directions, hidden, out, means, log_sums)
        ctx.half_scale = half_scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, directions, hidden, *rest = ctx.saved_tensors
        # A backward called under autocast would narrow these products.
        with no_autocast(q):
            grads = ctx.differentiate(grad, q, k, v, directions, ctx.half_scale, hidden, *rest)
        return *grads, None, None, None, None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, s and b of every head."""
    dtype, width = directions.dtype, len(directions)
    batch, heads, time = q.shape[:3]
    # Laid out by token, ready to be merged.
    out = directions.new_empty(batch, time, heads, v.shape[3]).transpose(1, 2)
    means = directions.new_empty(batch, heads, width, v.shape[3])
    log_sums = directions.new_empty(batch, heads, width)
    for group in groups(k, width):
        summed = _sum_keys(k, v, directions, half_scale, hidden, group)
        log_sums[group], means[group] = summed
    for group in groups(q, width):
        for tokens in stretches(q, group, width):
            p = _query_weights(rows(q, group, tokens, dtype), directions, log_sums[group])
            out[group[0], group[1], tokens] = torch.bmm(p, means[group])
    return out, means, log_sums


def _differentiate(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
    out: Tensor,
    means: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    width = len(directions)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_means, grad_sums = torch.zeros_like(means), torch.zeros_like(log_sums)
    for group in groups(q, width):
        _query_gradients(
            q, out, grad, directions, means[group], log_sums[group], group,
            grad_q, grad_means[group], grad_sums[group],
        )  # fmt: skip
    # Of l_jm: weight * (dv . grad s + grad b - s . grad s), the softmax's own backward.
    level = (grad_sums - (grad_means * means).sum(-1)).unsqueeze(2)
    for group in groups(k, width):
        _key_gradients(
            k, v, hidden, directions, half_scale, log_sums[group], level[group],
            grad_means[group], group, grad_k, grad_v,
        )  # fmt: skip
    return grad_q, grad_k, grad_v


def _sum_keys(
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
    group: Group,
) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N M V"]]:
    """Return b and s of some heads, with a running maximum over stretches of keys."""
    dtype = directions.dtype
    count, width = group[1].stop - group[1].start, len(directions)
    top = directions.new_full((count, width), lowest(dtype))
    total = torch.zeros_like(top)
    sums = directions.new_zeros(count, width, v.shape[3])
    for tokens in stretches(k, group, width):
        keys, part = _keys(k, hidden, group, tokens, dtype)
        values, _ = _keys(v, hidden, group, tokens, dtype)
        logs = log_features(keys, directions, half_scale, part)
        higher = torch.maximum(top, logs.amax(1))
        weights = logs.sub_(higher.unsqueeze(1)).exp_()
        fade = (top - higher).exp_()
        total = total * fade + weights.sum(1)
        sums = torch.baddbmm(sums * fade.unsqueeze(-1), weights.mT, values)
        top = higher
    total = total.masked_fill(total == 0, 1)  # no valid key: s is 0 already
    return top + total.log(), sums / total.unsqueeze(-1)


def _query_gradients(
    q: Tensor,
    out: Tensor,
    grad: Tensor,
    directions: Tensor,
    means: Float[Tensor, "N M V"],
    log_sums: Float[Tensor, "N M"],
    group: Group,
    grad_q: Tensor,
    grad_means: Float[Tensor, "N M V"],
    grad_sums: Float[Tensor, "N M"],
) -> None:
    """Write the gradient of q; add those of s and b."""
    dtype = directions.dtype
    for tokens in stretches(q, group, len(directions)):
        p = _query_weights(rows(q, group, tokens, dtype), directions, log_sums)
        g, y = rows(grad, group, tokens, dtype), rows(out, group, tokens, dtype)
        grad_means.baddbmm_(p.mT, g)
        mean = (g * y).sum(-1, keepdim=True).neg_()  # of the gradients of p, weighed by p
        grad_logs = torch.baddbmm(mean, g, means.mT).mul_(p)
        grad_sums += grad_logs.sum(1)
        grad_q[group[0], group[1], tokens] = grad_logs @ directions


def _key_gradients(
    k: Tensor,
    v: Tensor,
    hidden: Tensor | None,
    directions: Tensor,
    half_scale: float,
    log_sums: Float[Tensor, "N M"],
    level: Float[Tensor, "N 1 M"],
    grad_means: Float[Tensor, "N M V"],
    group: Group,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Write the gradients of k and v."""
    dtype = directions.dtype
    for tokens in stretches(k, group, len(directions)):
        keys, part = _keys(k, hidden, group, tokens, dtype)
        values, _ = _keys(v, hidden, group, tokens, dtype)
        weights = log_features(keys, directions, half_scale, part)
        weights = weights.sub_(log_sums.unsqueeze(1)).exp_()
        grad_v[group[0], group[1], tokens] = torch.bmm(weights, grad_means)
        grad_logs = torch.baddbmm(level, values, grad_means.mT).mul_(weights)
        size = grad_logs.sum(-1, keepdim=True).mul_(-2 * half_scale)
        grad_k[group[0], group[1], tokens] = torch.addcmul(grad_logs @ directions, size, keys)
