"""Random features as a scikit-learn transformer: kernel methods in time linear in the samples.

    E[phi(x) . phi(y)] = exp(gamma x . y)             kernel="softmax"
                       = exp(-gamma |x - y|^2)        kernel="gaussian", scikit-learn's "rbf"

A linear model on phi(X) then stands for a kernel machine on X: ``Ridge`` for ``KernelRidge``,
``LinearSVC`` for ``SVC``. The features and directions are those of FAVOR+ attention.

Which estimator: the error at one pair of points, as a share of the kernel, grows with |x - y| for
"trigonometric" and with |x + y| for "positive" and "hyperbolic". The Gaussian kernel is small where
|x - y| is large, so its trigonometric features have an error of at most 1 / sqrt(2 m) everywhere;
the softmax kernel is large where |x + y| is, and asks for positive ones.

Needs scikit-learn: pip install 'subquad[sklearn]'. Axes: N samples, K columns of X, M features.
Source: Choromanski et al. 2021, section 2; Rahimi and Recht 2007 ("trigonometric" for "gaussian").
"""

import math
import numbers
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from subquad.ops.random_features import Estimator, RandomFeatures, SoftmaxKernel
from subquad.ops.random_matrices import Rows

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "sklearn":
        raise
    raise ModuleNotFoundError(
        "subquad.kernel_features needs scikit-learn: pip install 'subquad[sklearn]'",
        name="sklearn",
    ) from error

KernelName = Literal["softmax", "gaussian"]
EstimatorName = Literal["positive", "hyperbolic", "trigonometric"]
RowsName = Literal["iid", "orthogonal", "hadamard"]


class RandomKernelFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Map X (N, K) to features (N, M) whose products are, on average over draws, a kernel's values.

    ``fit`` learns nothing of X but its width; it draws the directions.

    Args:
        kernel: "gaussian" or "softmax".
        estimator: "trigonometric" (M = 2m, from -1 to 1 each for the Gaussian kernel), "positive"
            (M = m) or "hyperbolic" (M = 2m); see the module.
        directions: "orthogonal", "iid", or "hadamard" (K a power of 2; not quite unbiased).
        regularized: give all directions the length sqrt(K): a kernel a little below the one asked
            for, with a smaller variance.
        num_features: directions m; None for int(K ln K), at least K.
        gamma: in the kernel's exponent, above 0; None for 1 / K.
        random_state: seed, ``RandomState`` or None, as everywhere in scikit-learn.

    Attributes:
        projection_: the directions (m, K), in X's dtype.
        gamma_: the gamma that is used.
        n_features_in_: K.

    Raises:
        ValueError: by ``fit``, if a name is unknown or a number does not fit; by ``transform``, if
            X is so large that the softmax kernel's features overflow.
        TypeError: by ``fit``, if ``num_features`` is not an int.
    """

    def __init__(
        self,
        *,
        kernel: KernelName = "gaussian",
        estimator: EstimatorName = "trigonometric",
        directions: RowsName = "orthogonal",
        regularized: bool = False,
        num_features: int | None = None,
        gamma: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.estimator = estimator
        self.directions = directions
        self.regularized = regularized
        self.num_features = num_features
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "RandomKernelFeatures":
        """Draw directions for samples as wide as X (N, K); y is ignored."""
        self._check_options()
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        width = int(X.shape[1])
        kernel = SoftmaxKernel(
            estimator=Estimator(self.estimator),
            rows=Rows(self.directions),
            regularized=self.regularized,
        )
        count: Any = self.num_features
        if isinstance(count, np.integer):  # as a grid search gives it
            count = int(count)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        features = kernel.draw(
            width,
            count,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,  # so that a seed means the same directions for float32
        )
        self.projection_ = features.projection.numpy().astype(X.dtype)
        self.gamma_ = 1 / width if self.gamma is None else float(self.gamma)
        self._n_features_out = features.num_features(width)
        return self

    def transform(self, X: Any) -> Any:
        """Return phi(X) (N, M) in X's dtype; integers count as float64."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        # From an array that is in any order, perhaps read-only, to a tensor of its own.
        x = torch.tensor(X)
        projection = torch.from_numpy(self.projection_).to(x.dtype)
        features = RandomFeatures(projection, Estimator(self.estimator))
        mapped = (_gaussian if self.kernel == "gaussian" else _softmax)(x, features, self.gamma_)
        if not bool(torch.isfinite(mapped).all()):
            raise ValueError(
                f"X must be small enough for the features of the {self.kernel} kernel to be finite "
                f"in {X.dtype}, got values up to {float(x.abs().max()):g} with gamma "
                f"{self.gamma_:g}"
            )
        return mapped.numpy()

    def _check_options(self) -> None:
        for name, kinds in (
            ("kernel", KernelName), ("estimator", EstimatorName), ("directions", RowsName),
        ):  # fmt: skip
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        gamma = self.gamma
        is_number = isinstance(gamma, numbers.Real) and math.isfinite(gamma) and gamma > 0
        if gamma is not None and not is_number:
            raise ValueError(f"gamma must be None or a finite number above 0, got {gamma!r}")
        if not isinstance(self.regularized, bool | np.bool_):
            raise ValueError(f"regularized must be True or False, got {self.regularized!r}")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _softmax(x: Tensor, features: RandomFeatures, gamma: float) -> Tensor:
    return features(x * math.sqrt(gamma))


def _gaussian(x: Tensor, features: RandomFeatures, gamma: float) -> Tensor:
    """Return exp(-|x|^2 / 2) phi(x) at x scaled by sqrt(2 gamma), in one exponent."""
    x = x * math.sqrt(2 * gamma)
    if features.nonnegative:
        return (features.log_features(x) - x.square().sum(-1, keepdim=True) / 2).exp()
    u = x @ features.directions(x.dtype).T
    return torch.cat([u.sin(), u.cos()], dim=-1) / math.sqrt(u.shape[-1])
