"""Relative positions in softmax attention: a learned vector for each offset, beside the keys.

The query of token i is dotted with the vector of i - j, and this is added to its logit for token j.
Axes: B batch, H heads, T time, K width of a query. Source: Shaw et al. 2018; Dosovitskiy et al.
2021, appendix "Positional embedding" (1-D relative attention).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.ops.checks import check_positive


class RelativePositions(nn.Module):
    """Biases of attention's logits for sequences of at most ``max_len`` tokens.

    Args:
        max_len: offsets reach from 1 - ``max_len`` to ``max_len`` - 1.
        num_heads: H, each with vectors of its own.
        head_dim: K.

    Raises:
        TypeError: if ``max_len`` is not an int.
        ValueError: if it is below 1.
    """

    def __init__(self, max_len: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        check_positive("relative_len", max_len)
        self.max_len = max_len
        self.table = nn.Parameter(torch.empty(num_heads, 2 * max_len - 1, head_dim))
        nn.init.normal_(self.table, std=0.02)

    def forward(
        self, q: Float[Tensor, "B H T K"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B H T T"]:
        """Return what is added to the logits, scaled as they are.

        Args:
            q: queries.
            positions: of all tokens; those of the tokens that count are below ``max_len``.

        Raises:
            ValueError: if T is above ``max_len``.
        """
        if q.shape[2] > self.max_len:
            raise ValueError(
                f"x must have at most relative_len ({self.max_len}) tokens, got {q.shape[2]}"
            )
        by_offset = torch.einsum("bhtk,hok->bhto", q * q.shape[3] ** -0.5, self.table)
        offsets = positions.unsqueeze(2) - positions.unsqueeze(1) + self.max_len - 1
        return by_offset.gather(3, offsets.unsqueeze(1).expand(-1, q.shape[1], -1, -1))
