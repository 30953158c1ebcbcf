"""The one feature map of fast-transformers that needs no other name here: elu + 1."""

from subquad.ops.feature_maps import elu_plus_one

elu_feature_map = elu_plus_one

__all__ = ["elu_feature_map"]
