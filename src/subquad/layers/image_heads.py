"""What attention layers over images share: projections, heads, embeddings of offsets, scores.

Axes: B batch, C and D channels, A attention heads, H and W height and width, K head width; h and w
rows and columns of pixels that see, i and j of those that are seen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.ops.checks import check_divisible, check_positive

Heads = Float[Tensor, "B A h w K"]


def projection(in_channels: int, out_channels: int, num_heads: int) -> nn.Linear:
    """Return the map from C channels to queries, keys and values of D each, drawn anew.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1, or ``num_heads`` does not divide D.
    """
    for name, value in (
        ("in_channels", in_channels), ("out_channels", out_channels), ("num_heads", num_heads),
    ):  # fmt: skip
        check_positive(name, value)
    check_divisible("out_channels", out_channels, num_heads)
    qkv = nn.Linear(in_channels, 3 * out_channels, bias=False)
    nn.init.normal_(qkv.weight, std=in_channels**-0.5)
    return qkv


def split_heads(
    x: Float[Tensor, "B C H W"], qkv: nn.Linear, num_heads: int
) -> tuple[Heads, Heads, Heads]:
    """Return the queries, keys and values of all pixels.

    Raises:
        ValueError: if the shape of ``x`` does not fit.
    """
    if x.dim() != 4 or x.shape[1] != qkv.in_features:
        raise ValueError(
            f"x must have the shape (B, {qkv.in_features}, H, W), got {tuple(x.shape)}"
        )
    projected = qkv(x.permute(0, 2, 3, 1))  # (B, H, W, 3 D)
    width = qkv.out_features // 3 // num_heads
    parts = projected.reshape(*projected.shape[:3], 3, num_heads, width)
    q, k, v = parts.permute(3, 0, 4, 1, 2, 5).unbind(0)
    return q, k, v


def merge_heads(y: Heads) -> Float[Tensor, "B D h w"]:
    """Lay the heads' channels one behind the other, channels before rows and columns."""
    return y.permute(0, 1, 4, 2, 3).flatten(1, 2)


def sizes(layer: Any) -> str:
    """Return what a layer's ``extra_repr`` says: what the shapes of its weights do not tell."""
    return f"{layer.in_channels}, {layer.out_channels}, num_heads={layer.num_heads}"


class RelativeTable(nn.Module):
    """A learned embedding for each offset of two places on a line of at most ``length``."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length = length
        self.table = nn.Parameter(torch.randn(2 * length - 1, width) * width**-0.5)

    def forward(self, length: int) -> Float[Tensor, "N N K"]:
        """Return the embeddings of place m as place n sees it, at [n, m]."""
        places = torch.arange(length, device=self.table.device)
        return self.table[places - places.unsqueeze(1) + self.length - 1]


def attend_by_axes(
    q: Heads,
    k: Float[Tensor, "B A i j K"],
    v: Float[Tensor, "B A i j K"],
    rows: Float[Tensor, "B A h w i"],
    columns: Float[Tensor, "B A h w j"],
) -> Heads:
    """Attend with scores q k + rows + columns: a bias for each row and each column that is seen."""
    scores = q.flatten(2, 3) @ k.flatten(2, 3).mT  # (B, A, h w, i j)
    scores = scores.reshape(*q.shape[:4], *k.shape[2:4])
    scores = scores + rows.unsqueeze(-1) + columns.unsqueeze(-2)
    weights = scores.flatten(4).softmax(-1).flatten(2, 3)
    return (weights @ v.flatten(2, 3)).reshape(q.shape)


def two_sides(name: str, grid: Sequence[int]) -> tuple[int, int]:
    """Return height and width.

    Raises:
        TypeError: if one is not an int.
        ValueError: if there are not two, or one is below 1.
    """
    if len(grid) != 2:
        raise ValueError(f"{name} must be height and width, got {tuple(grid)}")
    for length in grid:
        check_positive(name, length)
    return grid[0], grid[1]


def check_at_most(x: Tensor, largest: tuple[int, int]) -> None:
    """Refuse images of more rows or columns than tables reach over; ``split_heads`` does the rest.

    Raises:
        ValueError: if they have more.
    """
    if x.dim() == 4 and (x.shape[2] > largest[0] or x.shape[3] > largest[1]):
        raise ValueError(
            f"x must be of at most {largest[0]} x {largest[1]} pixels, those of the tables, "
            f"got {x.shape[2]} x {x.shape[3]}"
        )
