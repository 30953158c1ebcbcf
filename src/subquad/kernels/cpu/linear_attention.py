"""Linear attention in C++ on CPU tensors: what ctypes needs, and nothing that differentiates.

float32 or bf16 in, sums in float32. Axes: B batch, H heads, T time, K features, V value size.
The mathematics: ``ops/linear_attention.py``. The kernels: ``csrc/drive.h`` and ``csrc/step.h``.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from subquad.kernels.cpu import library
from subquad.kernels.cpu.arguments import (
    CTensor,
    by_head,
    over_heads,
    pointer,
    token,
    whole_rows,
)

DTYPES = (torch.float32, torch.bfloat16)

_FLOATS = ctypes.c_void_p


_PARALLEL = ("parallel", ctypes.c_void_p)


class _Linear(ctypes.Structure):
    """``subquad_linear`` of csrc/linear_attention.h; the two change together."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "k", "v", "time", "key_time")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "is_qk_bf16", "is_v_bf16", "is_elu", "is_normalized", "is_causal", "threads",
            )
        ),
        _PARALLEL,
        *(
            (name, CTensor)
            for name in ("q", "key", "value", "out", "log_decay", "key_mask", "cos", "sin")
        ),
        *((name, _FLOATS) for name in ("denominator", "kv_in", "k_sum_in", "kv_out", "k_sum_out")),
        *((name, CTensor) for name in ("grad_out", "grad_q", "grad_key", "grad_value")),
        *(
            (name, _FLOATS)
            for name in (
                "grad_log_decay", "grad_kv_out", "grad_k_sum_out", "grad_kv_in", "grad_k_sum_in",
            )
        ),
        ("width", ctypes.c_int64),
        *((name, _FLOATS) for name in ("directions", "log_max_in", "log_max_out")),
        ("half_scale", ctypes.c_float),
    )  # fmt: skip


class _Step(ctypes.Structure):
    """``subquad_linear_step`` of csrc/linear_attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "k", "v")),
        *(
            (name, ctypes.c_int32)
            for name in ("is_qk_bf16", "is_v_bf16", "is_elu", "is_normalized", "threads")
        ),
        _PARALLEL,
        *(
            (name, CTensor)
            for name in ("q", "key", "value", "out", "log_decay", "cos", "sin")
        ),
        *((name, _FLOATS) for name in ("kv_in", "k_sum_in", "kv_out", "k_sum_out")),
    )  # fmt: skip


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
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out (B, H, Tq, V), denominator (B, H, Tq), and the state behind: kv and k_sum."""
    keep: list[Tensor] = []
    call = linear_call(keep, q, k, v, log_decay, key_mask, cos, sin, kv, k_sum)
    call.is_elu, call.is_normalized, call.is_causal = is_elu, is_normalized, is_causal
    out, denominator, kv_out, k_sum_out = outputs(q, k, v)
    call.out, call.denominator = by_head(out), denominator.data_ptr()
    call.kv_out, call.k_sum_out = kv_out.data_ptr(), k_sum_out.data_ptr()
    if q.numel():
        library.call("linear_forward", call)
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
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of q, k, v, log_decay, kv and k_sum; None where there is no input."""
    keep: list[Tensor] = []
    call = linear_call(keep, q, k, v, log_decay, key_mask, cos, sin, kv, k_sum)
    call.is_elu, call.is_normalized, call.is_causal = is_elu, is_normalized, is_causal
    call.out, call.grad_out = by_head(whole_rows(keep, out)), by_head(whole_rows(keep, grad_out))
    call.denominator = denominator.data_ptr()
    call.grad_kv_out = pointer(keep, grad_kv)
    call.grad_k_sum_out = pointer(keep, grad_k_sum)
    grad_q, grad_k, grad_v = empty_rows(q), empty_rows(k), empty_rows(v)
    call.grad_q, call.grad_key, call.grad_value = map(by_head, (grad_q, grad_k, grad_v))
    grad_decay = None if log_decay is None else torch.zeros_like(denominator)
    grad_state = [
        None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
        for x in (kv, k_sum)
    ]
    call.grad_log_decay = pointer(keep, grad_decay)
    call.grad_kv_in, call.grad_k_sum_in = (pointer(keep, x) for x in grad_state)
    if q.numel():
        library.call("linear_backward", call)
    return grad_q, grad_k, grad_v, grad_decay, grad_state[0], grad_state[1]


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor,
    k_sum: Tensor,
    kv_out: Tensor,
    k_sum_out: Tensor,
    is_elu: bool,
    is_normalized: bool,
) -> Tensor:
    """Take one token (B, H, K), (B, H, V): write the state behind it, which may be the one before.

    The four state tensors are contiguous float32. Returns the output (B, H, V).
    """
    _check_state(q, v, kv, k_sum)
    keep: list[Tensor] = []
    call = _Step()
    call.batch, call.heads, call.k, call.v = *q.shape, v.shape[-1]
    call.is_qk_bf16, call.is_v_bf16 = q.dtype == torch.bfloat16, v.dtype == torch.bfloat16
    call.is_elu, call.is_normalized = is_elu, is_normalized
    # Below some 100,000 numbers of state, waking a second thread costs more than it does.
    call.threads = library.usable_threads() if kv.numel() > 100_000 else 1
    call.parallel = library.parallel()
    out = v.new_empty(v.shape)
    call.q, call.key, call.value = (token(whole_rows(keep, x)) for x in (q, k, v))
    call.out = token(out)
    if log_decay is not None:
        log_decay = log_decay.float()
        keep.append(log_decay)
        call.log_decay = CTensor(log_decay.data_ptr(), *log_decay.stride(), 0)
    if cos is not None and sin is not None:
        cos, sin = whole_rows(keep, cos.float()), whole_rows(keep, sin.float())
        call.cos = CTensor(cos.data_ptr(), cos.stride(0), 0, 0)
        call.sin = CTensor(sin.data_ptr(), sin.stride(0), 0, 0)
    call.kv_in, call.k_sum_in = kv.data_ptr(), k_sum.data_ptr()
    call.kv_out, call.k_sum_out = kv_out.data_ptr(), k_sum_out.data_ptr()
    if q.numel():
        library.call("linear_step", call)
    return out


def _check_state(q: Tensor, v: Tensor, kv: Tensor, k_sum: Tensor) -> None:
    # A loop over tokens checks at its first call alone, and this writes to memory.
    batch, heads, features = q.shape
    wanted = (batch, heads, features, v.shape[2])
    if kv.shape != wanted or k_sum.shape != wanted[:3] or v.shape[:2] != wanted[:2]:
        raise ValueError(
            f"state must have the shapes {wanted} and {wanted[:3]} of its token, "
            f"got {tuple(kv.shape)} and {tuple(k_sum.shape)}"
        )
    if not (kv.is_contiguous() and k_sum.is_contiguous()):
        raise ValueError(
            f"state must lie in memory in one piece, got strides {kv.stride()} and {k_sum.stride()}"
        )


def outputs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors for what ``forward`` gives."""
    batch, heads, time, features = q.shape
    out = v.new_empty(batch, time, heads, v.shape[3]).transpose(1, 2)  # ready to be merged
    denominator = q.new_empty(batch, heads, time, dtype=torch.float32)
    kv = q.new_empty(batch, heads, features, v.shape[3], dtype=torch.float32)
    return out, denominator, kv, q.new_empty(batch, heads, features, dtype=torch.float32)


def empty_rows(x: Tensor) -> Tensor:
    """Return an empty tensor like x (B, H, T, W), laid out as projections are: (B, T, H, W)."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def linear_call(
    keep: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    key_mask: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor | None,
    k_sum: Tensor | None,
) -> Any:
    """Return a call with what all forms share; ``keep`` holds copies as long as they are needed."""
    call: Any = _Linear()
    if q.shape[2] == 0 or k.shape[2] == 0:
        raise ValueError(f"q and k must have tokens, got {q.shape[2]} and {k.shape[2]}")
    call.batch, call.heads, call.time, call.k = q.shape
    call.key_time, call.v = k.shape[2], v.shape[3]
    call.is_qk_bf16, call.is_v_bf16 = q.dtype == torch.bfloat16, v.dtype == torch.bfloat16
    call.threads = library.threads_for(q.numel() * (v.shape[3] + 64))
    call.parallel = library.parallel()
    call.q, call.key, call.value = (by_head(whole_rows(keep, x)) for x in (q, k, v))
    if log_decay is not None:
        log_decay = log_decay.float()
        keep.append(log_decay)
        call.log_decay = CTensor(log_decay.data_ptr(), *log_decay.stride())
    if key_mask is not None:
        call.key_mask = CTensor(key_mask.data_ptr(), key_mask.stride(0), 0, key_mask.stride(1))
    if cos is not None and sin is not None:
        call.cos, call.sin = (over_heads(whole_rows(keep, x.float())) for x in (cos, sin))
    call.kv_in, call.k_sum_in = pointer(keep, kv), pointer(keep, k_sum)
    return call
