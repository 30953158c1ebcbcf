"""FAVOR+ in C++ on CPU tensors: what ctypes needs. Directions and sums are float32.

Axes: B batch, H heads, T time (Tq queries, Tk keys), K head width, M features, V value size.
The mathematics: ``ops/performer_bidirectional.py`` and ``ops/causal_features.py``; the kernels:
``csrc/favor.h`` and ``csrc/favor_map.h``.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from subquad.kernels.cpu import library
from subquad.kernels.cpu.arguments import CTensor, by_head, pointer, whole_rows
from subquad.kernels.cpu.linear_attention import empty_rows, linear_call, outputs

_PARALLEL = ("parallel", ctypes.c_void_p)


def _integers(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names)


class _Favor(ctypes.Structure):
    """``subquad_favor`` of csrc/linear_attention.h; the two change together."""

    _fields_ = (
        *_integers(ctypes.c_int64, "batch", "heads", "k", "v", "features", "time", "key_time"),
        *_integers(ctypes.c_int32, "is_qk_bf16", "is_v_bf16", "threads"),
        ("half_scale", ctypes.c_float),
        _PARALLEL,
        *((name, CTensor) for name in ("q", "key", "value", "out", "hidden")),
        *((name, ctypes.c_void_p) for name in ("directions", "means", "log_sums")),
        *((name, CTensor) for name in ("grad_out", "grad_q", "grad_key", "grad_value")),
    )


class _FavorMap(ctypes.Structure):
    """``subquad_favor_map`` of csrc/linear_attention.h."""

    _fields_ = (
        *_integers(ctypes.c_int64, "batch", "heads", "k", "features", "time"),
        *_integers(ctypes.c_int32, "is_bf16", "is_key", "threads"),
        ("half_scale", ctypes.c_float),
        _PARALLEL,
        *((name, CTensor) for name in ("x", "hidden")),
        *((name, ctypes.c_void_p) for name in ("directions", "start", "phi", "log_max")),
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out (B, H, Tq, V), means (B, H, M, V) and log_sums (B, H, M), all float32."""
    keep: list[Tensor] = []
    call = _favor_call(keep, q, k, v, directions, half_scale, hidden)
    out, means, log_sums = empty_results(q, v, directions)
    call.out, call.means, call.log_sums = by_head(out), means.data_ptr(), log_sums.data_ptr()
    if out.numel():
        library.call("favor_forward", call)
    return out, means, log_sums


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
    out: Tensor,
    means: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, given that of ``out``."""
    keep: list[Tensor] = []
    call = _favor_call(keep, q, k, v, directions, half_scale, hidden)
    call.out, call.grad_out = by_head(whole_rows(keep, out)), by_head(whole_rows(keep, grad))
    call.means, call.log_sums = pointer(keep, means), pointer(keep, log_sums)
    grads = empty_rows(q), empty_rows(k), empty_rows(v)
    call.grad_q, call.grad_key, call.grad_value = map(by_head, grads)
    if q.numel():
        library.call("favor_backward", call)
    return grads


def _favor_call(
    keep: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
) -> Any:
    call: Any = _Favor()
    call.batch, call.heads, call.time, call.k = q.shape
    call.v, call.features, call.key_time = v.shape[3], len(directions), k.shape[2]
    call.is_qk_bf16, call.is_v_bf16 = q.dtype == torch.bfloat16, v.dtype == torch.bfloat16
    call.q, call.key, call.value = (by_head(whole_rows(keep, x)) for x in (q, k, v))
    _share(call, keep, directions, half_scale, hidden, q.numel() + k.numel())
    return call


def empty_results(q: Tensor, v: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors for what ``attend`` gives."""
    batch, heads, time = q.shape[:3]
    width = len(directions)
    out = directions.new_empty(batch, time, heads, v.shape[3]).transpose(1, 2)
    means = directions.new_empty(batch, heads, width, v.shape[3])
    return out, means, directions.new_empty(batch, heads, width)


def attend_past(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    directions: Tensor,
    half_scale: float,
    key_mask: Tensor | None,
    kv: Tensor,
    k_sum: Tensor,
    log_max: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Go on from kv (B, H, M, V), k_sum (B, H, M) and log_max (B, H) over all tokens, causally.

    Returns out (B, H, T, V), the denominators (B, H, T), and the three behind the last token.
    """
    keep: list[Tensor] = []
    call = linear_call(keep, q, k, v, None, key_mask, None, None, kv, k_sum)
    call.is_normalized = call.is_causal = True
    call.k, call.width, call.half_scale = len(directions), q.shape[3], half_scale
    call.directions, call.log_max_in = pointer(keep, directions), pointer(keep, log_max)
    out, denominator, kv_out, k_sum_out, log_max_out = empty_results_past(q, k, v, directions)
    call.out, call.denominator = by_head(out), denominator.data_ptr()
    call.kv_out, call.k_sum_out = kv_out.data_ptr(), k_sum_out.data_ptr()
    call.log_max_out = log_max_out.data_ptr()
    if q.numel():
        library.call("linear_forward", call)
    return out, denominator, kv_out, k_sum_out, log_max_out


def empty_results_past(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors for what ``attend_past`` gives."""
    phi = directions.new_empty(1).expand(*q.shape[:3], len(directions))  # for its shape alone
    out, denominator, kv, k_sum = outputs(phi, phi, v)
    return out, denominator, kv, k_sum, k_sum.new_empty(k_sum.shape[:2])


def map_queries(q: Tensor, directions: Tensor) -> Tensor:
    """Return phi (B, H, T, M), float32."""
    keep: list[Tensor] = []
    call = _map_call(keep, q, directions, 0.0, None)
    phi = directions.new_empty(*q.shape[:3], len(directions))
    call.phi = phi.data_ptr()
    if phi.numel():
        library.call("favor_map", call)
    return phi


def map_keys(
    k: Tensor,
    directions: Tensor,
    half_scale: float,
    start: Tensor,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return phi (B, H, T, M) and the running maximum from ``start`` (B, H) on, (B, H, T)."""
    keep: list[Tensor] = []
    call = _map_call(keep, k, directions, half_scale, hidden)
    call.is_key, call.start = True, pointer(keep, start.float())
    phi = directions.new_empty(*k.shape[:3], len(directions))
    log_max = directions.new_empty(k.shape[:3])
    call.phi, call.log_max = phi.data_ptr(), log_max.data_ptr()
    if phi.numel():
        library.call("favor_map", call)
    return phi, log_max


def _map_call(
    keep: list[Tensor], x: Tensor, directions: Tensor, half_scale: float, hidden: Tensor | None
) -> Any:
    call: Any = _FavorMap()
    call.batch, call.heads, call.time, call.k = x.shape
    call.features, call.is_bf16 = len(directions), x.dtype == torch.bfloat16
    call.x = by_head(whole_rows(keep, x))
    _share(call, keep, directions, half_scale, hidden, x.numel())
    return call


def _share(
    call: Any,
    keep: list[Tensor],
    directions: Tensor,
    half_scale: float,
    hidden: Tensor | None,
    numbers: int,
) -> None:
    call.threads = library.threads_for(numbers * len(directions))
    call.parallel = library.parallel()
    call.directions, call.half_scale = pointer(keep, directions), half_scale
    if hidden is not None:
        call.hidden = by_head(hidden)
