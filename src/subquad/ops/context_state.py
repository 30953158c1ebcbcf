"""A context that many queries will see, read once: what cross-attention keeps to decode from.

In both directions attention depends on the keys through a few sums only, so a decoder that meets
the same context at every token can keep those and forget the context:

    linear attention, generalised features    sum_j phi(k_j) v_j^T and sum_j phi(k_j)
    positive features                         b_m and s_m, as ``ops/performer_bidirectional.py``
    trigonometric features                    as linear, sizes held below the largest one

None of them grows with the context. What a key mask hides is in none of them.

Axes: B batch, H heads, T time of the queries, S of the context, K head width, M features, V values.
Source: Katharopoulos et al. 2020, equation 5; Choromanski et al. 2021, equation 4.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.causal_features import directions_of, key_features, query_features
from subquad.ops.checks import check_key_mask, check_shape
from subquad.ops.feature_maps import FeatureMap, no_autocast
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.linear_attention import finish
from subquad.ops.linear_state import LinearState
from subquad.ops.performer_bidirectional import log_features, lowest
from subquad.ops.performer_options import Features, resolve_scale
from subquad.ops.tiles import tile_size


class FavorContext(NamedTuple):
    """A context seen through positive features, in float32 or wider.

    ``log_sums`` is b_m = log sum_j phi_m(k_j), ``means`` is s_m = sum_j phi_m(k_j) v_j / exp(b_m).
    """

    means: Float[Tensor, "B H M V"]
    log_sums: Float[Tensor, "B H M"]


def linear_context(
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S V"],
    *,
    feature_map: FeatureMap,
    key_mask: Bool[Tensor, "B S"] | None = None,
) -> LinearState:
    """Return the sums of linear attention over all valid keys; gradients flow through them.

    Raises:
        ValueError: if a shape, a device or the mask does not fit.
    """
    _check(k, v, key_mask)
    k, v = _clear(k, key_mask), _clear(v, key_mask)
    with no_autocast(v):
        phi_k = _clear(feature_map(k), key_mask)
        wide = torch.promote_types(torch.promote_types(phi_k.dtype, v.dtype), torch.float32)
        phi_k = phi_k.to(wide)
        return LinearState(phi_k.mT @ v.to(wide), phi_k.sum(2))


def attend_linear_context(
    q: Float[Tensor, "B H T K"],
    state: LinearState,
    *,
    feature_map: FeatureMap,
    normalize: bool = True,
) -> Float[Tensor, "B H T V"]:
    """Attend to the context of ``linear_context``; the output has the dtype of q.

    Raises:
        ValueError: if the state is one of other heads or features.
    """
    check_shape("state.k_sum", state.k_sum, (*q.shape[:2], feature_map.num_features(q.shape[3])))
    with no_autocast(q):
        phi_q = feature_map(q).to(state.kv.dtype)
        denominator = (phi_q @ state.k_sum.unsqueeze(-1)).squeeze(-1)
        return finish(phi_q @ state.kv, denominator, normalize, q.dtype)


def performer_context(
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S V"],
    *,
    features: Features,
    key_mask: Bool[Tensor, "B S"] | None = None,
) -> FavorContext | LinearState:
    """Return the sums of FAVOR+ over all valid keys; gradients flow through them.

    They belong to ``features``: queries must be mapped by the same directions.

    Raises:
        ValueError: if a shape, a device or the mask does not fit.
    """
    if isinstance(features, GeneralizedFeatures):
        return linear_context(k, v, feature_map=features, key_mask=key_mask)
    _check(k, v, key_mask)
    k, v = _clear(k, key_mask), _clear(v, key_mask)
    wide = torch.promote_types(torch.promote_types(k.dtype, v.dtype), torch.float32)
    with no_autocast(v):
        w = directions_of(features, resolve_scale(None, k.shape[3]), wide)
        if w.positive:
            return _positive_context(k.to(wide), v.to(wide), w.rows, w.half_scale, key_mask)
        keys = key_features(k, w, w.rows.new_full(k.shape[:2], lowest(wide)), key_mask)
        phi_k = keys.phi * (keys.log_max - keys.log_max[:, :, -1:]).exp().unsqueeze(-1)
        return LinearState(phi_k.mT @ v.to(wide), phi_k.sum(2))


def attend_performer_context(
    q: Float[Tensor, "B H T K"],
    state: FavorContext | LinearState,
    *,
    features: Features,
    normalize: bool = True,
) -> Float[Tensor, "B H T V"]:
    """Attend to the context of ``performer_context``; the output has the dtype of q.

    Raises:
        TypeError: if the state is one of features of another kind.
        ValueError: if the state is one of other heads or features.
    """
    positive = not isinstance(features, GeneralizedFeatures) and features.nonnegative
    kind = FavorContext if positive else LinearState
    if not isinstance(state, kind):
        raise TypeError(f"state must be a {kind.__name__}, got {type(state).__name__}")
    if isinstance(features, GeneralizedFeatures):
        assert isinstance(state, LinearState)
        return attend_linear_context(q, state, feature_map=features, normalize=normalize)
    shape = (*q.shape[:2], features.num_features(q.shape[3]))
    check_shape(f"state.{state._fields[1]}", state[1], shape)
    with no_autocast(q):
        w = directions_of(features, resolve_scale(None, q.shape[3]), state[0].dtype)
        if isinstance(state, FavorContext):
            # Relative to the largest, small numbers keep more digits.
            level = state.log_sums - state.log_sums.amax(-1, keepdim=True)
            u = q.to(w.rows.dtype) @ w.rows.T + level.unsqueeze(2)
            return (u.softmax(-1) @ state.means).to(q.dtype)
        phi_q = query_features(q, w)
        denominator = (phi_q @ state.k_sum.unsqueeze(-1)).squeeze(-1)
        return finish(phi_q @ state.kv, denominator, normalize, q.dtype)


def _positive_context(
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S V"],
    directions: Float[Tensor, "M K"],
    half_scale: float,
    key_mask: Bool[Tensor, "B S"] | None,
) -> FavorContext:
    """Sum over stretches of keys, below a running maximum that has no gradient: it cancels."""
    heads, width = k.shape[:2], len(directions)
    hidden = None
    if key_mask is not None:
        hidden = ~key_mask[:, None].expand(-1, heads[1], -1).flatten(0, 1)
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    top = k.new_full((len(k), width), lowest(k.dtype))
    total, sums = torch.zeros_like(top), k.new_zeros(len(k), width, v.shape[2])
    count = max(16, tile_size(k) // (len(k) * width))
    for start in range(0, k.shape[1], count):
        tokens = slice(start, start + count)
        part = None if hidden is None else hidden[:, tokens]
        logs = log_features(k[:, tokens], directions, half_scale, part)
        higher = torch.maximum(top, logs.detach().amax(1))
        weights = (logs - higher.unsqueeze(1)).exp()
        fade = (top - higher).exp()
        total = total * fade + weights.sum(1)
        sums = sums * fade.unsqueeze(-1) + weights.mT @ v[:, tokens]
        top = higher
    total = total.masked_fill(total == 0, 1)  # no valid key: the sums are 0 already
    means, log_sums = sums / total.unsqueeze(-1), top + total.log()
    return FavorContext(means.view(*heads, *means.shape[1:]), log_sums.view(*heads, width))


def _check(k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    check_shape("v", v, (*k.shape[:3], v.shape[-1]))
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])


def _clear(x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Put 0 where ``key_mask`` hides; NaN times a weight of 0 would be NaN."""
    return x if key_mask is None else x.masked_fill(~key_mask[:, None, :, None], 0)
