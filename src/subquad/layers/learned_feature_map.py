"""A feature map with weights: a projection to any width, softmax over both signs.

    phi(x) = softmax([W x, -W x])

Non-negative, bounded, and as sharp as training makes it (Zhang et al. 2024, "Hedgehog").
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.ops.checks import check_divisible, check_positive
from subquad.ops.feature_maps import widen


class LearnedFeatureMap(nn.Module):
    """Map heads (B, H, T, K) to (B, H, T, M), each head by its own matrix.

    Args:
        num_heads: heads H.
        head_dim: width K of a head.
        num_features: M, any even number: each of the M / 2 projections stands in the softmax with
            both signs, W x and -W x, so an odd one would leave one projection without its opposite.

    Raises:
        ValueError: if a number does not fit.
    """

    nonnegative = True

    def __init__(self, num_heads: int, head_dim: int, num_features: int) -> None:
        super().__init__()
        check_positive("num_heads", num_heads)
        check_positive("head_dim", head_dim)
        check_positive("num_features", num_features)
        check_divisible("num_features", num_features, 2)
        self.head_dim = head_dim
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, num_features // 2))
        nn.init.normal_(self.weight, std=head_dim**-0.5)

    def num_features(self, head_dim: int) -> int:
        """Return M.

        Raises:
            ValueError: if ``head_dim`` is not the one this map was built for.
        """
        if head_dim != self.head_dim:
            raise ValueError(f"head_dim must be {self.head_dim} for this map, got {head_dim}")
        return 2 * self.weight.shape[2]

    def forward(self, x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T M"]:
        """Map the last axis, in float32 or wider."""
        x = widen(x)
        y = x @ self.weight.to(x.dtype)
        return torch.cat([y, -y], dim=-1).softmax(dim=-1)
