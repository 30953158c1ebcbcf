"""Which native form computes a call of linear attention, and the call itself.

The forms: ``kernels/cpu`` (C++) and ``kernels/triton``. They take queries and keys mapped already,
or map them by elu + 1 on the way. Axes: B batch, H heads, T time, K features, V value size.
"""

import os
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.kernels.cpu import library
from subquad.kernels.dispatch import Impl, Reasons, no_reasons, resolve
from subquad.kernels.operators import OPERATORS, STEP_OPERATORS
from subquad.ops.checks import check_same_device
from subquad.ops.feature_maps import EluPlusOne, FeatureMap
from subquad.ops.linear_state import LinearState
from subquad.ops.rotation import Rotation

DTYPES = {
    Impl.CPU: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}
TRITON_WIDTHS = (16, 256)


class Request(NamedTuple):
    """What decides which form can take a call."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: LinearState | None = None
    log_decay: Tensor | None = None
    rotation: Rotation | None = None
    chunk_size: int | None = None
    is_causal: bool = True
    feature_map: FeatureMap | None = None  # None: q and k are mapped already

    @property
    def maps_by_elu(self) -> bool:
        """Whether the kernel shall map by elu + 1 on the way."""
        return type(self.feature_map) is EluPlusOne


def native_operator(request: Request, impl: Impl) -> Any:
    """Return the operator of torch that takes this call, or None for the torch form.

    Raises:
        TypeError: if ``impl`` is no ``Impl``.
        ValueError: if ``impl`` names a form that cannot take the call.
    """
    _check_devices(request)
    forms: dict[Impl, Any] = {Impl.TORCH: (None, no_reasons)}
    for x, operator in OPERATORS.items():
        forms[x] = (operator, partial(_reasons, x, request))
    return resolve("linear attention", impl, forms, request.q.device)


def takes_packed(operator: Any) -> bool:
    """Say whether the operator (or None) takes packed sequences by ``cu_seqlens``."""
    return operator is OPERATORS[Impl.TRITON]


def native_step(request: Request, impl: Impl) -> Any:
    """Return the operator that takes one token in place, or None for the torch form.

    q and k are (B, H, K), v is (B, H, V); errors as ``native_operator``. Gradients need the torch
    form, which AUTO takes where they are asked for.
    """
    _check_devices(request)
    forms: dict[Impl, Any] = {Impl.TORCH: (None, no_reasons)}
    for x, operator in STEP_OPERATORS.items():
        forms[x] = (operator, partial(_step_reasons, x, request))
    return resolve("a step of linear attention", impl, forms, request.q.device)


def run_native(
    operator: Any,
    q: Float[Tensor, "B H Tq K"],
    k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    state: LinearState | None = None,
    *,
    rotation: Rotation | None = None,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    log_decay: Float[Tensor, "B H Tk"] | None = None,
    maps_by_elu: bool,
    normalize: bool,
    is_causal: bool = True,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
) -> tuple[Float[Tensor, "B H Tq V"], LinearState]:
    """Return the outputs in the dtype of v, and the state behind the last key.

    ``cu_seqlens`` is for an operator that ``takes_packed``; the state then has a row a sequence.
    """
    cos, sin = (None, None) if rotation is None else rotation
    kv, k_sum = (None, None) if state is None else state
    arguments = (q, k, v, log_decay, key_mask, cos, sin, kv, k_sum, maps_by_elu, normalize)
    # The kernel reads the borders on the host: one wait here, none in the backward pass.
    borders = None if cu_seqlens is None else cu_seqlens.cpu()
    y, _, kv, k_sum = operator(*arguments, is_causal, borders)
    return y, LinearState(kv, k_sum)


def _reasons(impl: Impl, request: Request) -> Reasons:
    """Say everything that keeps a native form from this call."""
    q, k, v, state, log_decay, rotation, chunk_size, is_causal, feature_map = request
    reasons = cpu_reasons(q) if impl is Impl.CPU else _triton_reasons(q, v, is_causal)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES[impl]:
            reasons.append(f"it does not take {name} of {x.dtype}")
    if q.dtype != k.dtype:
        reasons.append(f"it needs q and k of one dtype, not {q.dtype} and {k.dtype}")
    if feature_map is not None and not request.maps_by_elu:
        reasons.append(f"of maps it knows elu + 1 alone, not {type(feature_map).__name__}")
    if state is not None and any(x.dtype != torch.float32 for x in state):
        reasons.append(f"its state is float32, not {state.kv.dtype} and {state.k_sum.dtype}")
    if rotation is not None and torch.is_grad_enabled() and any(x.requires_grad for x in rotation):
        reasons.append("it gives a rotation no gradient")
    if log_decay is not None and log_decay.dim() == 4:
        reasons.append("it takes one log_decay a token, not one a feature")
    if chunk_size is not None:
        reasons.append(f"it chooses chunks itself, but chunk_size={chunk_size} is given")
    return reasons + export_reasons()


def _check_devices(request: Request) -> None:
    """Require one device: a kernel takes addresses, and another device's would be followed."""
    others: dict[str, Tensor | None] = {"v": request.v, "log_decay": request.log_decay}
    if request.rotation is not None:
        others["rotation.cos"], others["rotation.sin"] = request.rotation
    for name, x in others.items():
        if x is not None:
            check_same_device(name, x, request.q)


def _step_reasons(impl: Impl, request: Request) -> Reasons:
    reasons = _reasons(impl, request)
    state = () if request.state is None else request.state
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*request[:3], *state)):
        reasons.append("it writes into the state, which a gradient cannot pass")
    if not all(x.is_contiguous() for x in state):
        reasons.append("its state must lie in memory in one piece")
    return reasons


def cpu_reasons(q: Tensor) -> Reasons:
    """Say why the C++ kernels are not there, or not for this device."""
    reasons = []
    if (missing := _why_no_library()) is not None:
        reasons.append(f"there are no native kernels, for {missing}")
    if q.device.type != "cpu":
        reasons.append(f"it takes tensors on the CPU, not on {q.device}")
    return reasons


def _triton_reasons(q: Tensor, v: Tensor, is_causal: bool) -> Reasons:
    reasons = []
    if (missing := _why_no_triton()) is not None:
        reasons.append(missing)
    if q.device.type != "cuda" and not _interprets():
        reasons.append(f"it takes tensors on a GPU, not on {q.device}")
    if not is_causal:
        reasons.append("it is causal")
    narrow, wide = TRITON_WIDTHS
    for name, width in (("K", q.shape[-1]), ("V", v.shape[-1])):
        if not narrow <= width <= wide:
            reasons.append(f"it takes {name} from {narrow} to {wide}, not {width}")
    return reasons


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_no_library() -> str | None:
    return library.why_not()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_no_triton() -> str | None:
    from importlib.util import find_spec

    return None if find_spec("triton") else "the package triton is not installed"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def export_reasons() -> Reasons:
    """Say why no native form is to be had now, if it is so."""
    return ["torch.export keeps operators of torch alone"] if _is_exporting() else []


def _is_exporting() -> bool:
    # In torch 2.6 the function has no name in torch.compiler yet.
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return bool(is_exporting()) if is_exporting else False
