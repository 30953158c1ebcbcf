"""The only place that words errors of shape, dtype and device.

Each function raises before any work starts, in one sentence: the argument, the rule, the value got.
Those of numbers and choices stand in ``checks_numbers`` and can be had from here too.
"""

from itertools import pairwise

import torch
from torch import Tensor

from subquad.ops.checks_numbers import check_choice as check_choice
from subquad.ops.checks_numbers import check_divisible as check_divisible
from subquad.ops.checks_numbers import check_fraction as check_fraction
from subquad.ops.checks_numbers import check_odd as check_odd
from subquad.ops.checks_numbers import check_positive as check_positive
from subquad.ops.checks_numbers import check_positive_number as check_positive_number


def check_qkv(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, same_k: bool = True) -> None:
    """Require q (B, H, Tq, K), k (B, H, Tk, K), v (B, H, Tk, V): floating, one device, not empty.

    Args:
        q: queries.
        k: keys.
        v: values.
        is_causal: whether Tq must equal Tk, as it must with ``cu_seqlens`` too.
        same_k: whether q and k must have the same last size.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: if a shape, or a device, does not fit.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of a floating dtype, got {x.dtype}")
        if x.dim() != 4:
            raise ValueError(f"{name} must have shape (B, H, T, features), got {tuple(x.shape)}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on the device of q ({q.device}), got {x.device}")
        if 0 in x.shape:
            raise ValueError(f"{name} must have no axis of size 0, got shape {tuple(x.shape)}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"k and v must agree in (B, H, T), got {tuple(k.shape[:3])} and {tuple(v.shape[:3])}"
        )
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(
            f"q and k must agree in (B, H), got {tuple(q.shape[:2])} and {tuple(k.shape[:2])}"
        )
    if same_k and q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must have the same last size, got {q.shape[3]} and {k.shape[3]}")
    if is_causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q and k must have the same length when is_causal or packed, "
            f"got {q.shape[2]} and {k.shape[2]}"
        )


def check_key_mask(key_mask: Tensor | None, keys: Tensor, batch_size: int, seq_len: int) -> None:
    """Require ``key_mask`` to be bool of shape (B, T), True = keep, on the device of ``keys``.

    Raises:
        TypeError: if it is not bool.
        ValueError: if its shape, or its device, is another.
    """
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask must be bool with True = keep, got {key_mask.dtype}")
    if key_mask.shape != (batch_size, seq_len):
        raise ValueError(
            f"key_mask must have shape (B, T) = ({batch_size}, {seq_len}), "
            f"got {tuple(key_mask.shape)}"
        )
    check_same_device("key_mask", key_mask, keys)


def check_log_decay(
    log_decay: Tensor | None, k_shape: torch.Size, key_mask: Tensor | None, *, is_causal: bool
) -> None:
    """Require ``log_decay`` to be (B, H, T) or (B, H, T, K), and at most 0 where it counts.

    Args:
        log_decay: None passes.
        k_shape: shape (B, H, T, K) of the mapped keys.
        key_mask: where it is False, ``log_decay`` may hold anything.
        is_causal: no decay without it.

    Raises:
        TypeError: if it is not floating.
        ValueError: if it does not fit (NaN included).
    """
    if log_decay is None:
        return
    if not is_causal:
        raise ValueError("log_decay needs is_causal=True, got is_causal=False")
    if not log_decay.is_floating_point():
        raise TypeError(f"log_decay must be of a floating dtype, got {log_decay.dtype}")
    if log_decay.shape not in (k_shape[:3], k_shape):
        raise ValueError(
            f"log_decay must have shape (B, H, T) = {tuple(k_shape[:3])} or (B, H, T, K) = "
            f"{tuple(k_shape)}, got {tuple(log_decay.shape)}"
        )
    if key_mask is not None:
        hidden = ~key_mask[:, None] if log_decay.dim() == 3 else ~key_mask[:, None, :, None]
        log_decay = log_decay.masked_fill(hidden, 0)
    _check_at_most_0(log_decay)


def check_step_decay(log_decay: Tensor | None, k_shape: torch.Size) -> None:
    """Require one token's ``log_decay`` to be (B, H) or (B, H, K), and at most 0.

    Raises:
        TypeError: if it is not floating.
        ValueError: if it does not fit (NaN included).
    """
    if log_decay is None:
        return
    if not log_decay.is_floating_point():
        raise TypeError(f"log_decay must be of a floating dtype, got {log_decay.dtype}")
    if log_decay.shape not in (k_shape[:2], k_shape):
        raise ValueError(
            f"log_decay must have shape (B, H) = {tuple(k_shape[:2])} or (B, H, K) = "
            f"{tuple(k_shape)}, got {tuple(log_decay.shape)}"
        )
    _check_at_most_0(log_decay)


def _check_at_most_0(log_decay: Tensor) -> None:
    if torch.compiler.is_compiling() or log_decay.is_meta:
        return
    if not (log_decay <= 0).all():
        raise ValueError(f"log_decay must be at most 0, got {log_decay.max().item()}")


def check_wide(name: str, x: Tensor, *inputs: Tensor) -> None:
    """Require a dtype that holds float32 and each of ``inputs``, so that no sum is rounded.

    Raises:
        TypeError: if ``x`` is narrower.
    """
    needed = torch.float32
    for other in inputs:
        needed = torch.promote_types(needed, other.dtype)
    if torch.promote_types(x.dtype, needed) != x.dtype:
        raise TypeError(f"{name} must be {needed} or wider, got {x.dtype}")


def check_same_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require ``x`` to have the dtype of ``other``, lest it be cast silently.

    Raises:
        TypeError: if it has another.
    """
    if x.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name} ({other.dtype}), got {x.dtype}"
        )


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Require exactly ``shape``, lest ``x`` be broadcast.

    Raises:
        ValueError: if it is another.
    """
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def check_same_device(name: str, x: Tensor, keys: Tensor) -> None:
    """Require ``x`` to be where the keys are.

    Raises:
        ValueError: if it is elsewhere.
    """
    if x.device != keys.device:
        raise ValueError(
            f"{name} must be on the device of the keys ({keys.device}), got {x.device}"
        )


def check_cu_seqlens(
    cu_seqlens: Tensor | None, key_mask: Tensor | None, batch_size: int, seq_len: int
) -> None:
    """Require the borders of packed sequences: 0, ..., T, never falling, and B = 1.

    Raises:
        TypeError: if ``cu_seqlens`` is neither int32 nor int64.
        ValueError: if its shape or its values do not fit, or if ``key_mask`` is given too.
    """
    if cu_seqlens is None:
        return
    if key_mask is not None:
        raise ValueError("cu_seqlens and key_mask must not be given together, got both")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must have shape (sequences + 1,), got {tuple(cu_seqlens.shape)}"
        )
    if batch_size != 1:
        raise ValueError(f"cu_seqlens needs a batch of size 1, got {batch_size}")
    borders = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != seq_len:
        raise ValueError(
            f"cu_seqlens must start with 0 and end with T = {seq_len}, "
            f"got {borders[0]} and {borders[-1]}"
        )
    if any(b < a for a, b in pairwise(borders)):
        raise ValueError(f"cu_seqlens must never fall, got {borders}")


def check_tokens(name: str, x: Tensor, width: int) -> None:
    """Require float tokens (B, T, width), not empty.

    Raises:
        TypeError: if ``x`` is not floating.
        ValueError: if its shape is another.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {x.dtype}")
    if x.dim() != 3 or x.shape[2] != width or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape (B, T, {width}) with B, T >= 1, got {tuple(x.shape)}"
        )


def check_token(name: str, x: Tensor, width: int) -> None:
    """Require one float token per row, (B, width), not empty.

    Raises:
        TypeError: if ``x`` is not floating.
        ValueError: if its shape is another.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != width or len(x) == 0:
        raise ValueError(f"{name} must have shape (B, {width}) with B >= 1, got {tuple(x.shape)}")


def check_state_batch(state_batch: int, batch_size: int) -> None:
    """Require a state of as many rows as there are in the batch.

    Raises:
        ValueError: if they differ.
    """
    if state_batch != batch_size:
        raise ValueError(
            f"state must have the batch size of the tokens ({batch_size}), got {state_batch}"
        )


def check_batch_size(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require ``x`` to have as many rows as ``other``.

    Raises:
        ValueError: if they differ.
    """
    if len(x) != len(other):
        raise ValueError(
            f"{name} must have the batch size of {other_name} ({len(other)}), got {len(x)}"
        )


def check_rows(name: str, x: Tensor, length: int | None = None) -> None:
    """Require one sequence of numbers a row, (B, T) or (B, ``length``).

    Raises:
        ValueError: if the shape is another.
    """
    if x.dim() != 2 or length not in (None, x.shape[1]):
        wanted = "T" if length is None else length
        raise ValueError(f"{name} must have shape (B, {wanted}), got {tuple(x.shape)}")


def check_ids(name: str, ids: Tensor, count: int) -> None:
    """Require whole numbers from 0 to ``count`` - 1, of any shape without an empty axis.

    Raises:
        TypeError: if ``ids`` is not of an integer dtype.
        ValueError: if it is empty or a value is outside.
    """
    if ids.is_floating_point() or ids.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise TypeError(f"{name} must be of an integer dtype, got {ids.dtype}")
    if 0 in ids.shape:
        raise ValueError(f"{name} must have no axis of size 0, got shape {tuple(ids.shape)}")
    if ids.is_meta or torch.compiler.is_compiling():
        return
    if ids.dtype == torch.uint8 and count > 255:
        return  # bytes fit by their dtype, and to look at them would wait for the device
    low, high = torch.stack(torch.aminmax(ids)).tolist()  # one wait for the device, not two
    if low < 0 or high >= count:
        raise ValueError(f"{name} must lie from 0 to {count - 1}, got {low if low < 0 else high}")
