"""How good are frozen features? A linear map from a few labelled examples of each class.

It is found in closed form, so nothing is trained and no learning rate is to be chosen. Axes: N
examples, D features, K classes, M examples of the test.
Source: Dosovitskiy et al. 2021, section 4 ("Metrics"): regularised least squares to {-1, 1}^K. The
paper gives no regulariser and no scaling of the features; ours are stated below.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from subquad.data.image_set import Labels

L2 = 0.1


class LinearMap(NamedTuple):
    """``x @ weight + bias``, in float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        """Return the map's values of features ``x``."""
        return x.to(self.weight) @ self.weight + self.bias


def least_squares(x: Float[Tensor, "N D"], y: Float[Tensor, "N K"], *, l2: float = L2) -> LinearMap:
    """Return the map with the least ``mean_n |x_n W + b - y_n|^2 + l2 s^2 |W|^2``.

    ``s^2`` is the mean variance of the D features: so ``l2`` has no unit, and features that are all
    twice as large give the same predictions. The bias is not regularised. Solved in float64, in the
    D x D or the N x N form, whichever is smaller.

    Args:
        x: features, of any floating dtype.
        y: what they should be mapped to.
        l2: the regulariser, above 0.

    Raises:
        ValueError: if ``l2`` is not above 0, there is no example, x and y are not of as many, a
            number is not finite, or all examples have the same features.
    """
    if not 0 < l2 < float("inf"):
        raise ValueError(f"l2 must be a finite number above 0, got {l2:g}")
    if not len(x) or len(x) != len(y):
        raise ValueError(f"x and y must have one row an example each, got {len(x)} and {len(y)}")
    x, y = x.double(), y.double()
    for name, value in (("x", x), ("y", y)):
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got nan or inf")
    if bool((x == x[0]).all()):
        raise ValueError(f"x must differ between examples, got {len(x)} with the same features")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    scale = float(x.square().mean())
    count, features = x.shape
    penalty = l2 * scale * count
    if features <= count:
        weight = _solve(x.mT @ x, penalty, x.mT @ y)
    else:
        weight = x.mT @ _solve(x @ x.mT, penalty, y)
    return LinearMap(weight, y_mean - x_mean @ weight)


def few_shot_accuracy(
    x: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    test_x: Float[Tensor, "M D"],
    test_labels: Int[Tensor, " M"],
    *,
    num_classes: int,
    l2: float = L2,
) -> float:
    """Return the share of test examples whose class has the largest value of the map from N others.

    The map goes to 1 for an example's class and -1 for the others.

    Args:
        x: features of the labelled examples, such as those that :func:`few_of_each` chose.
        labels: their classes.
        test_x: features to classify.
        test_labels: their classes.
        num_classes: K.
        l2: see :func:`least_squares`.

    Raises:
        TypeError: if labels are no whole numbers.
        ValueError: if there is no example, a label is not below ``num_classes``, or the map cannot
            be found.
    """
    for name, found in (("labels", labels), ("test_labels", test_labels)):
        if found.is_floating_point() or found.dtype == torch.bool:
            raise TypeError(f"{name} must be whole numbers, got {found.dtype}")
        if not len(found):
            raise ValueError(f"{name} must hold at least one, got none")
        low, high = (int(value) for value in torch.aminmax(found))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must lie from 0 to {num_classes - 1}, got {low if low < 0 else high}"
            )
    targets = 2 * torch.nn.functional.one_hot(labels.long(), num_classes).double() - 1
    values = least_squares(x, targets, l2=l2)(test_x)
    return float((values.argmax(1) == test_labels).double().mean())


def few_of_each(labels: Labels, count: int, *, seed: int) -> NDArray[np.int64]:
    """Return the places of ``count`` examples of each class, drawn without replacement, in order.

    A smaller ``count`` with the same seed gives a part of a larger one's places.

    Raises:
        ValueError: if ``count`` or ``seed`` is out of its range, or a class has too few examples.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    chosen = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        if len(places) < count:
            raise ValueError(
                f"count must be at most the examples of each class, got {count}, "
                f"and {len(places)} of class {label}"
            )
        chosen.append(np.random.default_rng((seed, int(label))).permutation(places)[:count])
    return np.sort(np.concatenate(chosen))


def _solve(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
    """Return ``(gram + penalty I)^-1 right``."""
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
