"""Generalised attention: any kernel function f in place of softmax's exponential.

    phi(x) = f(x) + eps            or, projected,            phi(x) = f(W x) + eps

The paper's name "Performer" without more means f = relu. Neither q nor k is scaled, and there is no
m^(-1/2): with a normaliser both would cancel but for eps.

Axes: K head width, m directions (rows of W), M features: K, or m where projected.
Source: Choromanski et al. 2021, sections 2.2 and D.3; defaults as their released code has them
(eps 1e-3, no projection; the paper's text lists 256 projected features).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import check_positive
from subquad.ops.feature_maps import elu_plus_one, no_autocast, widen
from subquad.ops.random_features import check_head_dim, default_num_features
from subquad.ops.random_matrices import Generator, Rows, check_matrix, random_matrix


@dataclass(frozen=True)
class KernelFunction:
    """f, element by element, with its name and whether f(u) >= 0 for all u."""

    name: str
    f: Callable[[Tensor], Tensor]
    nonnegative: bool

    def __call__(self, u: Tensor) -> Tensor:
        """Return f(u)."""
        return self.f(u)


def _requ(u: Tensor) -> Tensor:
    return u.relu().square()


# Those the paper compares, and those the released code registers. A negative one can be had without
# a normaliser only.
KERNEL_FUNCTIONS: dict[str, KernelFunction] = {
    function.name: function
    for function in (
        KernelFunction("relu", torch.relu, True),
        KernelFunction("requ", _requ, True),
        KernelFunction("exp", torch.exp, True),
        KernelFunction("abs", torch.abs, True),
        KernelFunction("sigmoid", torch.sigmoid, True),
        KernelFunction("elu_plus_one", elu_plus_one, True),
        KernelFunction("gelu", F.gelu, False),
        KernelFunction("tanh", torch.tanh, False),
        KernelFunction("cos", torch.cos, False),
        KernelFunction("sin", torch.sin, False),
        KernelFunction("identity", torch.clone, False),
    )
}
RELU = KERNEL_FUNCTIONS["relu"]


@dataclass(frozen=True, eq=False)
class GeneralizedFeatures:
    """phi(x) = f(W x) + eps, or f(x) + eps where ``projection`` is None: a ``FeatureMap``.

    Args:
        projection: W, or None.
        function: f.
        eps: added to each feature; 0 or more.

    Raises:
        ValueError: if ``eps`` is negative or not finite.
    """

    projection: Float[Tensor, "m K"] | None = None
    function: KernelFunction = RELU
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    @property
    def nonnegative(self) -> bool:
        """Whether no product of features can be negative."""
        return self.function.nonnegative

    def num_features(self, head_dim: int) -> int:
        """Return M.

        Raises:
            ValueError: if W has another width than ``head_dim``.
        """
        if self.projection is None:
            return head_dim
        check_head_dim(self.projection, head_dim)
        return len(self.projection)

    def __call__(self, x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N M"]:
        """Map the last axis, in float32 or wider."""
        x = widen(x)
        if self.projection is not None:
            with no_autocast(x):
                x = x @ self.projection.detach().to(x.dtype).T
        return self.function(x) + self.eps


@dataclass(frozen=True, kw_only=True)
class GeneralizedKernel:
    """Which generalised features to draw: ``GeneralizedKernel().draw(64)``.

    Args:
        function: f.
        projected: whether x is first multiplied by random directions.
        rows: how the directions are drawn.
        regularized: whether all have the length sqrt(K).
        eps: added to each feature.

    Raises:
        TypeError: if ``rows`` is no ``Rows``.
        ValueError: if ``eps`` is negative or not finite.
    """

    function: KernelFunction = RELU
    projected: bool = True
    rows: Rows = Rows.ORTHOGONAL
    regularized: bool = False
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        check_matrix(1, 1, self.rows)

    def num_directions(self, head_dim: int, num_features: int | None) -> int:
        """Return how many directions ``draw`` draws (0 if not projected), having checked it.

        Raises:
            TypeError: if a number is not an int.
            ValueError: if a number does not fit, or ``num_features`` is given but not projected.
        """
        check_positive("head_dim", head_dim)
        if not self.projected:
            if num_features is not None:
                raise ValueError(
                    f"num_features must be None for features that are not projected, "
                    f"got {num_features}"
                )
            return 0
        count = default_num_features(head_dim) if num_features is None else num_features
        check_positive("num_features", count)
        check_matrix(count, head_dim, self.rows)
        return count

    def features(self, projection: Float[Tensor, "m K"] | None) -> GeneralizedFeatures:
        """Return the features along given directions, or of x itself."""
        return GeneralizedFeatures(projection, self.function, self.eps)

    def draw(
        self,
        head_dim: int,
        num_features: int | None = None,
        *,
        generator: Generator = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> GeneralizedFeatures:
        """Draw directions, if projected, and return the features; as ``SoftmaxKernel.draw``."""
        count = self.num_directions(head_dim, num_features)
        if not count:
            return self.features(None)
        projection = random_matrix(
            count, head_dim, rows=self.rows, regularized=self.regularized, generator=generator,
            device=device, dtype=dtype,
        )  # fmt: skip
        return self.features(projection)


def _check_eps(eps: float) -> None:
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a finite number of at least 0, got {eps}")
