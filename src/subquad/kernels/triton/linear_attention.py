"""Causal linear attention on a GPU: forward, backward and one step, with the normaliser fused.

    S_t = exp(g_t) S_{t-1} + R_t phi(k_t) v_t^T      Z_t = exp(g_t) Z_{t-1} + phi(k_t)
    out_t = (R_t phi(q_t)) S_t / (phi(q_t) . Z_t), or without the division

phi is elu + 1 or the identity (q and k are mapped already), R_t a rotation of pairs or absent,
g_t <= 0 a decay or absent. A token hidden by ``key_mask`` has phi(k) = 0, v = 0, g = 0, gradients 0
for all three, and its query's features count as 0 where they are not finite. A denominator of
exactly 0 gives the output 0 and no gradient.

How the time axis is cut. A program walks over one segment, a chunk of up to 64 tokens at a time,
with the state in its registers, and reads each input once. Segments are as many as fill the GPU
(``plan``): with many heads one each, and q, k, v and out cross the memory bus exactly once. With
several, a pass sums each segment's keys and values, a scan turns the sums into incoming states,
and then all segments are walked over at once. States are kept for segments only and worked out
anew inside: a state a chunk would be as many bytes as the keys themselves (K V numbers for 64
tokens, at K = V = 64), written once and read twice. Nothing is found by subtraction; a walk that
needs earlier states goes forward in time, one that needs gradients of later ones backward.

Products of bfloat16 inputs are bfloat16 products, of float16 ones TF32, of float32 ones three TF32
products that keep about 21 bits; sums, states and denominators are float32. Results are contiguous.

Axes: B batch, H heads, T time, K features (1 to 256), V value size (1 to 256).
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 9 to 20; the form by chunks
with decays is Sun et al. 2023, "Retentive Network", equation 7.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.kernels.triton._launch import check, launch, num_units, products
from subquad.kernels.triton.plan import Blocks, Plan, blocks, fits_whole, plan, power_of_two

_Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class _Call(NamedTuple):
    """What all kernels of one call share."""

    plan: Plan
    num_rows: int
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    key_mask: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    flags: dict[str, Any]

    def sizes(self) -> tuple[int, ...]:
        """Return T, the number of segments, their length, K and V."""
        return (
            self.q.shape[2], self.plan.num_segments, self.plan.segment,
            self.q.shape[3], self.v.shape[3],
        )  # fmt: skip

    def cut(self, whole: str) -> Blocks:
        """Return the blocks of one kernel."""
        return blocks(
            self.plan, self.q.shape[3], self.v.shape[3], narrow=self.flags["NARROW"], whole=whole
        )

    def options(self, cut: Blocks) -> dict[str, Any]:
        """Return the constants of one kernel."""
        return self.flags | {
            "CHUNK": self.plan.chunk, "BK": cut.features, "BV": cut.values,
            "num_warps": cut.num_warps, "num_stages": cut.num_stages,
        }  # fmt: skip

    def grid(self, cut: Blocks) -> tuple[int, int]:
        """Return (rows x segments, blocks of features x blocks of values)."""
        num_blocks = _ceil(self.q.shape[3], cut.features) * _ceil(self.v.shape[3], cut.values)
        return self.num_rows * self.plan.num_segments, num_blocks


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend to keys j <= i.

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

    Returns:
        out (B, H, T, V) in the dtype of v; the denominators (B, H, T), 0 where not normalised; and
        kv and k_sum after the last token, all float32.

    Raises:
        ImportError: if triton is not installed.
        TypeError: if a dtype is not one of the three.
        ValueError: if there are no tokens, a size is above 256 or the tensors are on no GPU.
    """
    check(q, k, v)
    call = _prepare(q, k, v, log_decay, key_mask, cos, sin, is_elu, is_normalized)
    kv, k_sum = _both_or_none(kv, k_sum, q, v)
    incoming = _incoming_states(call, kv, k_sum)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    new = torch.empty if is_normalized else torch.zeros
    denominator = new(q.shape[:3], dtype=torch.float32, device=q.device)
    kv_out, k_sum_out = _state_like(q, v)
    cut = call.cut("features")
    launch(
        "_forward_kernel", "forward_walk", call.grid(cut),
        q, k, v, call.log_decay, call.key_mask, call.cos, call.sin, *incoming,
        out, denominator, kv_out, k_sum_out,
        *q.stride(), *k.stride(), *v.stride(), q.shape[1], *call.sizes(),
        HAS_STATE=incoming[0] is not None, **call.options(cut),
    )  # fmt: skip
    return out, denominator, kv_out, k_sum_out


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
) -> _Grads:
    """Return the gradients of ``forward``'s q, k, v, log_decay, kv and k_sum.

    Those of log_decay, kv and k_sum are None where these are. Arguments and errors are as
    ``forward``'s; ``grad_kv`` and ``grad_k_sum`` are of its last two results, or None.
    """
    check(q, k, v)
    call = _prepare(q, k, v, log_decay, key_mask, cos, sin, is_elu, is_normalized)
    incoming = _incoming_states(call, *_both_or_none(kv, k_sum, q, v))
    denominator = denominator.contiguous()
    grad_denominator = _denominator_gradients(grad_out, out, denominator) if is_normalized else None
    rows = (denominator, grad_denominator)
    later = _later_gradients(call, grad_out, rows, *_both_or_none(grad_kv, grad_k_sum, q, v))
    grad_q, query_dots, anchors = _query_gradients(call, grad_out, rows, incoming, later)
    grad_k, grad_v, key_dots, grad_kv_in, grad_k_sum_in = _key_gradients(
        call, grad_out, rows, later, with_state=kv is not None or k_sum is not None
    )
    grad_log_decay = None
    if query_dots is not None and key_dots is not None:
        grad_log_decay = _decay_gradients(call, query_dots - key_dots, anchors)
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
        q, k, v, kv, k_sum,
        None if cos is None else cos.contiguous(), None if sin is None else sin.contiguous(), out,
        *q.stride(), *k.stride(), *v.stride(), *kv.stride(), *k_sum.stride(),
        q.shape[1], num_features, value_dim,
        IS_ELU=is_elu, IS_NORMALIZED=is_normalized, HAS_ROTATION=cos is not None,
        BK=width, BV=min(power_of_two(value_dim), max(16, 8192 // width)), num_warps=4,
    )  # fmt: skip
    return out


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, key_mask: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, is_elu: bool, is_normalized: bool,
) -> _Call:  # fmt: skip
    narrow, precision = products(q, v)
    num_rows = q.shape[0] * q.shape[1]
    sizes = plan(
        num_rows, q.shape[2], q.shape[3], v.shape[3], narrow=narrow, num_units=num_units(q.device)
    )
    flags = {
        "IS_ELU": is_elu, "IS_NORMALIZED": is_normalized, "HAS_DECAY": log_decay is not None,
        "HAS_MASK": key_mask is not None, "HAS_ROTATION": cos is not None,
        "NARROW": narrow, "PRECISION": precision,
    }  # fmt: skip
    # The small ones are read densely; copied if they are not (an expanded mask, say).
    small = [None if x is None else x.contiguous() for x in (log_decay, cos, sin)]
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    return _Call(sizes, num_rows, q, k, v, small[0], mask, small[1], small[2], flags)


def _state_like(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    k_sum = torch.empty(*q.shape[:2], q.shape[3], dtype=torch.float32, device=q.device)
    return k_sum.new_empty(*k_sum.shape, v.shape[3]), k_sum


def _both_or_none(
    kv: Tensor | None, k_sum: Tensor | None, q: Tensor, v: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return both contiguous, zeros for the one that is missing; or None twice."""
    if kv is None and k_sum is None:
        return None, None
    zeros = [x.zero_() for x in _state_like(q, v)]
    return (
        zeros[0] if kv is None else kv.contiguous(),
        zeros[1] if k_sum is None else k_sum.contiguous(),
    )


def _incoming_states(
    call: _Call, kv: Tensor | None, k_sum: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the state before each segment, (N, S, K, V) and (N, S, K)."""
    if call.plan.num_segments == 1:
        return kv, k_sum
    return _segment_states(call, call.k, call.v, (None, None), kv, k_sum, is_reverse=False)


def _later_gradients(
    call: _Call, grad_out: Tensor, rows: tuple[Tensor, Tensor | None],
    grad_kv: Tensor | None, grad_k_sum: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradient of the state after each segment, (N, S, K, V) and (N, S, K)."""
    if call.plan.num_segments == 1:
        return grad_kv, grad_k_sum
    return _segment_states(call, call.q, grad_out, rows, grad_kv, grad_k_sum, is_reverse=True)


def _segment_states(
    call: _Call, x: Tensor, y: Tensor, rows: tuple[Tensor | None, Tensor | None],
    kv: Tensor | None, k_sum: Tensor | None, *, is_reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_segments, num_features, value_dim = call.plan.num_segments, x.shape[3], y.shape[3]
    exponents = torch.empty(call.num_rows, num_segments, dtype=torch.float32, device=x.device)
    k_sums = exponents.new_empty(*exponents.shape, num_features)
    kv_sums = exponents.new_empty(*k_sums.shape, value_dim)
    cut = call.cut("neither")
    launch(
        "_state_kernels", "segment_sums", call.grid(cut),
        x, y, call.log_decay, call.key_mask, call.cos, call.sin, *rows,
        kv_sums, k_sums, exponents, *x.stride(), *y.stride(), x.shape[1], *call.sizes(),
        IS_REVERSE=is_reverse, **call.options(cut),
    )  # fmt: skip
    for sums, incoming in ((kv_sums, kv), (k_sums, k_sum)):
        size = sums[0, 0].numel()
        block = min(1024, power_of_two(size))
        launch(
            "_state_kernels", "scan_segments", (call.num_rows, _ceil(size, block)),
            sums, exponents, incoming, num_segments, size,
            IS_REVERSE=is_reverse, HAS_DECAY=call.log_decay is not None,
            HAS_STATE=incoming is not None, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return kv_sums, k_sums


def _denominator_gradients(grad_out: Tensor, out: Tensor, denominator: Tensor) -> Tensor:
    grad = torch.empty_like(denominator)
    rows = 32
    launch(
        "_state_kernels", "denominator_gradients",
        (out.shape[0] * out.shape[1], _ceil(out.shape[2], rows)),
        grad_out, out, denominator, grad, *grad_out.stride(), *out.stride(),
        out.shape[1], out.shape[2], out.shape[3],
        ROWS=rows, BV=power_of_two(out.shape[3]), num_warps=4,
    )  # fmt: skip
    return grad


def _query_gradients(
    call: _Call, grad_out: Tensor, rows: tuple[Tensor, Tensor | None],
    incoming: tuple[Tensor | None, Tensor | None], later: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    q, k, v = call.q, call.k, call.v
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    cut = call.cut("values")
    dots = anchors = None
    if call.log_decay is not None:
        num_blocks = call.grid(cut)[1]
        dots = call.log_decay.new_empty(num_blocks, call.num_rows, q.shape[2])
        anchors = dots.new_zeros(num_blocks, call.num_rows, call.plan.num_segments)
    launch(
        "_backward_kernels", "query_walk", call.grid(cut),
        q, k, v, grad_out, call.log_decay, call.key_mask, call.cos, call.sin, *rows,
        *incoming, *later, grad_q, dots, anchors,
        *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(),
        q.shape[1], call.num_rows, *call.sizes(),
        HAS_STATE=incoming[0] is not None, HAS_GRAD_STATE=later[0] is not None,
        **call.options(cut),
    )  # fmt: skip
    if dots is None or anchors is None:
        return grad_q, None, None
    return grad_q, dots.sum(0), anchors.sum(0)


def _key_gradients(
    call: _Call, grad_out: Tensor, rows: tuple[Tensor, Tensor | None],
    later: tuple[Tensor | None, Tensor | None], *, with_state: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients of k and v, phi(k) . grad phi(k), and those of kv and k_sum."""
    q, k, v = call.q, call.k, call.v
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    states = _state_like(q, v) if with_state else (None, None)
    dots = None
    # One walk for both where a program can hold the whole state; else one for each.
    together = fits_whole(q.shape[3], v.shape[3], narrow=call.flags["NARROW"])
    for whole in ("values",) if together else ("values", "features"):
        cut, keys = call.cut(whole), whole == "values"
        if keys and call.log_decay is not None:
            dots = call.log_decay.new_empty(call.grid(cut)[1], call.num_rows, q.shape[2])
        launch(
            "_backward_kernels", "key_walk", call.grid(cut),
            q, k, v, grad_out, call.log_decay, call.key_mask, call.cos, call.sin, *rows, *later,
            grad_k, grad_v, dots, *states,
            *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(),
            q.shape[1], call.num_rows, *call.sizes(),
            HAS_GRAD_STATE=later[0] is not None, WITH_KEYS=keys,
            WITH_VALUES=together or not keys, WITH_STATE=with_state and keys, **call.options(cut),
        )  # fmt: skip
    return grad_k, grad_v, None if dots is None else dots.sum(0), *states


def _decay_gradients(call: _Call, dots: Tensor, anchors: Tensor | None) -> Tensor:
    """Sum ``dots`` (N, T) from the end of each segment, where <state, its gradient> is known.

    d g_t = sum over s >= t of (phi(q_s) . grad phi(q_s) - phi(k_s) . grad phi(k_s)) + what the
    state after the last of these tokens and its gradient make together. Starting anew at each
    segment keeps the rounding of a long sum out of the early tokens.
    """
    seq_len, num_segments, segment = call.sizes()[:3]
    log_decay = call.log_decay
    assert log_decay is not None
    assert anchors is not None
    padded = torch.nn.functional.pad(dots, (0, num_segments * segment - seq_len))
    by_segment = padded.view(-1, num_segments, segment)
    sums = by_segment.flip(-1).cumsum(-1).flip(-1) + anchors.unsqueeze(-1)
    grad = sums.flatten(1)[:, :seq_len].reshape(log_decay.shape)
    forgotten = log_decay.isneginf()  # exp(-inf) = 0 has the slope 0, to the last bit
    if call.key_mask is not None:
        forgotten = forgotten | (call.key_mask == 0).unsqueeze(1)
    return grad.masked_fill(forgotten, 0)


def _ceil(x: int, y: int) -> int:
    return -(-x // y)
