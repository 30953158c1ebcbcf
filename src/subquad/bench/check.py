"""No time without a right answer: an operator's outputs and gradients beside its definition's."""

from typing import NamedTuple

import torch
from torch import Tensor

from subquad.bench.mechanisms import Attend, Mechanism

OTHER_DIRECTION = "has no"  # begins the reason of a mechanism of the other direction
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# What an operator, a foreign one too, may raise where it does not work.
ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError, AssertionError)
PARTS = ("output", "gradient of q", "gradient of k", "gradient of v")


class Verdict(NamedTuple):
    """Why a mechanism is not measured (None: it is), and how far off its definition it is.

    ``error`` is the largest of the relative errors of its output and its three gradients.
    """

    reason: str | None
    error: float | None


def check_mechanism(
    mechanism: Mechanism, *, is_causal: bool, device: str, dtype: torch.dtype, head_dim: int
) -> Verdict:
    """Say whether it can be measured here.

    Its outputs, with and without a graph for the backward pass, and its gradients are held against
    those of the definition in float64, at ``mechanism.check_len``.
    """
    direction = "causal" if is_causal else "bidirectional"
    if direction not in mechanism.directions:
        return Verdict(f"{OTHER_DIRECTION} {direction} form", None)
    if mechanism.device is not None and not device.startswith(mechanism.device):
        return Verdict(f"runs on {mechanism.device} only", None)
    drawn = _draw(mechanism.check_len, head_dim)
    *qkv, upstream = (x.to(device, dtype) for x in drawn)
    try:
        with torch.no_grad():
            alone = mechanism.attend(qkv[0], qkv[1], qkv[2], is_causal)
        found = _output_and_gradients(mechanism.attend, qkv, upstream, is_causal)
    except ERRORS as error:
        return Verdict(f"cannot run: {' '.join(str(error).split())}", None)
    if mechanism.definition is None:
        return Verdict(None, None)
    wide = [x.double() for x in qkv]
    expected = _output_and_gradients(mechanism.definition, wide, upstream.double(), is_causal)
    errors = [relative_error(alone, expected[0])]
    errors += [relative_error(f, e) for f, e in zip(found, expected, strict=True)]
    allowed = mechanism.tolerance or TOLERANCE.get(dtype, 1e-9)
    for part, wrong in zip((PARTS[0], *PARTS), errors, strict=True):
        if not wrong <= allowed:
            return Verdict(f"is wrong: its {part} is {wrong:.1e} off its definition", wrong)
    return Verdict(None, max(errors))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of ``expected``, in float64.

    Where ``expected`` is 0 all over, the norm of ``found``.
    """
    expected = expected.double()
    norm = float(expected.norm())
    return float((found.double() - expected).norm()) / (norm or 1.0)


def _draw(seq_len: int, head_dim: int) -> list[Tensor]:
    """Return q, k, v and what is multiplied with the output before it is summed."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, seq_len, head_dim, generator=generator) for _ in range(4)]


def _output_and_gradients(
    attend: Attend, qkv: list[Tensor], upstream: Tensor, is_causal: bool
) -> list[Tensor]:
    """Return y and the gradients of q, k and v; 0 where y does not depend on one."""
    q, k, v = (x.clone().requires_grad_() for x in qkv)
    y = attend(q, k, v, is_causal)
    grads: tuple[Tensor | None, ...] = torch.autograd.grad(
        y, (q, k, v), upstream.to(y.dtype), allow_unused=True
    )
    pairs = zip(grads, (q, k, v), strict=True)
    return [y.detach(), *(torch.zeros_like(x) if g is None else g for g, x in pairs)]
