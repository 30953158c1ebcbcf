"""Attention layers over images, each in the place of a convolution or a lambda layer.

All map (B, C, H, W) to (B, D, H, W), with heads of width K = D / heads, softmax over scores of
scale 1 / sqrt(K) where there is a softmax, and no output projection: in a residual network a 1 x 1
convolution follows. Positions are relative, pixel seen minus pixel that sees, one table for all
heads, so that all but a shift's border stays as it was when an image is shifted. Local attention
has a file of its own, what all share is in ``image_heads``.

Axes: B batch, C and D channels, A attention heads, H and W height and width, N = H W pixels, K head
width. Sources: Bello et al. 2019, "Attention Augmented Convolutional Networks", section 3.2
(global); Ho et al. 2019, "Axial Attention", and Wang et al. 2020, "Axial-DeepLab" (axial); Shen et
al. 2018, "Efficient Attention", and Katharopoulos et al. 2020 (linear).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.layers.image_heads import (
    RelativeTable,
    attend_by_axes,
    check_at_most,
    merge_heads,
    projection,
    sizes,
    split_heads,
    two_sides,
)
from subquad.layers.local_image_attention import LocalImageAttention
from subquad.ops.checks import check_odd
from subquad.ops.linear_attention import linear_attention

__all__ = [
    "AxialImageAttention", "GlobalImageAttention", "LineAttention", "LinearImageAttention",
    "LocalImageAttention", "RelativeTable",
]  # fmt: skip


class GlobalImageAttention(nn.Module):
    """Each pixel attends to all: softmax over m of (q_n k_m + q_n (r_rows + r_columns)) / sqrt(K).

    Bello et al. 2019: rows and columns have a table each, whose embeddings of the two offsets are
    added. Memory grows with N squared.

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: A.
        grid: the largest height and width; smaller images use the middle of the tables.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_heads: int = 4,
        grid: Sequence[int],
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.qkv = projection(in_channels, out_channels, num_heads)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim = out_channels // num_heads
        self.grid = two_sides("grid", grid)
        self.rows = RelativeTable(self.grid[0], self.head_dim)
        self.columns = RelativeTable(self.grid[1], self.head_dim)

    extra_repr = sizes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Let each pixel attend to all at once.

        Raises:
            ValueError: if the shape does not fit, or the tables do not reach over the image.
        """
        check_at_most(x, self.grid)
        q, k, v = split_heads(x, self.qkv, self.num_heads)
        height, width = q.shape[2:4]
        q = q * self.head_dim**-0.5
        rows = torch.einsum("bahwk,hik->bahwi", q, self.rows(height))
        columns = torch.einsum("bahwk,wjk->bahwj", q, self.columns(width))
        return merge_heads(attend_by_axes(q, k, v, rows, columns))


class AxialImageAttention(nn.Module):
    """Attention along each row, then attention along each column of what came out.

    Two layers with projections of their own; one axis' offsets have a table in each, as in
    ``GlobalImageAttention``. Memory grows with N sqrt(N).

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: A.
        grid: the largest height and width; smaller images use the middle of the tables.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_heads: int = 4,
        grid: Sequence[int],
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.grid = two_sides("grid", grid)
        height, width = self.grid
        self.along_rows = LineAttention(
            in_channels, out_channels, num_heads=num_heads, axis=3, length=width
        )
        self.along_columns = LineAttention(
            out_channels, out_channels, num_heads=num_heads, axis=2, length=height
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Attend along rows, then along columns.

        Raises:
            ValueError: if the shape does not fit, or the tables do not reach over the image.
        """
        check_at_most(x, self.grid)
        y: Tensor = self.along_columns(self.along_rows(x))
        return y


class LineAttention(nn.Module):
    """Attention along one axis of an image, 2 (down) or 3 (across); no line sees another.

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``.
        num_heads: A.
        axis: 2 or 3.
        length: the most pixels along it.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_heads: int, axis: int, length: int
    ) -> None:
        super().__init__()
        self.qkv = projection(in_channels, out_channels, num_heads)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim, self.axis = out_channels // num_heads, axis
        self.offsets = RelativeTable(length, self.head_dim)

    extra_repr = sizes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Let each pixel attend to its line.

        Raises:
            ValueError: if the shape does not fit.
        """
        q, k, v = split_heads(x, self.qkv, self.num_heads)
        if self.axis == 2:
            q, k, v = (part.transpose(2, 3) for part in (q, k, v))
        q = q * self.head_dim**-0.5
        table = self.offsets(q.shape[3])
        scores = q @ k.mT + torch.einsum("balnk,nmk->balnm", q, table)
        y = scores.softmax(-1) @ v
        return merge_heads(y.transpose(2, 3) if self.axis == 2 else y)


class LinearImageAttention(nn.Module):
    """Linear attention over all pixels, elu + 1 of queries and keys: no scores, O(N K^2).

    It knows no positions but those that a depth-wise convolution of the values may add.

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: A.
        window: odd side of the depth-wise convolution whose output is added; None for none.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_heads: int = 4,
        window: int | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.qkv = projection(in_channels, out_channels, num_heads)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim = out_channels // num_heads
        self.near: nn.Conv2d | None = None
        if window is not None:
            check_odd("window", window)
            self.near = nn.Conv2d(
                out_channels, out_channels, window, padding=window // 2, groups=out_channels,
                bias=False,
            )  # fmt: skip

    extra_repr = sizes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Let each pixel attend to all by sums over them.

        Raises:
            ValueError: if the shape does not fit.
        """
        q, k, v = split_heads(x, self.qkv, self.num_heads)
        y = linear_attention(*(part.flatten(2, 3) for part in (q, k, v))).reshape(v.shape)
        if self.near is not None:
            channels_first = v.permute(0, 1, 4, 2, 3)
            near: Tensor = self.near(channels_first.flatten(1, 2))
            y = y + near.reshape(channels_first.shape).permute(0, 1, 3, 4, 2)
        return merge_heads(y)
