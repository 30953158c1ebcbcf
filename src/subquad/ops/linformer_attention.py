"""Linformer: softmax attention over k mixtures of the keys and values, their number fixed.

    y = softmax(q (E k)^T scale) (F v)

E and F (S, N) mix a sequence of up to N tokens into S slots; a sequence of T < N tokens uses their
first T columns. A slot mixes all tokens, so there is no causal form. Positions, the columns of E
and F, count valid tokens only: what a mask hides is as if it had been taken out. At S = N = T with
E = F = identity this is softmax attention. With T < N it would not be: a slot that mixes nothing is
a key of 0, which still has its weight.

Axes: B batch, H heads, T time, S slots, N longest sequence, K query and key size, V value size.
Source: Wang et al. 2020, "Linformer", equation 7.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from subquad.ops.checks import check_cu_seqlens, check_key_mask, check_qkv, check_same_device
from subquad.ops.packing import run_packed
from subquad.ops.window import compaction

Mixing = Float[Tensor, "h S N"]  # h is H, or 1 where all heads share


def linformer_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    mix_k: Mixing,
    mix_v: Mixing,
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Attend to S mixtures, in O(T S).

    Args:
        q: queries (B, H, T, K).
        k: keys (B, H, T, K).
        v: values (B, H, T, V).
        mix_k: E (H or 1, S, N); each packed or padded sequence must have T <= N.
        mix_v: F (H or 1, S, N).
        key_mask: (B, T) bool, True = keep. Hidden tokens are as if taken out; what stands there,
            NaN included, changes no output and no gradient, and the output there is 0.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        scale: factor on the scores, by default 1 / sqrt(K).

    Returns:
        (B, H, T, V).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or mask does not fit, or a sequence is longer than N.
    """
    check_qkv(q, k, v, is_causal=True)
    _check_mixing(mix_k, mix_v, k)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    if cu_seqlens is not None:
        _check_length(int(cu_seqlens.diff().max()), mix_k)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return linformer_attention(q, k, v, mix_k, mix_v, key_mask=mask, scale=scale)

        return run_packed(attend, cu_seqlens, q, k, v)
    _check_length(k.shape[2], mix_k)
    if key_mask is None:
        slots, values = _mix(mix_k, k), _mix(mix_v, v)
        return scaled_dot_product_attention(q, slots, values, scale=scale)
    rows, hidden = compaction(key_mask), ~key_mask[:, None, :, None]
    slots, values = _mix(mix_k, rows.front(k)), _mix(mix_v, rows.front(v))
    y = scaled_dot_product_attention(q.masked_fill(hidden, 0), slots, values, scale=scale)
    return y.masked_fill(hidden, 0)


def linformer_attention_quadratic(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    mix_k: Mixing,
    mix_v: Mixing,
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute the definition by its (T, T) matrix of weights on the values, row by row.

    Each row is treated alone, without its hidden tokens.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rows = []
    for b in range(len(q)):
        keep = torch.arange(q.shape[2], device=q.device)
        if key_mask is not None:
            keep = keep[key_mask[b]]
        q_b, k_b, v_b = (x[b][:, keep] for x in (q, k, v))
        slots = mix_k[..., : len(keep)] @ k_b
        weights = (q_b @ slots.mT * scale).softmax(-1) @ mix_v[..., : len(keep)]
        y = v.new_zeros(v.shape[1:])
        rows.append(y.index_copy(1, keep, weights @ v_b))
    return torch.stack(rows)


def _mix(mixing: Tensor, x: Tensor) -> Float[Tensor, "B H S K"]:
    return mixing[..., : x.shape[2]] @ x


def _check_mixing(mix_k: Tensor, mix_v: Tensor, k: Tensor) -> None:
    for name, x in (("mix_k", mix_k), ("mix_v", mix_v)):
        if x.dim() != 3 or x.shape[0] not in (1, k.shape[1]) or 0 in x.shape:
            raise ValueError(
                f"{name} must have shape (H or 1, S, N) with H = {k.shape[1]}, got {tuple(x.shape)}"
            )
        check_same_device(name, x, k)
    if mix_k.shape[1:] != mix_v.shape[1:]:
        raise ValueError(
            f"mix_k and mix_v must agree in (S, N), "
            f"got {tuple(mix_k.shape[1:])} and {tuple(mix_v.shape[1:])}"
        )


def _check_length(seq_len: int, mixing: Tensor) -> None:
    if seq_len > mixing.shape[2]:
        raise ValueError(
            f"a sequence must have at most {mixing.shape[2]} tokens, as many as mix_k and mix_v "
            f"have columns (max_len), got {seq_len}"
        )
