"""Causal linear attention on a GPU: forward, backward and one step, with the normaliser fused.

    S_t = exp(g_t) S_{t-1} + R_t phi(k_t) v_t^T      Z_t = exp(g_t) Z_{t-1} + phi(k_t)
    out_t = (R_t phi(q_t)) S_t / (phi(q_t) . Z_t), or without the division

phi is elu + 1 or the identity (q and k are mapped already), R_t a rotation of pairs or absent,
g_t <= 0 a decay or absent. A token hidden by ``key_mask`` has phi(k) = 0, v = 0, g = 0, gradients 0
for all three, and its query's features count as 0 where they are not finite. A denominator of
exactly 0 gives the output 0 and no gradient.

How the time axis is cut. A program walks over one span, a whole sequence or a segment of one, a
chunk of up to 64 tokens at a time, with the state in its registers, and reads each input once.
Segments are as many as fill the GPU (``plan``): with many heads one each, and q, k, v and out
cross the memory bus exactly once. With several, a pass sums each segment's keys and values, a scan
turns the sums into incoming states, and then all segments are walked over at once. States are kept
for segments only and worked out anew inside: a state a chunk would be as many bytes as the keys
themselves (K V numbers for 64 tokens, at K = V = 64), written once and read twice. Nothing is
found by subtraction; a walk that needs earlier states goes forward in time, one that needs
gradients of later ones backward. Sequences packed by ``cu_seqlens`` are walked over where they
lie: no span crosses a border, so nothing has to be masked, padded or copied.

Products of bfloat16 inputs are bfloat16 products, of float16 ones TF32, of float32 ones three TF32
products that keep about 21 bits; sums, states and denominators are float32. Results are contiguous.

Axes: B batch, H heads, T time, K features (1 to 256), V value size (1 to 256).
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 9 to 20; the form by chunks
with decays is Sun et al. 2023, "Retentive Network", equation 7.
"""

import torch
from torch import Tensor

from subquad.kernels.triton._call import prepare
from subquad.kernels.triton._gradients import (
    decay_gradients,
    denominator_gradients,
    key_gradients,
    query_gradients,
)
from subquad.kernels.triton._launch import check, launch
from subquad.kernels.triton._states import incoming_states, later_gradients
from subquad.kernels.triton.plan import power_of_two

_Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    key_mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor | None,
    k_sum: Tensor | None,
    is_elu: bool,
    is_normalized: bool,
    *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend to keys j <= i; with ``cu_seqlens`` to those of the query's own sequence.

    Args:
        q: queries (B, H, T, K), of any strides: float32, bfloat16 or float16.
        k: keys (B, H, T, K), in the dtype of q.
        v: values (B, H, T, V), in any of the three dtypes.
        log_decay: (B, H, T) float32, at most 0 (-inf forgets all), or None.
        key_mask: (B, T) bool, True = keep, or None.
        cos: cosines (B, T, K / 2) float32 of the pairs (2i, 2i + 1), or None.
        sin: sines, likewise.
        kv: the past (B, H, K, V) float32, rotated if keys are; None = empty.
        k_sum: the past's sum of features (B, H, K) float32, never rotated; None = empty.
        is_elu: apply elu + 1 to q and k; otherwise they are mapped already.
        is_normalized: divide by the sum of the weights.
        cu_seqlens: borders 0, ..., T of S sequences packed into a batch of 1, (S + 1,) int32 or
            int64; sequences may be empty. kv and k_sum, given and returned, then have S rows for
            the batch. The borders are read on the host: on the CPU they cost no wait.

    Returns:
        out (B, H, T, V) in the dtype of v; the denominators (B, H, T), 0 where not normalised; and
        kv and k_sum after the last token (of each sequence), all float32.

    Raises:
        ImportError: if triton is not installed.
        TypeError: if a dtype is not one of the three, or the borders are no integers.
        ValueError: if there are no tokens, a size is above 256, the tensors are on no GPU, the
            borders are not 0, ..., T, or a state has not as many rows as there are sequences.
    """
    call = prepare(q, k, v, log_decay, key_mask, cos, sin, is_elu, is_normalized, cu_seqlens)
    incoming = incoming_states(call, *call.dense_state(kv, k_sum))
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    new = torch.empty if is_normalized else torch.zeros
    denominator = new(q.shape[:3], dtype=torch.float32, device=q.device)
    state = call.new_state()
    call.walk(
        "_forward_kernel", "forward_walk", "features",
        q, k, v, call.log_decay, call.key_mask, call.cos, call.sin, *incoming, call.spans,
        out, denominator, *state,
        *q.stride(), *k.stride(), *v.stride(), q.shape[1], *call.sizes(),
        HAS_STATE=incoming[0] is not None,
    )  # fmt: skip
    return out, denominator, *state


def backward(
    grad_out: Tensor,
    grad_kv: Tensor | None,
    grad_k_sum: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    denominator: Tensor,
    log_decay: Tensor | None,
    key_mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor | None,
    k_sum: Tensor | None,
    is_elu: bool,
    is_normalized: bool,
    *,
    cu_seqlens: Tensor | None = None,
) -> _Grads:
    """Return the gradients of ``forward``'s q, k, v, log_decay, kv and k_sum.

    Those of log_decay, kv and k_sum are None where these are. Arguments and errors are as
    ``forward``'s; ``grad_kv`` and ``grad_k_sum`` are of its last two results, or None.
    """
    call = prepare(q, k, v, log_decay, key_mask, cos, sin, is_elu, is_normalized, cu_seqlens)
    incoming = incoming_states(call, *call.dense_state(kv, k_sum))
    denominator = denominator.contiguous()
    grad_denominator = denominator_gradients(grad_out, out, denominator) if is_normalized else None
    rows = (denominator, grad_denominator)
    later = later_gradients(call, grad_out, rows, *call.dense_state(grad_kv, grad_k_sum))
    grad_q, query_dots, anchors = query_gradients(call, grad_out, rows, incoming, later)
    grad_k, grad_v, key_dots, grad_kv_in, grad_k_sum_in = key_gradients(
        call, grad_out, rows, later, with_state=kv is not None or k_sum is not None
    )
    grad_log_decay = None
    if call.log_decay is not None:
        assert query_dots is not None
        assert key_dots is not None
        assert anchors is not None
        grad_log_decay = decay_gradients(call, query_dots, key_dots, anchors, call.log_decay)
    return (
        grad_q, grad_k, grad_v, grad_log_decay,
        grad_kv_in if kv is not None else None, grad_k_sum_in if k_sum is not None else None,
    )  # fmt: skip


def step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: Tensor,
    k_sum: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    is_elu: bool,
    is_normalized: bool,
    *,
    log_decay: Tensor | None = None,
) -> Tensor:
    """Take one more token and overwrite ``kv`` (B, H, K, V) and ``k_sum`` (B, H, K).

    Args:
        q: query (B, H, K), of any strides and one of ``forward``'s dtypes.
        k: key (B, H, K).
        v: value (B, H, V).
        kv: the past, float32, of any strides; after the call it holds this token too.
        k_sum: its sum of features, float32, likewise.
        cos: (B, K / 2) float32, or None.
        sin: likewise.
        is_elu: apply elu + 1 to q and k.
        is_normalized: divide by the sum of the weights.
        log_decay: (B, H) float32, at most 0, or None; applied to the state before the token.

    Returns:
        (B, H, V) in the dtype of v.

    Raises:
        ImportError, TypeError, ValueError: as ``forward``.
    """
    check(q, k, v)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    num_features, value_dim = q.shape[-1], v.shape[-1]
    width = power_of_two(num_features)
    launch(
        "_step_kernel", "step", (q.shape[0] * q.shape[1],),
        q, k, v, kv, k_sum, *(None if x is None else x.contiguous() for x in (log_decay, cos, sin)),
        out,
        *q.stride(), *k.stride(), *v.stride(), *kv.stride(), *k_sum.stride(),
        q.shape[1], num_features, value_dim,
        IS_ELU=is_elu, IS_NORMALIZED=is_normalized,
        HAS_DECAY=log_decay is not None, HAS_ROTATION=cos is not None,
        BK=width, BV=min(power_of_two(value_dim), max(16, 8192 // width)), num_warps=4,
    )  # fmt: skip
    return out
