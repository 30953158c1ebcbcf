"""Which native form, if any, computes an operator: asked for by name, or by the tensors' device.

A function's name says the mathematics, ``impl`` says the machine. An operator hands ``resolve`` its
forms, each with a function that gives the reasons why it cannot take this call. An explicit one
never falls back.
"""

import enum
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch


class Impl(enum.Enum):
    """Where an operator is computed.

    AUTO goes by the tensors' device: a CUDA tensor to TRITON, a CPU tensor to the C++ library if
    this installation built it; to TORCH whatever these do not take (``subquad info`` says why).
    """

    AUTO = "auto"
    TORCH = "torch"
    CPU = "cpu"
    TRITON = "triton"


Form = TypeVar("Form")
Reasons = list[str]


def check_impl(impl: object) -> None:
    """Require an ``Impl``.

    Raises:
        TypeError: if it is something else, a string for instance.
    """
    if not isinstance(impl, Impl):
        raise TypeError(f"impl must be an Impl, got {type(impl).__name__} {impl!r}")


def no_reasons() -> Reasons:
    """Return none: what TORCH has against a call."""
    return []


def resolve(
    operator: str,
    impl: Impl,
    forms: Mapping[Impl, tuple[Form, Callable[[], Reasons]]],
    device: torch.device,
) -> Form:
    """Return the form to call.

    Args:
        operator: its name, for messages.
        impl: what the caller asked for.
        forms: by implementation, each with what gives the reasons against it here; it is asked
            only where it matters. TORCH takes any call.
        device: of the tensors; AUTO looks at nothing else but the reasons.

    Raises:
        TypeError: if ``impl`` is no ``Impl``.
        ValueError: if ``impl`` names a form that does not exist or cannot take this call, with
            every reason.
    """
    check_impl(impl)
    if impl is Impl.AUTO:
        native = Impl.TRITON if device.type == "cuda" else Impl.CPU
        fits = native in forms and not forms[native][1]()
        return forms[native if fits else Impl.TORCH][0]
    reasons = forms[impl][1]() if impl in forms else [f"{operator} has no such form"]
    if reasons:
        raise ValueError(
            f"impl must be a form that can compute {operator} here, "
            f"got {impl}: {'; '.join(reasons)}"
        )
    return forms[impl][0]
