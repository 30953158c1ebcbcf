"""Softmax attention, the baseline: definition, SDPA form, and a KV cache for decoding.

    y_i = sum_j softmax_j(q_i . k_j * scale + bias_ij) v_j

over all valid j, or over j <= i (causal). A query that sees no valid key gives 0.

Axes: B batch, H heads, T time (Tq queries, Tk keys), K query and key size, V value size.
Source: Vaswani et al. 2017; Katharopoulos et al. 2020, equation 2 and supplement (the cache).
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from subquad.ops.checks import (
    check_cu_seqlens,
    check_fraction,
    check_key_mask,
    check_qkv,
    check_same_device,
    check_same_dtype,
    check_shape,
)
from subquad.ops.feature_maps import no_autocast
from subquad.ops.packing import run_packed


class KVCache(NamedTuple):
    """Keys and values of the past: buffers with room, of which the first ``length`` are filled."""

    k: Float[Tensor, "B H R K"]
    v: Float[Tensor, "B H R V"]
    key_mask: Bool[Tensor, "B R"] | None  # None: every filled position is valid
    length: int


def kv_cache(
    batch_size: int, num_heads: int, key_dim: int, value_dim: int, like: Tensor
) -> KVCache:
    """Return the empty past, on the device and in the dtype of ``like``."""
    k = torch.zeros(batch_size, num_heads, 0, key_dim, dtype=like.dtype, device=like.device)
    return KVCache(k, k.new_zeros(batch_size, num_heads, 0, value_dim), None, 0)


def softmax_attention(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    scale: float | None = None,
    bias: Float[Tensor, "B H Tq Tk"] | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "B H Tq V"]:
    """Attend through ``scaled_dot_product_attention``, with masks that cannot give NaN.

    Args:
        q: queries (B, H, Tq, K).
        k: keys (B, H, Tk, K).
        v: values (B, H, Tk, V).
        is_causal: query i sees keys j <= i only; needs Tq = Tk.
        key_mask: (B, Tk) bool, True = keep. What stands in the other positions, NaN included,
            changes no output and no gradient; a query that sees no key gives 0. Then also a query
            that is not finite gives NaN in its own row and no gradient. A mask with ``is_causal``
            costs a (B, 1, T, T) bool tensor.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1 (Tq = Tk).
        scale: factor on the scores, by default 1 / sqrt(K).
        bias: (B, H, Tq, Tk), added to the scaled scores; not with ``cu_seqlens``.
        dropout_p: share of the weights dropped; the caller sets 0 in evaluation.

    Returns:
        (B, H, Tq, V).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit.
    """
    check_qkv(q, k, v, is_causal=is_causal or cu_seqlens is not None)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    check_fraction("dropout_p", dropout_p)
    if bias is not None:
        check_shape("bias", bias, (*q.shape[:3], k.shape[2]))
        if cu_seqlens is not None:
            raise ValueError("bias and cu_seqlens must not be given together, got both")
    if cu_seqlens is not None:

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return softmax_attention(
                q, k, v, is_causal=is_causal, key_mask=mask, scale=scale, dropout_p=dropout_p
            )

        return run_packed(attend, cu_seqlens, q, k, v)
    if key_mask is None and (bias is None or not is_causal):
        return _sdpa(q, k, v, bias, is_causal=is_causal, scale=scale, dropout_p=dropout_p)
    if key_mask is None:
        key_mask = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
    allowed = key_mask[:, None, None, :]
    if is_causal:
        allowed = allowed & _causal(q.shape[2], k.shape[2], q.device)
    return _masked(
        q, _clear(k, key_mask), _clear(v, key_mask), allowed, scale, dropout_p, bias=bias
    )


def softmax_attention_quadratic(
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    scale: float | None = None,
    bias: Float[Tensor, "B H Tq Tk"] | None = None,
) -> Float[Tensor, "B H Tq V"]:
    """Compute the definition; the SDPA form is tested against it."""
    if key_mask is not None:
        k, v = _clear(k, key_mask), _clear(v, key_mask)
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if is_causal:
        allowed = allowed.tril()
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    scores = scores.masked_fill(~allowed, -torch.inf)
    highest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - highest.detach()).exp().masked_fill(~allowed, 0)
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1)


def softmax_attention_cached(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    cache: KVCache,
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    in_place: bool = False,
) -> tuple[Float[Tensor, "B H T V"], KVCache]:
    """Go on from ``cache`` over T more tokens, causally.

    With ``in_place`` the new keys go into the cache's own buffers, which grow by doubling; without
    it the given cache is left as it is and gradients flow through the past.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit.
    """
    check_qkv(q, k, v, is_causal=True)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_fraction("dropout_p", dropout_p)
    room = cache.k.shape[2]
    check_shape("cache.k", cache.k, (*k.shape[:2], room, k.shape[3]))
    check_shape("cache.v", cache.v, (*v.shape[:2], room, v.shape[3]))
    for name, buffer, new in (("k", cache.k, k), ("v", cache.v, v)):
        check_same_device(f"cache.{name}", buffer, k)
        check_same_dtype(f"cache.{name}", buffer, name, new)
    if cache.length == 0 and key_mask is None and q.shape[2] > 1:
        y = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout_p)
        return y, _extend(k, v, None, cache, in_place)
    if key_mask is not None:
        k, v = _clear(k, key_mask), _clear(v, key_mask)
    cache = _extend(k, v, key_mask, cache, in_place)
    past_k, past_v = cache.k[:, :, : cache.length], cache.v[:, :, : cache.length]
    if q.shape[2] == 1 and cache.key_mask is None:
        y = scaled_dot_product_attention(q, past_k, past_v, scale=scale, dropout_p=dropout_p)
        return y, cache
    allowed = _causal(q.shape[2], cache.length, q.device)[None, None]
    if cache.key_mask is not None:
        allowed = allowed & cache.key_mask[:, None, None, : cache.length]
    return _masked(q, past_k, past_v, allowed, scale, dropout_p), cache


def _extend(
    k: Tensor, v: Tensor, key_mask: Tensor | None, cache: KVCache, in_place: bool
) -> KVCache:
    """Return ``cache`` with k, v (B, H, T, ...) behind what is there."""
    length = cache.length + k.shape[2]
    mask = cache.key_mask
    if key_mask is not None and mask is None:
        mask = key_mask.new_ones(len(key_mask), cache.k.shape[2])
    if key_mask is None and mask is not None:
        key_mask = mask.new_ones(len(mask), k.shape[2])
    pairs = [(cache.k, k, 2), (cache.v, v, 2)]
    if mask is not None and key_mask is not None:
        pairs.append((mask, key_mask, 1))
    new = [_append(old, more, axis, cache.length, in_place) for old, more, axis in pairs]
    return KVCache(new[0], new[1], new[2] if len(new) == 3 else None, length)


def _append(old: Tensor, more: Tensor, axis: int, length: int, in_place: bool) -> Tensor:
    if not in_place:
        return torch.cat([old.narrow(axis, 0, length), more], axis)
    needed = length + more.shape[axis]
    if old.shape[axis] < needed:
        shape = list(old.shape)
        shape[axis] = max(needed, 2 * old.shape[axis])
        grown = old.new_zeros(shape)
        grown.narrow(axis, 0, length).copy_(old.narrow(axis, 0, length))
        old = grown
    old.narrow(axis, length, more.shape[axis]).copy_(more)
    return old


def _clear(x: Tensor, key_mask: Tensor) -> Tensor:
    """Put 0 where ``key_mask`` hides; NaN times a weight of 0 would be NaN."""
    return x.masked_fill(~key_mask[:, None, :, None], 0)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, is_causal: bool, **options: Any
) -> Tensor:
    """Attend without masks; in float32 where torch's backward pass in bfloat16 is the slower one.

    That is so on a CPU, where keys are few; the border of 512 is a rough one.
    """
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if not learns or q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[2] >= 512:
        return scaled_dot_product_attention(q, k, v, bias, is_causal=is_causal, **options)
    wide = None if bias is None else bias.float()
    with no_autocast(q):
        y = scaled_dot_product_attention(
            q.float(), k.float(), v.float(), wide, is_causal=is_causal, **options
        )
    return y.to(v.dtype)


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "Tq Tk"]:
    """Let query i see the keys up to its own position, the queries being the last ones."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def _masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    scale: float | None,
    dropout_p: float,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend under a bool mask; a row that sees nothing gives 0, not the NaN of SDPA.

    A query that is not finite is set aside: its gradient of 0 would reach the keys as 0 * NaN.
    """
    blind = ~allowed.any(-1, keepdim=True)
    broken = ~q.isfinite().all(-1, keepdim=True)
    mask = allowed | blind
    if bias is not None:
        mask = bias.masked_fill(broken, 0).masked_fill(~mask, -torch.inf)
    y = scaled_dot_product_attention(
        q.masked_fill(broken, 0), k, v, attn_mask=mask, scale=scale, dropout_p=dropout_p
    )
    return y.masked_fill(broken, torch.nan).masked_fill(blind, 0)
