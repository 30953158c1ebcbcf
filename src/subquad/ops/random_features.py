"""Random features phi of the softmax kernel: E[phi(x) . phi(y)] = exp(x . y).

With directions w_1, ..., w_m (see ``ops/random_matrices.py``), u_i = w_i . x and r = |x|^2 / 2:

    POSITIVE       phi(x) = m^(-1/2)   exp(-r) (exp(u_1), ..., exp(u_m))
    HYPERBOLIC     phi(x) = (2m)^(-1/2) exp(-r) (exp(u_1), ..., exp(u_m), exp(-u_1), ..., exp(-u_m))
    TRIGONOMETRIC  phi(x) = m^(-1/2)   exp(+r) (sin(u_1), ..., sin(u_m), cos(u_1), ..., cos(u_m))

All are unbiased for IID and ORTHOGONAL directions. The first two are never negative; estimates by
the third may be, and its variance grows without bound where the kernel goes to 0 (Lemma 2).

Axes: K head width, m directions, M features (m or 2m). Attention at scale s takes x = sqrt(s) q.
Source: Choromanski et al. 2021, equation 5, Lemma 1 (POSITIVE, HYPERBOLIC) and section 2.3.
"""

import enum
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_positive
from subquad.ops.feature_maps import no_autocast, widen
from subquad.ops.random_matrices import Generator, Rows, check_matrix, random_matrix


class Estimator(enum.Enum):
    """Which functions of w . x are the features; see the module's docstring."""

    POSITIVE = "positive"
    HYPERBOLIC = "hyperbolic"
    TRIGONOMETRIC = "trigonometric"


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    """Features of the softmax kernel along fixed directions, a ``FeatureMap``.

    Calling it gives phi(x) as it is, which overflows and underflows; ``performer_attention`` is
    stable at any magnitude and never makes that.

    Args:
        projection: the directions as rows. They get no gradient in ``performer_attention``.
        estimator: which features.

    Raises:
        TypeError: if ``estimator`` is no ``Estimator``.
    """

    projection: Float[Tensor, "m K"]
    estimator: Estimator = Estimator.POSITIVE

    def __post_init__(self) -> None:
        _check_estimator(self.estimator)

    @property
    def nonnegative(self) -> bool:
        """Whether no estimate can be negative."""
        return self.estimator is not Estimator.TRIGONOMETRIC

    def num_features(self, head_dim: int) -> int:
        """Return M: m for POSITIVE, 2m for the others.

        Raises:
            ValueError: if the directions have another width than ``head_dim``.
        """
        check_head_dim(self.projection, head_dim)
        rows = len(self.projection)
        return rows if self.estimator is Estimator.POSITIVE else 2 * rows

    def directions(self, dtype: torch.dtype) -> Float[Tensor, "rows K"]:
        """Return the w of all u = w . x that are mapped: of HYPERBOLIC both signs."""
        w = self.projection.detach().to(dtype)
        return torch.cat([w, -w]) if self.estimator is Estimator.HYPERBOLIC else w

    def log_features(self, x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N M"]:
        """Return log phi(x), in float32 or wider.

        Raises:
            ValueError: if ``estimator`` is TRIGONOMETRIC, whose features have signs.
        """
        if not self.nonnegative:
            raise ValueError(f"estimator must be one of positive features, got {self.estimator}")
        x = widen(x)
        with no_autocast(x):
            u = x @ self.directions(x.dtype).T
        return u - (x.square().sum(-1, keepdim=True) + math.log(u.shape[-1])) / 2

    def __call__(self, x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N M"]:
        """Return phi(x), in float32 or wider."""
        if self.nonnegative:
            return self.log_features(x).exp()
        x = widen(x)
        with no_autocast(x):
            u = x @ self.directions(x.dtype).T
        size = ((x.square().sum(-1, keepdim=True) - math.log(u.shape[-1])) / 2).exp()
        return torch.cat([u.sin(), u.cos()], dim=-1) * size


@dataclass(frozen=True, kw_only=True)
class SoftmaxKernel:
    """Which random features of the softmax kernel to draw: ``SoftmaxKernel().draw(64)``.

    Args:
        estimator: which functions are the features.
        rows: how the directions are drawn.
        regularized: whether all have the length sqrt(K): the kernel SMREG of the paper, a little
            below softmax's, with a smaller variance.

    Raises:
        TypeError: if ``estimator`` is no ``Estimator`` or ``rows`` no ``Rows``.
    """

    estimator: Estimator = Estimator.POSITIVE
    rows: Rows = Rows.ORTHOGONAL
    regularized: bool = False

    def __post_init__(self) -> None:
        _check_estimator(self.estimator)
        check_matrix(1, 1, self.rows)

    def num_directions(self, head_dim: int, num_features: int | None) -> int:
        """Return how many directions ``draw`` draws, having checked that it can."""
        count = default_num_features(head_dim) if num_features is None else num_features
        check_positive("num_features", count)
        check_matrix(count, head_dim, self.rows)
        return count

    def features(self, projection: Float[Tensor, "m K"]) -> RandomFeatures:
        """Return the features along given directions."""
        return RandomFeatures(projection, self.estimator)

    def draw(
        self,
        head_dim: int,
        num_features: int | None = None,
        *,
        generator: Generator = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> RandomFeatures:
        """Draw directions and return the features along them.

        Args:
            head_dim: K.
            num_features: m, by default int(K ln K), at least K; HYPERBOLIC and TRIGONOMETRIC make
                two features of each direction.
            generator: of the CPU; torch's global one by default.
            device: where the directions shall be.
            dtype: of the directions, float32 or float64.

        Raises:
            TypeError: if a number is not an int or ``dtype`` another.
            ValueError: if a number does not fit.
        """
        projection = random_matrix(
            self.num_directions(head_dim, num_features), head_dim, rows=self.rows,
            regularized=self.regularized, generator=generator, device=device, dtype=dtype,
        )  # fmt: skip
        return self.features(projection)


def default_num_features(head_dim: int) -> int:
    """Return int(K ln K), at least K: what theorem 4 asks for at fixed norms and error."""
    check_positive("head_dim", head_dim)
    return max(int(head_dim * math.log(head_dim)), head_dim)


def check_head_dim(projection: Float[Tensor, "m K"], head_dim: int) -> None:
    """Require directions of the width of the heads.

    Raises:
        ValueError: if they have another.
    """
    if projection.dim() != 2 or projection.shape[1] != head_dim:
        raise ValueError(
            f"projection must have shape (m, K) = (m, {head_dim}), got {tuple(projection.shape)}"
        )


def _check_estimator(estimator: object) -> None:
    if not isinstance(estimator, Estimator):
        listed = ", ".join(map(str, Estimator))
        raise TypeError(f"estimator must be one of {listed}, got {estimator!r}")
