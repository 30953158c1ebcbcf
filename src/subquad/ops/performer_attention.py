"""FAVOR+: attention in O(T) whose expectation is softmax attention, with random features phi.

    y_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j)

over all valid j, or over j <= i (causal); E[phi(q) . phi(k)] = exp(scale q . k). Or, with
``GeneralizedFeatures``, any kernel function in place of exp.

How it stays stable: ``ops/performer_bidirectional.py`` (at any magnitude) and
``ops/causal_features.py`` (below a running maximum, so that no token sees a later one).

Axes: B batch, H heads, T time (Tq queries, Tk keys), K head width, M features, V value size.
Source: Choromanski et al. 2021, "Rethinking Attention with Performers", equations 3 to 7.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.kernels.dispatch import Impl, no_reasons, resolve
from subquad.ops.causal_features import Directions, directions_of, key_features, query_features
from subquad.ops.checks import check_cu_seqlens, check_key_mask, check_qkv
from subquad.ops.feature_maps import no_autocast
from subquad.ops.fused_linear_attention import attend_all
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.linear_attention import linear_attention, quotient
from subquad.ops.packing import run_packed
from subquad.ops.performer_bidirectional import lowest, positive_attention
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_options import Features, check_features, resolve_scale
from subquad.ops.performer_state import TINY, performer_state, tiny_to_zero
from subquad.ops.random_features import RandomFeatures, SoftmaxKernel


def performer_attention(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    features: Features | None = None,
    scale: float | None = None,
    normalize: bool = True,
    max_per_feature: bool = False,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend in O(T) through random features. The layout and words are SDPA's.

    Args:
        q: queries (B, H, Tq, K).
        k: keys (B, H, Tk, K).
        v: values (B, H, Tk, V); the output has their dtype.
        is_causal: query i sees keys j <= i only; needs Tq = Tk.
        key_mask: (B, Tk) bool, True = keep. What stands in the other positions, NaN included,
            changes no output and no gradient; a query that sees no key gives 0. Then also a query
            that is not finite gives NaN in its own row and no gradient.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1 (Tq = Tk).
        features: what ``SoftmaxKernel().draw(K)`` or ``GeneralizedKernel().draw(K)`` gives; None
            draws the former anew at every call, from torch's global generator.
        scale: factor on q . k, by default 1 / sqrt(K); None for ``GeneralizedFeatures``.
        normalize: divide by the sum of the weights; False for ``GeneralizedFeatures`` only. The
            sums of TRIGONOMETRIC features may be close to 0 or negative, and divide all the same.
        max_per_feature: of positive features and ``is_causal``: hold each feature below a running
            maximum of its own, in torch's form. The result is then right at any magnitude. Without
            it a query whose weights are below 1e-30 of what they could be gives 0 and has no
            gradient. (Both directions at once, each feature has its own maximum anyway.)
        impl: where it is computed; see ``Impl``. Of trigonometric features over all keys there is
            torch's form alone.

    Returns:
        (B, H, Tq, V) in the dtype of v.

    Raises:
        TypeError: if a dtype, or the kind of ``features``, does not fit.
        ValueError: if a shape, device, mask or option does not fit, or ``impl`` cannot do this.
    """
    check_qkv(q, k, v, is_causal=is_causal or cu_seqlens is not None)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    if features is None:
        features = SoftmaxKernel().draw(k.shape[3], device=k.device)
    check_features(features, k, scale=scale, normalize=normalize, max_per_feature=max_per_feature)
    if isinstance(features, GeneralizedFeatures):
        return linear_attention(
            q, k, v, is_causal=is_causal, key_mask=key_mask, cu_seqlens=cu_seqlens,
            feature_map=features, normalize=normalize, impl=impl,
        )  # fmt: skip
    if cu_seqlens is not None:

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return performer_attention(
                q, k, v, is_causal=is_causal, key_mask=mask, features=features, scale=scale,
                max_per_feature=max_per_feature, impl=impl,
            )  # fmt: skip

        return run_packed(attend, cu_seqlens, q, k, v)
    scale = resolve_scale(scale, k.shape[3])
    broken = None
    if key_mask is not None:
        broken = _broken(q, features, scale)
        q = q.masked_fill(broken, 0)
    if is_causal:
        batch_size, num_heads, _, head_dim = k.shape
        like = torch.empty(0, dtype=_wide(q, k, v), device=k.device)
        past = performer_state(
            batch_size, num_heads, head_dim, v.shape[3], features, like,
            max_per_feature=max_per_feature,
        )  # fmt: skip
        y, _ = performer_attention_chunked(
            q, k, v, past, features=features, key_mask=key_mask, scale=scale,
            max_per_feature=max_per_feature, impl=impl,
        )  # fmt: skip
    else:
        y = performer_attention_bidirectional(
            q, k, v, features=features, key_mask=key_mask, scale=scale, impl=impl
        )
    if key_mask is None or broken is None:
        return y
    sees_a_key = key_mask.cumsum(1) > 0 if is_causal else key_mask.any(1, keepdim=True)
    return y.masked_fill(broken & sees_a_key[:, None, :, None], torch.nan)


def performer_attention_bidirectional(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    features: Features,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    scale: float | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend to all keys, for queries that are finite; options as ``performer_attention``."""
    check_qkv(q, k, v, is_causal=False)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_features(features, k, scale=scale, normalize=normalize, max_per_feature=False)
    if isinstance(features, GeneralizedFeatures):
        return attend_all(
            q, k, v, feature_map=features, key_mask=key_mask, normalize=normalize, impl=impl
        )
    with no_autocast(v):
        w = directions_of(features, resolve_scale(scale, k.shape[3]), _wide(q, k, v))
        if w.positive:
            return positive_attention(q, k, v, w.rows, w.half_scale, key_mask, impl)
        resolve("trigonometric FAVOR+", impl, {Impl.TORCH: (None, no_reasons)}, k.device)
        return _trigonometric_attention(q, k, v, w, key_mask)


def performer_attention_quadratic(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    features: RandomFeatures,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    scale: float | None = None,
    max_per_feature: bool = False,
) -> Float[Tensor, "B H Tq V"]:
    """Compute the definition in O(T^2 M), positive features by logarithms; the forms' measure.

    log sum_m phi_m(q_i) phi_m(k_j) is a logsumexp over features, and the weights are its softmax
    over j. ``is_causal`` without ``max_per_feature`` has the rule of denominators below 1e-30.
    """
    dtype = _wide(q, k, v)
    root = math.sqrt(resolve_scale(scale, k.shape[3]))
    x, y, wide_v = q.to(dtype) * root, k.to(dtype) * root, v.to(dtype)
    allowed = torch.ones(x.shape[2], y.shape[2], dtype=torch.bool, device=k.device)
    allowed = (allowed.tril() if is_causal else allowed).expand(len(k), 1, -1, -1)
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        y, wide_v = y.masked_fill(hidden, 0), wide_v.masked_fill(hidden, 0)
        allowed = allowed & key_mask[:, None, None]
    if not features.nonnegative:
        return _trigonometric_quadratic(x, y, wide_v, features, allowed, is_causal).to(v.dtype)
    log_q, log_k = features.log_features(x), features.log_features(y)
    scores = (log_q.unsqueeze(3) + log_k.unsqueeze(2)).logsumexp(-1)  # (B, H, Tq, Tk)
    scores = scores.masked_fill(~allowed, -torch.inf)
    highest = scores.amax(-1, keepdim=True).detach()
    blind = highest == -torch.inf
    weights = (scores - highest.masked_fill(blind, 0)).exp()
    total = weights.sum(-1, keepdim=True).masked_fill(blind, 1)
    if is_causal and not max_per_feature:
        below = log_k.amax(-1).unsqueeze(2).masked_fill(~allowed, -torch.inf).amax(-1)
        log_sum = highest.squeeze(-1) + total.squeeze(-1).log()
        tiny = log_sum - log_q.logsumexp(-1) - below < math.log(TINY)
        blind = blind | tiny.unsqueeze(-1)
    return (weights @ wide_v / total).masked_fill(blind, 0).to(v.dtype)


def _trigonometric_quadratic(
    x: Tensor, y: Tensor, v: Tensor, features: RandomFeatures, allowed: Tensor, is_causal: bool
) -> Tensor:
    """Return the definition with features that have signs: sizes apart, below their maximum."""
    w = features.directions(x.dtype)
    waves_q, waves_k = (torch.cat([u.sin(), u.cos()], -1) for u in (x @ w.T, y @ w.T))
    size = (y.square().sum(-1) / 2).unsqueeze(2).masked_fill(~allowed, -torch.inf)
    highest = size.amax(-1, keepdim=True).clamp(min=lowest(size.dtype)).detach()
    weights = (waves_q @ waves_k.mT) * (size - highest).exp()
    divide = tiny_to_zero if is_causal else quotient
    return divide(weights @ v, weights.sum(-1))


def _trigonometric_attention(
    q: Tensor, k: Tensor, v: Tensor, w: Directions, key_mask: Tensor | None
) -> Tensor:
    """Attend to all keys, their sizes held below the largest: the last of the running maxima."""
    start = w.rows.new_full(k.shape[:2], lowest(w.rows.dtype))
    phi_q, keys = query_features(q, w), key_features(k, w, start, key_mask)
    level = (keys.log_max - keys.log_max[:, :, -1:]).exp().unsqueeze(-1)
    phi_k, wide_v = keys.phi * level, v.to(w.rows.dtype)
    if key_mask is not None:
        wide_v = wide_v.masked_fill(~key_mask[:, None, :, None], 0)
    denominator = (phi_q @ phi_k.sum(2).unsqueeze(-1)).squeeze(-1)
    return quotient(phi_q @ (phi_k.mT @ wide_v), denominator).to(v.dtype)


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _broken(q: Tensor, features: RandomFeatures, scale: float) -> Bool[Tensor, "B H Tq 1"]:
    """Say which queries might not be finite when mapped, for 0 * NaN would reach the keys."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.no_grad():
        largest = features.directions(dtype).abs().sum(1).max() * math.sqrt(scale)
        limit = torch.finfo(dtype).max / (4 + 4 * largest)
        return ~(q.abs().amax(-1, keepdim=True).to(dtype) <= limit)
