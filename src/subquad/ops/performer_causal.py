"""Causal FAVOR+: the one recurrence over features below a running maximum, in parallel or by token.

    S_t = exp(g_t) S_{t-1} + phi(k_t) v_t^T      Z_t = exp(g_t) Z_{t-1} + phi(k_t)
    y_t = phi(q_t) S_t / phi(q_t) . Z_t

with the features and g of ``ops/causal_features.py``. Where the denominator is below 1e-30 in
absolute value y_t is 0 and carries no gradient, in every form alike.

Axes: B batch, H heads, T time, K head width, M features, V value size.
Source: Choromanski et al. 2021, section 2.4 and appendix B.1; the running maximum is ours.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.kernels import favor_operators
from subquad.kernels.dispatch import Impl
from subquad.ops.causal_features import (
    directions_of,
    features_by_feature,
    key_features,
    log_decay,
    query_features,
)
from subquad.ops.checks import check_key_mask, check_positive, check_qkv
from subquad.ops.feature_maps import no_autocast
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.linear_attention import linear_attention_chunked, linear_attention_sums
from subquad.ops.linear_state import LinearState
from subquad.ops.native_favor import attends_past_natively
from subquad.ops.native_linear_attention import Request, native_operator
from subquad.ops.performer_options import Features, check_features, resolve_scale
from subquad.ops.performer_state import (
    PerformerState,
    State,
    check_linear_past,
    check_performer_state,
    is_tiny,
    tiny_to_zero,
)
from subquad.ops.random_features import RandomFeatures

# Tokens whose features are made at once where no gradient is wanted: a few MB for 8 heads.
STRETCH = 512


def performer_attention_chunked(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    state: State,
    *,
    features: Features,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
    normalize: bool = True,
    max_per_feature: bool = False,
    chunk_size: int | None = None,
    impl: Impl = Impl.AUTO,
) -> tuple[Float[Tensor, "B H T V"], State]:
    """Go on from ``state`` over any T >= 1.

    Args:
        q: queries.
        k: keys.
        v: values.
        state: the past; ``performer_state`` makes the empty one.
        features: the same for the whole sequence.
        key_mask: (B, T) bool, True = keep.
        scale: as in ``performer_attention``.
        normalize: as in ``performer_attention``.
        max_per_feature: as in ``performer_attention``, and as the state was made.
        chunk_size: tokens done at once, of the torch form alone, which AUTO takes if it is given.
        impl: where it is computed; see ``Impl``.

    Returns:
        The outputs (B, H, T, V) in the dtype of v, and the state after the last token.

    Raises:
        TypeError: if ``state`` or ``features`` are of another kind, or a state is narrower than
            float32 or than the other tensors.
        ValueError: if a number or a shape does not fit, or ``impl`` cannot do this.
    """
    check_qkv(q, k, v, is_causal=True)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_features(features, k, scale=scale, normalize=normalize, max_per_feature=max_per_feature)
    if not isinstance(features, GeneralizedFeatures):
        num_features = features.num_features(k.shape[3])
        state = check_performer_state(state, num_features, k, v, max_per_feature=max_per_feature)
        is_plain = chunk_size is None and not max_per_feature and features.nonnegative
        if is_plain and attends_past_natively(q, k, v, state, impl):
            return _attend_past(q, k, v, state, features, key_mask, scale)
    if k.shape[2] > STRETCH and not _must_be_whole(q, k, v, *state):
        return _by_stretches(
            q, k, v, state, key_mask=key_mask, features=features, scale=scale,
            normalize=normalize, max_per_feature=max_per_feature, chunk_size=chunk_size, impl=impl,
        )  # fmt: skip
    if isinstance(features, GeneralizedFeatures):
        return _generalized(
            q, k, v, state, features, key_mask=key_mask, normalize=normalize,
            chunk_size=chunk_size, impl=impl,
        )  # fmt: skip
    assert isinstance(state, PerformerState)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    with no_autocast(v):
        w = directions_of(features, resolve_scale(scale, k.shape[3]), state.kv.dtype)
        if max_per_feature:
            phi_q, keys = features_by_feature(q, k, w, state.log_max, key_mask)
        else:
            phi_q = query_features(q, w, impl)
            keys = key_features(k, w, state.log_max, key_mask, impl)
        mapped = (phi_q, keys.phi, v, log_decay(keys.log_max, state.log_max))
        y, sums = _recur(*mapped, state.sums, key_mask, chunk_size, impl)
    return y, PerformerState(*sums, keys.log_max[:, :, -1])


class _OneCall(torch.autograd.Function):
    """The call that has no gradient: forward-mode differentiation is refused, not dropped."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        return favor_operators.ATTEND_PAST(*arguments)


def _attend_past(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: PerformerState,
    features: RandomFeatures,
    key_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, PerformerState]:
    """Do it in one C++ call, in which the features never reach memory."""
    with no_autocast(v):
        w = directions_of(features, resolve_scale(scale, k.shape[3]), state.kv.dtype)
        y, denominator, *after = _OneCall.apply(  # type: ignore[no-untyped-call]
            q, k, v, w.rows, w.half_scale, key_mask, *state
        )
    return _without_tiny(y, denominator), PerformerState(*after)


def _must_be_whole(*tensors: Tensor) -> bool:
    """Say whether one call must do all tokens: for a gradient, or in a graph for any length."""
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wants_gradient or torch.compiler.is_compiling()


def _by_stretches(
    q: Tensor, k: Tensor, v: Tensor, state: State, *, key_mask: Tensor | None, **options: Any
) -> tuple[Tensor, State]:
    """Do the same stretch by stretch: then the features of one stretch alone are in memory."""
    y = v.new_empty(v.shape[0], v.shape[2], v.shape[1], v.shape[3]).transpose(1, 2)
    for start in range(0, k.shape[2], STRETCH):
        now = slice(start, start + STRETCH)
        mask = None if key_mask is None else key_mask[:, now]
        y[:, :, now], state = performer_attention_chunked(
            q[:, :, now], k[:, :, now], v[:, :, now], state, key_mask=mask, **options
        )
    return y, state


def _recur(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    decay: Tensor,
    past: LinearState,
    key_mask: Tensor | None,
    chunk_size: int | None,
    impl: Impl,
) -> tuple[Tensor, LinearState]:
    """Run the recurrence in the native form, if one takes it, or in torch's."""
    request = Request(phi_q, phi_k, v, past, decay, chunk_size=chunk_size)
    operator: Any = native_operator(request, impl)
    if operator is None:
        numerator, denominator, past = linear_attention_sums(
            phi_q, phi_k, v, past, key_mask=key_mask, log_decay=decay, chunk_size=chunk_size
        )
        return tiny_to_zero(numerator, denominator).to(v.dtype), past
    # The kernel itself divides by any denominator but 0; it gives them back, without a gradient.
    y, denominator, kv, k_sum = operator(
        phi_q, phi_k, v, decay, key_mask, None, None, *past, False, True, True
    )
    return _without_tiny(y, denominator), LinearState(kv, k_sum)


def _without_tiny(y: Tensor, denominator: Tensor) -> Tensor:
    """Return outputs with 0 where the denominator is tiny."""
    tiny = is_tiny(denominator)
    # A pass over all outputs for what hardly ever happens; to look first takes a fraction of it.
    if tiny.device.type == "cpu" and not torch.compiler.is_compiling() and not tiny.any():
        return y
    return y.masked_fill(tiny.unsqueeze(-1), 0)


def _generalized(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    features: GeneralizedFeatures,
    **options: Any,
) -> tuple[Tensor, LinearState]:
    past = check_linear_past(state)
    key_mask = options["key_mask"]
    if key_mask is not None:
        k = k.masked_fill(~key_mask[:, None, :, None], 0)
    with no_autocast(v):
        phi_q, phi_k = features(q), features(k)
    return linear_attention_chunked(phi_q, phi_k, v, past, **options)
