"""The formulas of the Performer's paper held against draws: equation 8, Theorems 1 and 2.

All is of one pair of vectors at a time, in float64, as a share of SM (or its square). A deviation
is the difference from the formula in standard errors of what was measured.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from subquad.experiments.spec import Json
from subquad.ops.estimator_theory import orthogonal_gain, regularized_ratio, relative_variance
from subquad.ops.random_features import Estimator, RandomFeatures
from subquad.ops.random_matrices import Rows, random_matrix

WIDTH = 16
ANGLES = (0, 45, 90, 135, 180)  # degrees
LENGTHS = (0.5, 1.0)
# The largest |x + y|^2 at which the square of exp(w . (x + y)) has a variance that draws can find.
LARGEST = 1.01
RATIO_WIDTHS, RATIO_W = (16, 64), (0.5, 2.0, 4.0, 8.0)
BOUND_DIRECTIONS = (2, 4, 8, 16)


def check_equation_8(draws: int, seed: int) -> Iterator[Json]:
    """Yield, for estimators and pairs, the mean squared error of one direction and Lemma 2's."""
    w = directions(draws, WIDTH, Rows.IID, seed)
    for length in LENGTHS:
        for angle in ANGLES:
            x, y = pair(length, angle)
            for estimator in Estimator:
                heavy = float((x + y).square().sum()) > LARGEST
                if heavy and estimator is not Estimator.TRIGONOMETRIC:
                    continue
                errors = (estimates(estimator, w, x, y) - 1).square()
                theory = float(relative_variance(x, y, estimator=estimator, num_directions=1))
                what = {"estimator": estimator.value, "length": length, "angle": angle}
                yield what | beside(errors, theory)


def check_theorem_1(draws: int, seed: int) -> Iterator[Json]:
    """Yield, for widths and w = |x + y|^2 / 2, the mean estimate by regularised directions."""
    for width in RATIO_WIDTHS:
        rows = directions(draws, width, Rows.IID, seed, regularized=True)
        for w in RATIO_W:
            x, y = torch.zeros(2, width, dtype=torch.float64)
            x[0] = math.sqrt(2 * w)
            found = estimates(Estimator.HYPERBOLIC, rows, x, y)
            series = float(regularized_ratio(x, y))
            yield {"width": width, "w": w, "bound": 1 - 2 * width ** (-1 / 3)} | beside(
                found, series
            )


def check_theorem_2(draws: int, seed: int) -> Iterator[Json]:
    """Yield, for pairs and numbers of orthogonal directions, the squared error beside its bound."""
    blocks = directions(max(draws // 4, 2) * WIDTH, WIDTH, Rows.ORTHOGONAL, seed)
    for angle in ANGLES[:3]:
        x, y = pair(LENGTHS[0], angle)
        single = estimates(Estimator.POSITIVE, blocks, x, y).view(-1, WIDTH)
        for m in BOUND_DIRECTIONS:
            errors = (single[:, :m].mean(1) - 1).square()
            iid = float(relative_variance(x, y, estimator=Estimator.POSITIVE, num_directions=m))
            bound = iid - float(orthogonal_gain(x, y, num_directions=m))
            yield {"angle": angle, "num_directions": m, "iid": iid} | beside(errors, bound)


def estimates(estimator: Estimator, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the estimate of SM by each direction alone, over SM: (n,)."""
    features, n = RandomFeatures(w, estimator), len(w)
    # The features of one direction stand n apart, and all have the factor 1 / sqrt(n).
    return (features(x) * features(y)).view(-1, n).sum(0) * n / (x @ y).exp()


def directions(
    count: int, width: int, rows: Rows, seed: int, *, regularized: bool = False
) -> Tensor:
    """Draw directions in float64."""
    generator = torch.Generator().manual_seed(seed)
    return random_matrix(
        count, width, rows=rows, regularized=regularized, generator=generator, dtype=torch.float64
    )


def pair(length: float, angle: float | int) -> tuple[Tensor, Tensor]:
    """Return two vectors of ``WIDTH`` numbers and equal length with that angle between them."""
    x, y = torch.zeros(2, WIDTH, dtype=torch.float64)
    x[0] = length
    y[0], y[1] = length * math.cos(math.radians(angle)), length * math.sin(math.radians(angle))
    return x, y


def beside(values: Tensor, theory: float) -> Json:
    """Return the mean of ``values``, its standard error, and how far ``theory`` is from it."""
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values))
    difference = mean - theory
    exact = abs(difference) <= 1e-12 * max(1.0, abs(theory))  # where there is no variance at all
    deviation = 0.0 if exact or not error else difference / error
    return {"measured": mean, "standard_error": error, "theory": theory, "deviation": deviation}
