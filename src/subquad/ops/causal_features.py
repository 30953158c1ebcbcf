"""Features for causal FAVOR+, below a running maximum: what the one recurrence takes.

With log phi_m(k_t) = l_tm the maximum so far is c_t = max over valid j <= t and all m of l_jm. Keys
become exp(l_tm - c_t), and the state decays by exp(c_{t-1} - c_t): ``ops/causal_sums.py``. Queries
become softmax_m(u_tm): their own factor cancels. Every feature is at most 1 and no token's depend
on a later one. c is a stabiliser and has no gradient; the outputs do not depend on it.

Where no gradient is wanted one C++ call does all of this and the sums (``csrc/favor_reader.h``);
else ``csrc/favor_map.h`` makes the features of float32 and bfloat16.

Trigonometric features have signs, so of them the size alone, exp(|k|^2 / 2), is held below c.

Axes: B batch, H heads, T time, K head width, M features, N heads of a tile, t tokens of a tile.
Source: Choromanski et al. 2021, equation 7; the running maximum is ours.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.kernels import favor_operators as native
from subquad.kernels.dispatch import Impl
from subquad.ops.feature_maps import no_autocast
from subquad.ops.native_favor import maps_natively
from subquad.ops.once_differentiable import once_differentiable
from subquad.ops.random_features import RandomFeatures
from subquad.ops.tiles import groups, merge_batch, rows, stretches


class Directions(NamedTuple):
    """What the maps need of random features, at one scale and in the dtype to compute in."""

    rows: Float[Tensor, "rows K"]  # w_m times the square root of the scale
    half_scale: float
    positive: bool


def directions_of(features: RandomFeatures, scale: float, dtype: torch.dtype) -> Directions:
    """Return w_m sqrt(scale) and scale / 2, so that neither q nor k is ever scaled."""
    return Directions(features.directions(dtype) * scale**0.5, scale / 2, features.nonnegative)


class KeyFeatures(NamedTuple):
    """Keys mapped below a running maximum, which goes along."""

    phi: Float[Tensor, "B H T M"]
    log_max: Float[Tensor, "B H T"] | Float[Tensor, "B H T M"]  # c


def query_features(
    q: Float[Tensor, "B H T K"], w: Directions, impl: Impl = Impl.AUTO
) -> Float[Tensor, "B H T M"]:
    """Map queries; of positive features each row sums to 1. ``impl`` is that of the sums."""
    if not w.positive:
        u = q.to(w.rows.dtype) @ w.rows.T
        return torch.cat([u.sin(), u.cos()], dim=-1)
    (merged,) = merge_batch(len(w.rows), q)
    natively = maps_natively(merged, w.rows.dtype, impl)
    phi: Tensor = _QueryFeatures.apply(merged, w.rows, natively)  # type: ignore[no-untyped-call]
    return phi.view(*q.shape[:3], -1)


def key_features(
    k: Float[Tensor, "B H T K"],
    w: Directions,
    start: Float[Tensor, "B H"],
    key_mask: Bool[Tensor, "B T"] | None,
    impl: Impl = Impl.AUTO,
) -> KeyFeatures:
    """Map keys, the maximum going on from ``start``; hidden keys are 0 and do not raise it."""
    hidden = None if key_mask is None else ~key_mask[:, None].expand(-1, k.shape[1], -1)
    if w.positive:
        return _positive_keys(k, w, start, hidden, impl)
    k = _visible(k.to(w.rows.dtype), hidden)
    size = w.half_scale * k.square().sum(-1)
    if hidden is not None:
        size = size.masked_fill(hidden, -torch.inf)
    log_max = _raise(start, size.detach(), 2)
    u = k @ w.rows.T
    phi = torch.cat([u.sin(), u.cos()], dim=-1) * (size - log_max).exp().unsqueeze(-1)
    return KeyFeatures(phi, log_max)


def _positive_keys(
    k: Tensor, w: Directions, start: Tensor, hidden: Bool[Tensor, "B H T"] | None, impl: Impl
) -> KeyFeatures:
    if hidden is None:
        merged, above = merge_batch(len(w.rows), k)[0], None
    else:
        merged, above = merge_batch(len(w.rows), k, hidden)
    start = start.detach().reshape(merged.shape[:2])
    natively = maps_natively(merged, w.rows.dtype, impl)
    phi, log_max = _KeyFeatures.apply(  # type: ignore[no-untyped-call]
        merged, w.rows, w.half_scale, start, above, natively
    )
    return KeyFeatures(phi.view(*k.shape[:3], -1), log_max.view(k.shape[:3]))


def features_by_feature(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    w: Directions,
    start: Float[Tensor, "B H M"],
    key_mask: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B H T M"], KeyFeatures]:
    """Map queries and keys with a running maximum for each feature: exact at any magnitude."""
    q, k = q.to(w.rows.dtype), k.to(w.rows.dtype)
    hidden = None if key_mask is None else ~key_mask[:, None].expand(-1, k.shape[1], -1)
    k = _visible(k, hidden)
    logs = k @ w.rows.T - w.half_scale * k.square().sum(-1, keepdim=True)
    if hidden is not None:
        logs = logs.masked_fill(hidden.unsqueeze(-1), -torch.inf)
    log_max = _raise(start, logs.detach(), 2)
    level = log_max - log_max.amax(-1, keepdim=True)
    phi_q = (q @ w.rows.T + level).softmax(-1)
    return phi_q, KeyFeatures((logs - log_max).exp(), log_max)


def log_decay(
    log_max: Float[Tensor, "B H T"] | Float[Tensor, "B H T M"],
    start: Float[Tensor, "B H"] | Float[Tensor, "B H M"],
) -> Float[Tensor, "B H T"] | Float[Tensor, "B H T M"]:
    """Return g_t = c_{t-1} - c_t, never above 0; where c did not change exactly 0.

    Of a key that is not finite the features are NaN already, from it on; a decay need not be.
    """
    g = torch.cat([start.unsqueeze(2), log_max[:, :, :-1]], dim=2) - log_max
    return g.masked_fill(g.isnan(), 0)


def _raise(start: Tensor, logs: Tensor, axis: int) -> Tensor:
    """Return the running maximum along ``axis`` of ``start`` and then ``logs``."""
    return torch.maximum(logs.cummax(axis).values, start.unsqueeze(axis))


class _QueryFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, w: Tensor, natively: bool) -> Tensor:
        phi = native.MAP_QUERIES(q, w) if natively else _map_queries(q, w)
        ctx.save_for_backward(phi, w)
        ctx.dtype = q.dtype
        return phi

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        phi, w = ctx.saved_tensors
        grad_q = w.new_empty(*phi.shape[:3], w.shape[1], dtype=ctx.dtype)
        with no_autocast(phi):
            for group in groups(phi, len(w)):
                for tokens in stretches(phi, group, len(w)):
                    at = (group[0], group[1], tokens)
                    # A factor common to a row's features changes no output, so its part is 0.
                    grad_q[at] = (phi[at] * grad[at]) @ w
        return grad_q, None, None


class _KeyFeatures(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        k: Tensor,
        w: Tensor,
        half_scale: float,
        start: Tensor,
        hidden: Tensor | None,
        natively: bool,
    ) -> tuple[Tensor, Tensor]:
        map_keys = native.MAP_KEYS if natively else _map_keys
        phi, log_max = map_keys(k, w, half_scale, start, hidden)
        ctx.save_for_backward(k, phi, w, hidden)
        ctx.half_scale = half_scale
        ctx.mark_non_differentiable(log_max)
        return phi, log_max

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        k, phi, w, hidden = ctx.saved_tensors
        grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
        with no_autocast(phi):
            for group in groups(k, len(w)):
                for tokens in stretches(k, group, len(w)):
                    at = (group[0], group[1], tokens)
                    grad_logs = phi[at] * grad[at]
                    part = None if hidden is None else hidden[at]
                    x = _visible(rows(k, group, tokens, w.dtype), part)
                    size = grad_logs.sum(-1, keepdim=True).mul_(-2 * ctx.half_scale)
                    grad_k[at] = torch.addcmul(grad_logs @ w, size, x)
        return grad_k, None, None, None, None, None


def _map_queries(q: Tensor, w: Tensor) -> Tensor:
    phi = w.new_empty(*q.shape[:3], len(w))
    for group in groups(q, len(w)):
        for tokens in stretches(q, group, len(w)):
            x = rows(q, group, tokens, w.dtype)
            u = torch.bmm(x, w.T.expand(len(x), -1, -1))
            phi[group[0], group[1], tokens] = u.softmax(-1)  # out= would not be exported
    return phi


def _map_keys(
    k: Tensor, w: Tensor, half_scale: float, start: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    phi = w.new_empty(*k.shape[:3], len(w))
    log_max = phi.new_empty(k.shape[:3])
    for group in groups(k, len(w)):
        top = start[group].to(w.dtype)
        for tokens in stretches(k, group, len(w)):
            at = (group[0], group[1], tokens)
            part = None if hidden is None else hidden[at]
            x = _visible(rows(k, group, tokens, w.dtype), part)
            size = x.square().sum(-1).mul_(half_scale)
            if part is not None:
                size = size.masked_fill(part, torch.inf)
            u = torch.bmm(x, w.T.expand(len(x), -1, -1))
            largest = u.amax(-1)
            own = largest - size
            highest = _raise(top, own, 1)
            # Not u - (size + c): where size is so large that largest is lost in it, rounding
            # could make that positive.
            phi[at] = u.sub_((largest + (highest - own)).unsqueeze(-1)).exp_()
            log_max[at], top = highest, highest[:, -1]
    return phi, log_max


def _visible(x: Tensor, hidden: Tensor | None) -> Tensor:
    """Return keys with 0 where hidden, since NaN would pass through a product with 0."""
    return x if hidden is None else x.masked_fill(hidden.unsqueeze(-1), 0)
