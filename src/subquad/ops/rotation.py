"""Rotary positions: pairs of numbers rotated by an angle that grows with the position.

A product of two rotated vectors depends on the difference of their positions alone.

Axes: B batch, H heads, T time, K width of a vector, P = K / 2 pairs.
Source: Su et al. 2021, "RoFormer", equation 34.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines (B, T, K / 2) of the angles by which some tokens are rotated."""

    cos: Float[Tensor, "B T P"]
    sin: Float[Tensor, "B T P"]

    def __call__(self, x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
        """Rotate each pair (x_2i, x_2i+1) by its token's angle."""
        cos, sin = self.cos.unsqueeze(1).to(x.dtype), self.sin.unsqueeze(1).to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
