"""What the contract's checks share: the mixer under test, fixed draws, and one way to compare.

A comparison is norm-relative and per tensor: |actual - expected| / |expected|. Tensors compared
together (all gradients of one loss) have a floor under their norms, a tenth of the largest among
them, since a gradient that is 0 in exact arithmetic is only rounding and has no norm of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
FLOOR = 0.1
# Attributes by which a mixer claims less, True unless it says otherwise, and what is then missing.
CAUSAL_CLAIMS = {
    "has_state": "a state to go on from",
    "is_past_fixed": "outputs that no later token changes (only gradients are looked at)",
}
CLAIMS = {"sees_itself": "that a token sees itself"}
# How far parameters are moved from where the constructor puts them: biases of 0 would hide faults.
STIR = 0.1


class MixerFault(AssertionError):
    """A mixer breaks the contract; ``check`` names the check that found it."""

    def __init__(self, check: str, fault: str) -> None:
        super().__init__(f"{check}: {fault}")
        self.check = check


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check that was passed.

    ``deviation`` is the largest norm-relative one that it met; None where it compares nothing.
    """

    name: str
    rule: str
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class MixerReport:
    """What ``check_mixer`` checked; ``print`` it for a table."""

    mixer: str
    is_causal: bool
    dtype: torch.dtype
    tolerance: float
    results: tuple[CheckResult, ...]
    not_claimed: tuple[str, ...] = ()

    def __str__(self) -> str:
        direction = "causal" if self.is_causal else "bidirectional"
        width = max(len(result.name) for result in self.results)
        lines = [
            f"{self.mixer}, {direction}, {self.dtype}: {len(self.results)} checks passed "
            f"(tolerance {self.tolerance:.0e}; largest deviation in front of each)"
        ]
        for result in self.results:
            deviation = "" if result.deviation is None else f"{result.deviation:.1e}"
            lines.append(f"  {deviation:>7}  {result.name:<{width}}  {result.rule}")
        lines += [f"  not claimed by this mixer: {claim}" for claim in self.not_claimed]
        return "\n".join(lines)


class Probe:
    """A mixer in evaluation mode with stirred parameters, and what a check needs to judge it."""

    def __init__(
        self, build: Callable[[], nn.Module], *, d_model: int, dtype: torch.dtype, seed: int
    ) -> None:
        self.build, self.d_model, self.dtype = build, d_model, dtype
        self.tolerance = TOLERANCES[dtype]
        self.check = "build"
        self.deviation: float | None = None
        self.mixer: Any = build().to(dtype).eval()
        tensors = [*self.mixer.parameters(), *self.mixer.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self._random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.mixer.parameters():
                parameter.add_(STIR * self.draw(*parameter.shape))

    @property
    def large(self) -> float:
        """A number to plant where nothing may see it: 1e30, or what leaves fp16 room to project."""
        return float(min(1e30, torch.finfo(self.dtype).max / (8 * self.d_model)))

    def claims(self, name: str) -> bool:
        """Return whether the mixer claims what ``subquad.layers.mixer`` calls by that name."""
        return bool(getattr(self.mixer, name, True))

    def not_claimed(self, *, is_causal: bool) -> tuple[str, ...]:
        """Return in words what the mixer does not claim."""
        possible = {**(CAUSAL_CLAIMS if is_causal else {}), **CLAIMS}
        return tuple(words for name, words in possible.items() if not self.claims(name))

    def draw(self, *shape: int) -> Tensor:
        """Return fixed normal draws; a generator of its own keeps checks apart from the mixer's."""
        x = torch.randn(shape, generator=self._random, dtype=torch.float64)
        return x.to(self.device, self.dtype)

    def mask(self, rows: list[list[bool]]) -> Tensor:
        """Return a key_mask."""
        return torch.tensor(rows, device=self.device)

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters that have gradients, by name."""
        return {n: p for n, p in self.mixer.named_parameters() if p.requires_grad}

    def gradients(self, loss: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of ``inputs`` and of all parameters, zeros where unused."""
        at = {**inputs, **self.parameters()}
        grads = torch.autograd.grad(
            loss, list(at.values()), allow_unused=True, materialize_grads=True
        )
        return {f"the gradient of {name}": grad for name, grad in zip(at, grads, strict=True)}

    def fail(self, fault: str) -> None:
        """Raise a ``MixerFault`` in the name of the current check."""
        raise MixerFault(self.check, fault)

    def require(self, condition: bool, fault: str) -> None:
        """Fail unless ``condition``."""
        if not condition:
            self.fail(fault)

    def finite(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Fail if a tensor holds NaN or an infinity."""
        for name, x in tensors.items():
            self.require(bool(torch.isfinite(x).all()), f"{name} is not finite {when}")

    def same(self, actual: Tensor, expected: Tensor, fault: str) -> None:
        """Fail unless both tensors are equal to the last bit (0 and -0 count as equal)."""
        self.deviation = self.deviation or 0.0
        equal = actual.shape == expected.shape and bool((actual == expected).all())
        self.require(equal, fault)

    def close(
        self, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], when: str
    ) -> None:
        """Fail unless each tensor is near its namesake; see the module's docstring."""
        norms = {name: float(x.detach().double().norm()) for name, x in expected.items()}
        floor = max(FLOOR * max(norms.values()), torch.finfo(torch.float64).tiny)
        for name, x in expected.items():
            y = actual[name]
            shapes = f"{name} has shape {tuple(y.shape)}, expected {tuple(x.shape)} {when}"
            self.require(y.shape == x.shape, shapes)
            difference = float((y.detach().double() - x.detach().double()).norm())
            deviation = difference / max(norms[name], floor)
            fault = f"{name} is off by {deviation:.1e} of its norm {when}"
            self.require(deviation <= self.tolerance, fault)
            self.deviation = max(self.deviation or 0.0, deviation)

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Give a check its name, and turn what the mixer itself raises into a fault."""
        self.check, self.deviation = name, None
        try:
            yield
        except MixerFault:
            raise
        except Exception as error:
            # The first paragraph: gradcheck adds whole Jacobians, which stay in the cause.
            said = str(error).partition("\n\n")[0]
            raise MixerFault(name, f"it raised {type(error).__name__}: {said}") from error
