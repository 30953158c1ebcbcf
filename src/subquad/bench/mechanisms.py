"""The table of attention operators that ``subquad bench attention`` measures.

An operator is a function of (q, k, v, is_causal), in SDPA's layout: q, k (B, H, T, K) and
v (B, H, T, V) to (B, H, T, V). A new one is one more entry in ``mechanisms()``, or, for an operator
of your own, in the dict given to ``measure_attention``.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import (
    linear_attention,
    linear_attention_causal,
    linear_attention_quadratic,
)
from subquad.ops.softmax_attention import softmax_attention, softmax_attention_quadratic

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]

SOFTMAX = "softmax"
TORCH_FORM = "linear-torch"  # the best of its chunk sizes is "the torch form"
CHUNK_SIZES = (32, 64, 128, 256)
OTHER_DIRECTION = "has no"  # begins the reason of a mechanism of the other direction
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def linear_growth(seq_len: int) -> float:
    """Return the relative cost of an operator whose time grows as T."""
    return float(seq_len)


def quadratic_growth(seq_len: int) -> float:
    """Return the relative cost of one whose time grows as T^2 from about 1,000 tokens on."""
    return seq_len * max(1.0, seq_len / 1024)


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One operator and what the benchmark must know about it.

    Args:
        attend: the operator.
        definition: what it computes, in a form that is right by sight; None if it is not checked.
        is_linear: it is linear attention, so the roofline of DESIGN.md applies.
        directions: "causal", "bidirectional" or both.
        cost: relative cost at T, for the estimate of the time left.
        device: "cpu" or "cuda" if it runs there alone.
        check_len: length at which it is held against its definition.
        tolerance: relative error allowed then (default: by dtype).
    """

    attend: Attend
    definition: Attend | None = None
    is_linear: bool = False
    directions: tuple[str, ...] = ("causal", "bidirectional")
    cost: Callable[[int], float] = linear_growth
    device: str | None = None
    check_len: int = 65
    tolerance: float | None = None


def mechanisms() -> dict[str, Mechanism]:
    """Return the operators of this package by name, softmax first."""
    return {
        SOFTMAX: Mechanism(attend=_softmax, definition=_softmax_definition, cost=quadratic_growth),
        **{
            f"{TORCH_FORM}-{size}": Mechanism(
                attend=partial(_linear_chunked, chunk_size=size),
                definition=linear_definition,
                is_linear=True,
                directions=("causal",),
            )
            for size in CHUNK_SIZES
        },
        TORCH_FORM: Mechanism(
            attend=_linear_torch,
            definition=linear_definition,
            is_linear=True,
            directions=("bidirectional",),
        ),
        **_native(),
    }


def select(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the known names that ``names`` mean: "linear" means linear-torch-64 and so on.

    Raises:
        ValueError: if a name means none.
    """
    table, chosen = list(known), []
    for name in names:
        found = [k for k in table if k == name or k.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"mechanisms must be among {', '.join(table)}, got {name!r}")
        chosen += [k for k in found if k not in chosen]
    return chosen


class Verdict(NamedTuple):
    """Why a mechanism is not measured (None: it is), and how far off its definition it is."""

    reason: str | None
    error: float | None


def check_mechanism(
    mechanism: Mechanism, *, is_causal: bool, device: str, dtype: torch.dtype, head_dim: int
) -> Verdict:
    """Say whether it can be measured here; its output is held against its definition."""
    direction = "causal" if is_causal else "bidirectional"
    if direction not in mechanism.directions:
        return Verdict(f"{OTHER_DIRECTION} {direction} form", None)
    if mechanism.device is not None and not device.startswith(mechanism.device):
        return Verdict(f"runs on {mechanism.device} only", None)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, mechanism.check_len, head_dim, generator=generator) for _ in range(3)
    )
    q, k, v = (x.to(device, dtype) for x in (q, k, v))
    try:
        found = mechanism.attend(q, k, v, is_causal)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        NotImplementedError,
        ImportError,
        AssertionError,
    ) as error:
        return Verdict(f"cannot run: {' '.join(str(error).split())}", None)
    if mechanism.definition is None:
        return Verdict(None, None)
    expected = mechanism.definition(q.double(), k.double(), v.double(), is_causal)
    wrong = relative_error(found, expected)
    if not wrong <= (mechanism.tolerance or TOLERANCE.get(dtype, 1e-9)):
        return Verdict(f"is wrong: its output is {wrong:.1e} off its definition", wrong)
    return Verdict(None, wrong)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of ``expected``, in float64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def linear_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Compute linear attention with elu + 1 by its definition."""
    return linear_attention_quadratic(elu_plus_one(q), elu_plus_one(k), v, is_causal=is_causal)


def _softmax(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return softmax_attention(q, k, v, is_causal=is_causal)


def _softmax_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return softmax_attention_quadratic(q, k, v, is_causal=is_causal)


def _linear_chunked(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, chunk_size: int) -> Tensor:
    del is_causal  # the chunked form is causal
    options = _torch_option(linear_attention_causal)
    return linear_attention_causal(
        elu_plus_one(q), elu_plus_one(k), v, chunk_size=chunk_size, **options
    )


def _linear_torch(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return linear_attention(q, k, v, is_causal=is_causal, **_torch_option(linear_attention))


def _torch_option(function: Callable[..., Any]) -> dict[str, Any]:
    """Name the torch form where the function lets one choose; without kernels it is the only one.

    A form named explicitly never falls back, so what is measured is what is named.
    """
    impl = _impl()
    if impl is None or "impl" not in inspect.signature(function).parameters:
        return {}
    return {"impl": impl.TORCH}


def _native() -> dict[str, Mechanism]:
    """Return linear attention by each native kernel that this version has."""
    impl = _impl()
    if impl is None or "impl" not in inspect.signature(linear_attention).parameters:
        return {}

    def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, kernel: Any) -> Tensor:
        options: Any = {"impl": kernel}
        return linear_attention(q, k, v, is_causal=is_causal, **options)

    return {
        f"linear-{name}": Mechanism(
            attend=partial(attend, kernel=getattr(impl, name.upper())),
            definition=linear_definition,
            is_linear=True,
            device=device,
        )
        for name, device in (("cpu", "cpu"), ("triton", "cuda"))
    }


def _impl() -> Any:
    try:
        from subquad.kernels import dispatch  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return getattr(dispatch, "Impl", None)
