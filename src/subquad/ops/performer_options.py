"""What the forms of ``performer_attention`` have in common: their options, checked."""

import math

from torch import Tensor

from subquad.ops.checks import check_positive_number, check_same_device
from subquad.ops.feature_maps import check_normalize
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.random_features import RandomFeatures

Features = RandomFeatures | GeneralizedFeatures


def check_features(
    features: Features,
    k: Tensor,
    *,
    scale: float | None,
    normalize: bool,
    max_per_feature: bool,
) -> None:
    """Require features that fit keys (..., K), and options that fit the features.

    Raises:
        TypeError: if ``features`` are of another kind.
        ValueError: if they do not fit the keys' width or device, or an option does not fit them.
    """
    if not isinstance(features, Features):
        raise TypeError(
            "features must be RandomFeatures or GeneralizedFeatures (a kernel's draw gives them), "
            f"got {type(features).__name__}"
        )
    features.num_features(k.shape[-1])
    if features.projection is not None:
        check_same_device("features.projection", features.projection, k)
    if isinstance(features, GeneralizedFeatures):
        check_normalize(features, normalize)
        if scale is not None:
            raise ValueError(f"scale must be None for GeneralizedFeatures, got {scale}")
        if max_per_feature:
            raise ValueError("max_per_feature must be False for GeneralizedFeatures, got True")
        return
    if scale is not None:
        check_positive_number("scale", scale)
    if not normalize:
        raise ValueError(
            "normalize must be True for RandomFeatures, whose scale only the quotient is free of, "
            "got False"
        )
    if max_per_feature and not features.nonnegative:
        raise ValueError(
            f"max_per_feature must be False for {features.estimator}, whose features have one "
            "size a token, got True"
        )


def resolve_scale(scale: float | None, head_dim: int) -> float:
    """Return the factor on q . k: that of ``scaled_dot_product_attention`` by default."""
    return 1 / math.sqrt(head_dim) if scale is None else scale
