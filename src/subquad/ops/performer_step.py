"""Causal FAVOR+ one token at a time: the recurrence of ``ops/performer_causal.py``.

Axes: B batch, H heads, K head width, M features, V value size.
Source: Choromanski et al. 2021, section 2.4; the running maximum is ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.kernels.dispatch import Impl
from subquad.ops.causal_features import Directions, directions_of
from subquad.ops.checks import check_same_device, check_shape
from subquad.ops.feature_maps import no_autocast
from subquad.ops.fused_linear_attention import take_token, token_taker
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.native_linear_attention import Request, native_step
from subquad.ops.performer_options import Features, check_features, resolve_scale
from subquad.ops.performer_state import (
    PerformerState,
    State,
    check_linear_past,
    check_performer_state,
    tiny_to_zero,
)

TakeToken = Callable[[Tensor, Tensor, Tensor, State], tuple[Tensor, State]]


def performer_attention_step(
    q: Float[Tensor, "B H K"],
    k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: State,
    *,
    features: Features,
    scale: float | None = None,
    normalize: bool = True,
    max_per_feature: bool = False,
) -> tuple[Float[Tensor, "B H V"], State]:
    """Take one more token; ``state`` stays as it is, and gradients flow through it.

    Options and errors as ``performer_attention_chunked``.
    """
    _check_token(q, k, v)
    check_features(features, k, scale=scale, normalize=normalize, max_per_feature=max_per_feature)
    if isinstance(features, GeneralizedFeatures):
        linear = check_linear_past(state)
        return take_token(q, k, v, linear, feature_map=features, normalize=normalize)
    num_features = features.num_features(k.shape[-1])
    past = check_performer_state(state, num_features, k, v, max_per_feature=max_per_feature)
    with no_autocast(v):
        w = directions_of(features, resolve_scale(scale, k.shape[-1]), past.kv.dtype)
        phi_q, phi_k, top = _token_features(q, k, w, past.log_max, max_per_feature)
        fade = (past.log_max - top).exp().view(*k.shape[:2], -1)
        kv = past.kv * fade.unsqueeze(-1) + phi_k.unsqueeze(-1) * v.unsqueeze(-2)
        k_sum = past.k_sum * fade + phi_k
        y = _read(phi_q, kv, k_sum)
    return y.to(v.dtype), PerformerState(kv, k_sum, top)


def performer_attention_step_(
    q: Float[Tensor, "B H K"],
    k: Float[Tensor, "B H K"],
    v: Float[Tensor, "B H V"],
    state: State,
    *,
    features: Features,
    scale: float | None = None,
    normalize: bool = True,
    max_per_feature: bool = False,
    impl: Impl = Impl.AUTO,
) -> tuple[Float[Tensor, "B H V"], State]:
    """Take one more token as ``performer_attention_step`` does, overwriting ``state``; no gradient.

    Raises:
        ValueError: if ``impl`` names a form that cannot do this; else as the other.
    """
    take = performer_token_taker(
        features=features, scale=scale, normalize=normalize, max_per_feature=max_per_feature,
        impl=impl,
    )  # fmt: skip
    return take(q, k, v, state)


def performer_token_taker(
    *,
    features: Features,
    scale: float | None = None,
    normalize: bool = True,
    max_per_feature: bool = False,
    impl: Impl = Impl.AUTO,
) -> TakeToken:
    """Return ``performer_attention_step_`` for a loop: all is checked and chosen at its first call.

    Shapes, dtypes and devices must stay what they were then, and the state the one returned.
    """
    if isinstance(features, GeneralizedFeatures):
        return _generalized_taker(features, scale, normalize, max_per_feature, impl)
    operator: Any = None
    w: Directions | None = None

    def check(q: Tensor, k: Tensor, v: Tensor, state: State) -> Directions:
        _check_token(q, k, v)
        check_features(
            features, k, scale=scale, normalize=normalize, max_per_feature=max_per_feature
        )
        num_features = features.num_features(k.shape[-1])
        past = check_performer_state(state, num_features, k, v, max_per_feature=max_per_feature)
        return directions_of(features, resolve_scale(scale, k.shape[-1]), past.kv.dtype)

    def take(q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        nonlocal operator, w
        is_first = w is None
        w = check(q, k, v, state) if w is None else w
        assert isinstance(state, PerformerState)
        kv, k_sum, log_max = state
        with no_autocast(v):
            wide = v.to(kv.dtype)
            phi_q, phi_k, top = _token_features(q, k, w, log_max, max_per_feature)
            decay = log_max - top
            if is_first:
                request = Request(phi_q, phi_k, wide, state.sums, decay.unsqueeze(2))
                operator = native_step(request, impl)
            log_max.copy_(top)
            if operator is not None:
                numerator = operator(phi_q, phi_k, wide, decay, None, None, kv, k_sum, False, False)
                y = tiny_to_zero(numerator, (phi_q * k_sum).sum(-1))
            else:
                fade = decay.exp().view(*k_sum.shape[:2], -1)
                kv.mul_(fade.unsqueeze(-1)).addcmul_(phi_k.unsqueeze(-1), wide.unsqueeze(-2))
                k_sum.mul_(fade).add_(phi_k)
                y = _read(phi_q, kv, k_sum)
        return y.to(v.dtype), state

    return take


def _generalized_taker(
    features: GeneralizedFeatures,
    scale: float | None,
    normalize: bool,
    max_per_feature: bool,
    impl: Impl,
) -> TakeToken:
    take_mapped = token_taker(feature_map=features, normalize=normalize, impl=impl)
    is_checked = False

    def take(q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        nonlocal is_checked
        if not is_checked:
            _check_token(q, k, v)
            check_features(
                features, k, scale=scale, normalize=normalize, max_per_feature=max_per_feature
            )
            check_linear_past(state)
            is_checked = True
        return take_mapped(q, k, v, state, None)  # type: ignore[arg-type]

    return take


def _token_features(
    q: Tensor, k: Tensor, w: Directions, log_max: Tensor, max_per_feature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return phi(q), phi(k), and the maximum with this key: see ``ops/causal_features.py``."""
    dtype = w.rows.dtype
    k = k.to(dtype)
    u_q, u_k = q.to(dtype) @ w.rows.T, k @ w.rows.T
    size = w.half_scale * k.square().sum(-1)
    if not w.positive:
        top = torch.maximum(log_max, size.detach())
        u_q, u_k = (torch.cat([u.sin(), u.cos()], dim=-1) for u in (u_q, u_k))
        return u_q, u_k * (size - top).exp().unsqueeze(-1), top
    if max_per_feature:
        logs = u_k - size.unsqueeze(-1)
        top = torch.maximum(log_max, logs.detach())
        level = top - top.amax(-1, keepdim=True)
        return (u_q + level).softmax(-1), (logs - top).exp(), top
    largest = u_k.detach().amax(-1)
    own = largest - size
    top = torch.maximum(log_max, own.detach())
    return u_q.softmax(-1), (u_k - (largest + (top - own)).unsqueeze(-1)).exp(), top


def _read(phi_q: Tensor, kv: Tensor, k_sum: Tensor) -> Float[Tensor, "B H V"]:
    numerator = torch.matmul(phi_q.unsqueeze(-2), kv).squeeze(-2)
    return tiny_to_zero(numerator, (phi_q * k_sum).sum(-1))


def _check_token(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_shape("q", q, tuple(k.shape))
    check_same_device("q", q, k)
    check_shape("v", v, (*k.shape[:2], v.shape[-1]))
    check_same_device("v", v, k)
