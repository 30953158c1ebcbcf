"""Which native form of FAVOR+, if any, takes a call."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from subquad.kernels import favor_operators
from subquad.kernels.cpu.linear_attention import DTYPES
from subquad.kernels.dispatch import Impl, Reasons, no_reasons, resolve
from subquad.ops.native_linear_attention import cpu_reasons, export_reasons

OVER_ALL_KEYS = favor_operators.ATTEND, favor_operators.ATTEND_BACKWARD


def native_attention(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, impl: Impl) -> Any:
    """Return the operators for FAVOR+ over all keys and its gradients, or None for the torch form.

    Raises:
        TypeError: if ``impl`` is no ``Impl``.
        ValueError: if ``impl`` names a form that cannot take the call.
    """

    forms: dict[Impl, Any] = {
        Impl.TORCH: (None, no_reasons),
        Impl.CPU: (OVER_ALL_KEYS, partial(_attention_reasons, q, k, v, dtype)),
    }
    return resolve("FAVOR+ in both directions", impl, forms, q.device)


def attends_past_natively(
    q: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, ...], impl: Impl
) -> bool:
    """Say whether one C++ call does causal FAVOR+, features and sums; it has no gradient."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *state)):
        return False
    may = impl in (Impl.AUTO, Impl.CPU) and all(x.dtype == torch.float32 for x in state)
    return may and not _attention_reasons(q, k, v, torch.float32)


def maps_natively(x: Tensor, dtype: torch.dtype, impl: Impl) -> bool:
    """Say whether causal features of x are made in C++.

    ``impl`` is that of the sums over them, where it is checked.
    """
    return impl in (Impl.AUTO, Impl.CPU) and not _reasons(x, dtype)


def _attention_reasons(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Reasons:
    found = _reasons(q, dtype)
    if q.dtype != k.dtype:
        found.append(f"it needs q and k of one dtype, not {q.dtype} and {k.dtype}")
    if v.dtype not in DTYPES:
        found.append(f"it does not take v of {v.dtype}")
    return found


def _reasons(x: Tensor, dtype: torch.dtype) -> Reasons:
    found = [*cpu_reasons(x), *export_reasons()]
    if x.dtype not in DTYPES:
        found.append(f"it does not take q and k of {x.dtype}")
    if dtype != torch.float32:
        found.append(f"it computes in float32, not {dtype}")
    return found
