"""What theory says of random features: variances, and the ratio of the regularised kernel.

All of one estimate phi(x) . phi(y) of SM = exp(x . y), divided by SM (or by its square), for then
only two distances are left:

    s = |x + y|^2        t = |x - y|^2

    Lemma 2, IID directions           POSITIVE       MSE / SM^2 = (exp(s) - 1) / m
                                      HYPERBOLIC     MSE / SM^2 = (cosh(s) - 1) / m
                                      TRIGONOMETRIC  MSE / SM^2 = (cosh(t) - 1) / m
    Theorem 2, ORTHOGONAL, m <= K     POSITIVE       smaller by at least
                                          2 (m - 1) / (m (K + 2)) (1 - exp(-s / 2))^2
    Theorem 1, regularised            SMREG / SM = exp(-w) sum_k w^k / k! f_k,    w = s / 2,
                                      f_k = K^k / (K (K + 2) ... (K + 2k - 2))

So POSITIVE is exact where x = -y and TRIGONOMETRIC where x = y, and both get worse exponentially
with the square of a distance. Attention at scale c takes x = sqrt(c) q, y = sqrt(c) k.

Axes: K head width, m directions.
Source: Choromanski et al. 2021, equation 8 (Lemma 2), Theorems 1 and 2; the quotients are ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_positive
from subquad.ops.random_features import Estimator


def relative_variance(
    x: Float[Tensor, "*#N K"],
    y: Float[Tensor, "*#N K"],
    *,
    estimator: Estimator,
    num_directions: int,
) -> Float[Tensor, "..."]:
    """Return MSE / SM^2 of Lemma 2, in float64; infinite where float64 cannot hold it.

    Args:
        x: already scaled; its shape and that of ``y`` are broadcast.
        y: as ``x``.
        estimator: which features.
        num_directions: m, of which HYPERBOLIC and TRIGONOMETRIC make 2m features.

    Raises:
        TypeError: if ``num_directions`` is not an int.
        ValueError: if it is below 1.
    """
    check_positive("num_directions", num_directions)
    x, y = x.double(), y.double()
    if estimator is Estimator.POSITIVE:
        return (x + y).square().sum(-1).expm1() / num_directions
    z = x + y if estimator is Estimator.HYPERBOLIC else x - y
    # cosh(a) - 1, without the loss of digits where a is small.
    return 2 * (z.square().sum(-1) / 2).sinh().square() / num_directions


def orthogonal_gain(
    x: Float[Tensor, "*#N K"], y: Float[Tensor, "*#N K"], *, num_directions: int
) -> Float[Tensor, "..."]:
    """Return by how much ORTHOGONAL directions lower MSE / SM^2 of POSITIVE, at least (Theorem 2).

    Raises:
        TypeError: if ``num_directions`` is not an int.
        ValueError: if it is below 1 or above K, where the theorem says nothing.
    """
    check_positive("num_directions", num_directions)
    width = x.shape[-1]
    if num_directions > width:
        raise ValueError(f"num_directions must be at most K = {width}, got {num_directions}")
    s = (x.double() + y.double()).square().sum(-1)
    factor = 2 * (num_directions - 1) / (num_directions * (width + 2))
    return factor * torch.expm1(-s / 2).square()


def regularized_ratio(x: Float[Tensor, "*#N K"], y: Float[Tensor, "*#N K"]) -> Float[Tensor, "..."]:
    """Return SMREG / SM, what regularised directions estimate in place of 1; in float64."""
    half_width = x.shape[-1] / 2
    w = ((x.double() + y.double()).square().sum(-1) / 2).unsqueeze(-1)
    # The terms are largest below k = w and fall faster than those of exp(w).
    largest = float(w.max()) if w.numel() else 0.0
    k = torch.arange(int(largest + 12 * largest**0.5) + 40, dtype=w.dtype, device=w.device)
    half = torch.tensor(half_width, dtype=w.dtype, device=w.device)
    log_f = k * half.log() + half.lgamma() - (half + k).lgamma()
    log_terms = torch.xlogy(k, w) - (k + 1).lgamma() + log_f
    return (log_terms.logsumexp(-1) - w.squeeze(-1)).exp()
