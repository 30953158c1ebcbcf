"""One head's exact softmax attention, and the estimate of it by random features beside theory.

Axes: T tokens (Tq queries, Tk keys), K width, M features.
Source: Choromanski et al. 2021, "Rethinking Attention with Performers", equations 4 and 8.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.bench.approximation_options import ApproximationOptions
from subquad.ops.estimator_theory import orthogonal_gain, relative_variance
from subquad.ops.random_features import Estimator, RandomFeatures


class Head(NamedTuple):
    """One head's scaled queries x and keys y, its values, and its softmax matrix P = exp(log_p)."""

    x: Tensor  # (Tq, K)
    y: Tensor  # (Tk, K)
    v: Tensor | None
    log_total: Tensor  # (Tq, 1): log of the sums that P is divided by
    p: Tensor  # (Tq, Tk)
    seen: Tensor  # (Tq, Tk), bool


def softmax_heads(
    q: Tensor, k: Tensor, v: Tensor | None, options: ApproximationOptions
) -> Iterator[Head]:
    """Yield each head of (B, H, T, ...) with its exact attention."""
    scale = q.shape[3] ** -0.5 if options.scale is None else options.scale
    num_queries, num_keys = q.shape[2], k.shape[2]
    count = min(num_queries, options.max_queries)
    chosen = torch.linspace(0, num_queries - 1, count, dtype=torch.float64).round().long()
    seen = torch.ones(count, num_keys, dtype=torch.bool)
    if options.is_causal:
        seen = torch.arange(num_keys) <= chosen.unsqueeze(1)
    q, k = q.flatten(0, 1) * math.sqrt(scale), k.flatten(0, 1) * math.sqrt(scale)
    values: Sequence[Tensor | None] = [None] * len(q) if v is None else list(v.flatten(0, 1))
    for x, y, value in zip(q[:, chosen], k, values, strict=True):
        scores = (x @ y.T).masked_fill(~seen, -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        yield Head(x, y, value, total, (scores - total).exp(), seen)


def kernel_estimate(head: Head, features: RandomFeatures) -> Tensor:
    """Return phi(x_i) . phi(y_j) over the exact sum of row i, (Tq, Tk), 0 where not seen."""
    if features.nonnegative:
        log_x, log_y = features.log_features(head.x), features.log_features(head.y)
        top_x, top_y = log_x.amax(-1, keepdim=True), log_y.amax(-1, keepdim=True)
        products = (log_x - top_x).exp() @ (log_y - top_y).exp().T
        sizes = top_x + top_y.T
    else:
        w = features.directions(head.x.dtype)
        waves = [torch.cat([u.sin(), u.cos()], -1) for u in (head.x @ w.T, head.y @ w.T)]
        products = waves[0] @ waves[1].T / len(w)
        sizes = (head.x.square().sum(-1, keepdim=True) + head.y.square().sum(-1)) / 2
    return (products * (sizes - head.log_total).exp()).masked_fill(~head.seen, 0)


def iid_share(heads: Sequence[Head], estimator: Estimator) -> float:
    """Return the share of P's squared norm that Lemma 2 gives for ``kernel_estimate`` at m = 1."""

    def error(x: Tensor, y: Tensor) -> Tensor:
        return relative_variance(x, y, estimator=estimator, num_directions=1)

    return _share(heads, error)


def theorem_2_share(heads: Sequence[Head], num_directions: int) -> float:
    """Return the bound on that share for orthogonal positive features, m <= K."""

    def bound(x: Tensor, y: Tensor) -> Tensor:
        iid = relative_variance(x, y, estimator=Estimator.POSITIVE, num_directions=num_directions)
        return iid - orthogonal_gain(x, y, num_directions=num_directions)

    return _share(heads, bound)


def _share(heads: Sequence[Head], error: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the mean of ``error``, a share of each kernel value's square, weighted by P^2."""
    total = norm = 0.0
    for head in heads:
        squares = head.p.square()
        for x, row in zip(head.x, squares, strict=True):  # row by row: (Tk, K) at once, no more
            total += float(torch.where(row > 0, error(x, head.y) * row, 0).sum())
        norm += float(squares.sum())
    return total / norm


def normalized(kernel: Tensor) -> Tensor:
    """Divide rows by their sums; a row whose sum is 0 is 0, as in ``performer_attention``."""
    total = kernel.sum(-1, keepdim=True)
    return kernel / total.masked_fill(total == 0, 1)
