"""Feature maps phi: what a query or key becomes before linear attention.

A map is an object that says how many features it makes of ``head_dim`` numbers and whether the
kernel phi(q) . phi(k) it implies can be negative. Maps compute in float32 or wider whatever they
are given. Sources: Katharopoulos et al. 2020, equation 7 (elu + 1) and section 3.2.1 (polynomial).
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Input = Float[Tensor, "... K"]
Features = Float[Tensor, "... M"]


@runtime_checkable
class FeatureMap(Protocol):
    """What linear attention asks of a map; any object with these three will do."""

    @property
    def nonnegative(self) -> bool:
        """Whether phi(q) . phi(k) >= 0 for all q and k, so that the sum over keys can divide."""
        ...

    def num_features(self, head_dim: int) -> int:
        """Return how many features come of ``head_dim`` numbers."""
        ...

    def __call__(self, x: Input) -> Features:
        """Map the last axis; the result is float32 or wider."""
        ...


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if it is float32 or float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off on the device of ``x``; it would narrow a product of float32 tensors."""
    if x.device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@dataclass(frozen=True)
class EluPlusOne:
    """phi(x) = elu(x) + 1 (equation 7): x + 1 above 0, exp(x) below.

    Never 0 in float32 down to x = -103.
    """

    nonnegative = True

    def num_features(self, head_dim: int) -> int:
        """Return ``head_dim``."""
        return head_dim

    def __call__(self, x: Input) -> Features:
        """Map element by element.

        exp(min(x, 0)) + max(x, 0) is the same function without ``elu``'s expm1(x) + 1, which loses
        small values, and without an exp of large x, whose gradient would be 0 * inf.
        """
        x = widen(x)
        return x.clamp(max=0).exp() + x.relu()


@dataclass(frozen=True)
class Relu:
    """phi(x) = max(x, 0); a query or key may become all zero, and its row then gives 0."""

    nonnegative = True

    def num_features(self, head_dim: int) -> int:
        """Return ``head_dim``."""
        return head_dim

    def __call__(self, x: Input) -> Features:
        """Map element by element."""
        return widen(x).relu()


@dataclass(frozen=True)
class SquaredRelu:
    """phi(x) = max(x, 0)^2: sharper than relu."""

    nonnegative = True

    def num_features(self, head_dim: int) -> int:
        """Return ``head_dim``."""
        return head_dim

    def __call__(self, x: Input) -> Features:
        """Map element by element."""
        return widen(x).relu().square()


@dataclass(frozen=True)
class Exp:
    """phi(x) = exp(x), element by element; overflows float32 above 88."""

    nonnegative = True

    def num_features(self, head_dim: int) -> int:
        """Return ``head_dim``."""
        return head_dim

    def __call__(self, x: Input) -> Features:
        """Map element by element."""
        return widen(x).exp()


@dataclass(frozen=True)
class Degree2Polynomial:
    """The exact finite map of the kernel (q . k)^2: all products x_i x_j with i <= j.

    K (K + 1) / 2 features (the pairs i < j weigh sqrt(2)), so linear attention with it needs fewer
    operations than the quadratic form from about N = K^2 / 2 on, or K^2 if that form skips the
    masked half: the one place where the paper's condition N > D^2 applies. The kernel is never
    negative, but the products are: where q and k are nearly orthogonal their sum cancels, and
    rounding may leave a tiny number of either sign where the kernel is 0.
    """

    nonnegative = True

    def num_features(self, head_dim: int) -> int:
        """Return head_dim (head_dim + 1) / 2."""
        return head_dim * (head_dim + 1) // 2

    def __call__(self, x: Input) -> Features:
        """Map the last axis."""
        x = widen(x)
        rows, columns = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
        weight = x.new_ones(len(rows)).masked_fill(rows != columns, math.sqrt(2.0))
        return x[..., rows] * x[..., columns] * weight


@dataclass(frozen=True)
class Identity:
    """phi(x) = x: the kernel q . k can be negative, so it goes with ``normalize=False`` only."""

    nonnegative = False

    def num_features(self, head_dim: int) -> int:
        """Return ``head_dim``."""
        return head_dim

    def __call__(self, x: Input) -> Features:
        """Return ``x`` in float32 or wider."""
        return widen(x)


elu_plus_one = EluPlusOne()
relu = Relu()
squared_relu = SquaredRelu()
exp = Exp()
degree_2_polynomial = Degree2Polynomial()
identity = Identity()


def check_normalize(feature_map: FeatureMap, normalize: bool) -> None:
    """Refuse a normaliser that could vanish or change sign.

    Raises:
        ValueError: if ``normalize`` is asked of a map whose kernel can be negative.
    """
    if normalize and not feature_map.nonnegative:
        raise ValueError(
            f"normalize must be False for a feature map whose kernel can be negative, "
            f"got normalize=True with {type(feature_map).__name__}"
        )
