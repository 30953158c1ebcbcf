"""What every form of linear attention does first: check, hide what is masked, widen, map queries.

Axes: B batch, H heads, T time (Tq queries, Tk keys), D head width, K features, V value size.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.checks import check_key_mask, check_log_decay, check_positive, check_qkv
from subquad.ops.feature_maps import EluPlusOne, FeatureMap
from subquad.ops.linear_state import LinearState, check_linear_state


def check_chunked(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    state: LinearState,
    key_mask: Tensor | None,
    log_decay: Tensor | None,
    chunk_size: int | None,
) -> None:
    """Check the arguments of ``linear_attention_chunked``.

    Raises:
        TypeError: if a dtype does not fit, or ``state`` is too narrow.
        ValueError: if a shape, a device or a number does not fit.
    """
    check_qkv(phi_q, phi_k, v, is_causal=True)
    check_linear_state(state, phi_k, v)
    check_key_mask(key_mask, phi_k, phi_k.shape[0], phi_k.shape[2])
    check_log_decay(log_decay, phi_k.shape, key_mask, is_causal=True)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)


def features_shape(k: Tensor, feature_map: FeatureMap) -> torch.Size:
    """Return the shape (B, H, T, K) that the keys will have once mapped."""
    return torch.Size([*k.shape[:3], feature_map.num_features(k.shape[3])])


def prepare(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    log_decay: Tensor | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Check, widen to float32 and clear what ``key_mask`` hides; the decay comes back 4-D.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, a device, the mask or the decay does not fit.
    """
    check_qkv(phi_q, phi_k, v, is_causal=is_causal)
    check_key_mask(key_mask, phi_k, phi_k.shape[0], phi_k.shape[2])
    check_log_decay(log_decay, phi_k.shape, key_mask, is_causal=is_causal)
    dtype = torch.promote_types(torch.promote_types(phi_k.dtype, v.dtype), torch.float32)
    if log_decay is not None:
        log_decay = (log_decay if log_decay.dim() == 4 else log_decay.unsqueeze(-1)).to(dtype)
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        phi_k, v = phi_k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        log_decay = None if log_decay is None else log_decay.masked_fill(hidden, 0)
    return phi_q.to(dtype), phi_k.to(dtype), v.to(dtype), log_decay


def clear_broken_queries(
    q: Float[Tensor, "B H Tq D"], key_mask: Bool[Tensor, "B Tk"] | None
) -> tuple[Float[Tensor, "B H Tq D"], Bool[Tensor, "B H Tq 1"] | None]:
    """Return q with 0 for the queries of which elu + 1 is not finite, and which those are.

    Their gradient of 0 would else reach the keys as 0 * NaN. elu + 1 of -inf is 0, which is finite.
    Without a mask no query is cleared, and the second result is None.
    """
    if key_mask is None:
        return q, None
    broken = ~(q < torch.inf).all(-1, keepdim=True)
    return q.masked_fill(broken, 0), broken


def map_queries(
    q: Float[Tensor, "B H Tq D"], feature_map: FeatureMap, key_mask: Bool[Tensor, "B Tk"] | None
) -> tuple[Float[Tensor, "B H Tq K"], Bool[Tensor, "B H Tq 1"] | None]:
    """Map the queries as ``clear_broken_queries`` would leave them for this map.

    Of a general map the features must be seen first, and a gradient of 0 would come out of it as
    0 * NaN; so where gradients are on it maps again, with 0 for the broken queries. That costs a
    second map only if there is one, or if to look would wait for a GPU or break a graph.
    """
    if key_mask is None or type(feature_map) is EluPlusOne:
        q, broken = clear_broken_queries(q, key_mask)
        return feature_map(q), broken
    has_gradient = torch.is_grad_enabled()
    may_look = q.device.type == "cpu" and not torch.compiler.is_compiling()
    with torch.set_grad_enabled(has_gradient and may_look):
        phi_q = feature_map(q)
        broken = ~phi_q.isfinite().all(-1, keepdim=True)
    if not has_gradient:
        return phi_q.masked_fill(broken, 0), broken
    if not may_look or broken.any():
        phi_q = feature_map(q.masked_fill(broken, 0))
    return phi_q, broken


def show_broken_queries(
    y: Float[Tensor, "B H Tq V"],
    broken: Bool[Tensor, "B H Tq 1"] | None,
    key_mask: Bool[Tensor, "B Tk"] | None,
    *,
    is_causal: bool,
) -> Float[Tensor, "B H Tq V"]:
    """Return y with NaN for the broken queries that see a key."""
    if broken is None or key_mask is None:
        return y
    sees_a_key = key_mask.cumsum(1) > 0 if is_causal else key_mask.any(1, keepdim=True)
    return y.masked_fill(broken & sees_a_key[:, None, :, None], torch.nan)
