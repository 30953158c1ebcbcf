"""Whole residual branches dropped in training, example by example. Source: Huang et al. 2016."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.ops.checks import check_fraction


class StochasticDepth(nn.Module):
    """Drop whole examples' residual branches while training, and scale those that stay."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_fraction("drop_path", rate)
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "B ..."], cu_seqlens: Int[Tensor, " S_plus_1"] | None = None
    ) -> Float[Tensor, "B ..."]:
        """Return the branch, 0 for the examples that lose it.

        Args:
            x: a branch, an example a row; or packed ones in one row of shape (1, T, ...).
            cu_seqlens: borders 0, ..., T of packed examples, each of which is dropped by itself.
        """
        if not self.training or self.rate == 0:
            return x
        count = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
        keeps = torch.rand(count, *[1] * (x.dim() - 1), device=x.device) >= self.rate
        if cu_seqlens is not None:
            keeps = keeps[:, 0].repeat_interleave(cu_seqlens.diff(), dim=0)
        return x * keeps / (1 - self.rate)

    def extra_repr(self) -> str:
        """Name the rate."""
        return f"rate={self.rate:g}"
