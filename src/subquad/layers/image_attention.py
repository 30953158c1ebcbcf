"""Attention layers over images, each in the place of a convolution or a lambda layer.

All map (B, C, H, W) to (B, D, H, W), with heads of width K = D / heads, softmax over scores of
scale 1 / sqrt(K) where there is a softmax, and no output projection: in a residual network a 1 x 1
convolution follows. Positions are relative, pixel seen minus pixel that sees, one table for all
heads, so that all but a shift's border stays as it was when an image is shifted.

Axes: B batch, C and D channels, A attention heads, H and W height and width, N = H W pixels, K head
width. Sources: Bello et al. 2019, "Attention Augmented Convolutional Networks", section 3.2
(global); Ramachandran et al. 2019, "Stand-Alone Self-Attention in Vision Models", equations 2 and 3
(local); Ho et al. 2019, "Axial Attention", and Wang et al. 2020, "Axial-DeepLab" (axial); Shen et
al. 2018, "Efficient Attention", and Katharopoulos et al. 2020 (linear).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subquad.ops.checks import check_divisible, check_positive
from subquad.ops.linear_attention import linear_attention

Heads = Float[Tensor, "B A h w K"]
BLOCK = 8  # side of the blocks that local attention is computed in


class ImageAttention(nn.Module):
    """What the layers share: checks, the projection to queries, keys and values, and the heads.

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: A.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1, or ``num_heads`` does not divide D.
    """

    def __init__(
        self, in_channels: int, out_channels: int | None = None, *, num_heads: int = 4
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        for name, value in (
            ("in_channels", in_channels), ("out_channels", out_channels), ("num_heads", num_heads),
        ):  # fmt: skip
            check_positive(name, value)
        check_divisible("out_channels", out_channels, num_heads)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim = out_channels // num_heads
        self.qkv = nn.Linear(in_channels, 3 * out_channels, bias=False)
        nn.init.normal_(self.qkv.weight, std=in_channels**-0.5)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Let each pixel attend.

        Raises:
            ValueError: if the shape does not fit.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x must have the shape (B, {self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        self.check_grid((x.shape[2], x.shape[3]))
        projected = self.qkv(x.permute(0, 2, 3, 1))  # (B, H, W, 3 D)
        q, k, v = projected.reshape(*projected.shape[:3], 3, self.num_heads, self.head_dim).unbind(
            3
        )
        y = self.attend(*(part.permute(0, 3, 1, 2, 4) for part in (q, k, v)))
        return y.transpose(3, 4).transpose(2, 3).reshape(len(x), self.out_channels, *x.shape[2:])

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Refuse a height and width that the layer was not made for."""

    def attend(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Return what the pixels' heads see: each kind of attention says how."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Name the numbers that the parameters' shapes do not tell."""
        return f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}"


class GlobalImageAttention(ImageAttention):
    """Each pixel attends to all: softmax over m of (q_n k_m + q_n (r_rows + r_columns)) / sqrt(K).

    Bello et al. 2019: rows and columns have a table each, whose embeddings of the two offsets are
    added. Memory grows with N squared.

    Args:
        in_channels, out_channels, num_heads: see ``ImageAttention``.
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
        super().__init__(in_channels, out_channels, num_heads=num_heads)
        self.grid = _two("grid", grid)
        self.rows = RelativeTable(self.grid[0], self.head_dim)
        self.columns = RelativeTable(self.grid[1], self.head_dim)

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Refuse more rows or columns than the tables reach over."""
        _at_most(grid, self.grid)

    def attend(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attend to all pixels at once."""
        height, width = q.shape[2:4]
        q = q * self.head_dim**-0.5
        rows = torch.einsum("bahwk,hik->bahwi", q, self.rows(height))
        columns = torch.einsum("bahwk,wjk->bahwj", q, self.columns(width))
        return attend_by_axes(q, k, v, rows, columns)


class LocalImageAttention(ImageAttention):
    """Each pixel attends to the r x r around it, of those that are in the image.

    Ramachandran et al. 2019: half of an embedding's channels belong to the offset in rows, half to
    that in columns. Computed in blocks of 8 x 8 pixels with all pixels that any of the block sees,
    as Vaswani et al. 2021 do: matrix products, and beyond queries, keys and values the memory of
    one block.

    Args:
        in_channels, out_channels, num_heads: see ``ImageAttention``.
        window: r, odd.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit, or the width of a head is odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_heads: int = 4,
        window: int = 7,
    ) -> None:
        super().__init__(in_channels, out_channels, num_heads=num_heads)
        check_positive("window", window)
        if window % 2 == 0:
            raise ValueError(f"window must be odd, got {window}")
        if self.head_dim % 2:
            raise ValueError(
                "out_channels must be an even multiple of num_heads, so that half of a head is "
                f"for rows, got {self.out_channels} and {num_heads}"
            )
        self.window = window
        half, std = self.head_dim // 2, self.head_dim**-0.5
        self.rows = nn.Parameter(torch.randn(window, half) * std)
        self.columns = nn.Parameter(torch.randn(window, half) * std)

    def attend(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attend block by block; what backward needs of a block is made anew there."""
        height, width = q.shape[2:4]
        bands = [
            torch.cat([self._block(q, k, v, rows, columns) for columns in _spans(width)], 3)
            for rows in _spans(height)
        ]
        return torch.cat(bands, 2)

    def _block(self, q: Tensor, k: Tensor, v: Tensor, rows: range, columns: range) -> Tensor:
        """Return what the pixels of a block see: all of them are held against all that any sees."""
        seen_rows, seen_columns = (
            _widened(span, self.window // 2, length)
            for span, length in ((rows, q.shape[2]), (columns, q.shape[3]))
        )
        near_rows, near_columns = (
            _offsets(span, seen, self.window, q.device)
            for span, seen in ((rows, seen_rows), (columns, seen_columns))
        )
        own = _crop(q, rows, columns), _crop(k, seen_rows, seen_columns)
        arguments = (*own, _crop(v, seen_rows, seen_columns), self.rows, self.columns)
        if len(rows) == q.shape[2] and len(columns) == q.shape[3]:  # nothing to be saved
            return _windowed(*arguments, near_rows, near_columns)
        y: Tensor = checkpoint(
            _windowed,
            *arguments,
            near_rows,
            near_columns,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return y


class AxialImageAttention(nn.Module):
    """Attention along each row, then attention along each column of what came out.

    Two layers with projections of their own; one axis' offsets have a table in each, as in
    ``GlobalImageAttention``. Memory grows with N sqrt(N).

    Args:
        in_channels, out_channels, num_heads: see ``ImageAttention``.
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
        self.grid = _two("grid", grid)
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
            ValueError: if the shape does not fit.
        """
        if x.dim() == 4:
            _at_most((x.shape[2], x.shape[3]), self.grid)
        y: Tensor = self.along_columns(self.along_rows(x))
        return y


class LineAttention(ImageAttention):
    """Attention along one axis of an image, 2 (down) or 3 (across); no line sees another."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_heads: int, axis: int, length: int
    ) -> None:
        super().__init__(in_channels, out_channels, num_heads=num_heads)
        self.axis = axis
        self.offsets = RelativeTable(length, self.head_dim)

    def attend(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attend along the axis."""
        q, k, v = (part.transpose(2, 3) if self.axis == 2 else part for part in (q, k, v))
        q = q * self.head_dim**-0.5
        table = self.offsets(q.shape[3])
        scores = q @ k.mT + torch.einsum("balnk,nmk->balnm", q, table)
        y = scores.softmax(-1) @ v
        return y.transpose(2, 3) if self.axis == 2 else y


class LinearImageAttention(ImageAttention):
    """Linear attention over all pixels, elu + 1 of queries and keys: no scores, O(N K^2).

    It knows no positions but those that a depth-wise convolution of the values may add.

    Args:
        in_channels, out_channels, num_heads: see ``ImageAttention``.
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
        super().__init__(in_channels, out_channels, num_heads=num_heads)
        self.near: nn.Conv2d | None = None
        if window is not None:
            check_positive("window", window)
            if window % 2 == 0:
                raise ValueError(f"window must be odd, got {window}")
            channels = self.out_channels
            self.near = nn.Conv2d(
                channels, channels, window, padding=window // 2, groups=channels, bias=False
            )

    def attend(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attend to all pixels by sums over them."""
        y = linear_attention(*(part.flatten(2, 3) for part in (q, k, v))).reshape(v.shape)
        if self.near is None:
            return y
        channels_first = v.permute(0, 1, 4, 2, 3)
        near: Tensor = self.near(channels_first.flatten(1, 2))
        return y + near.reshape(channels_first.shape).permute(0, 1, 3, 4, 2)


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


def _windowed(
    q: Heads,
    k: Float[Tensor, "B A i j K"],
    v: Float[Tensor, "B A i j K"],
    row_table: Float[Tensor, "r half"],
    column_table: Float[Tensor, "r half"],
    near_rows: Tensor,
    near_columns: Tensor,
) -> Heads:
    """Let pixels (.., h, w, K) attend to those (.., i, j, K) whose offsets are within the tables.

    ``near_rows`` (h, i) and ``near_columns`` (w, j) hold the offsets' places in the tables.
    """
    q = q * q.shape[-1] ** -0.5
    of_rows, of_columns = q.chunk(2, -1)
    last = len(row_table) - 1
    rows = torch.einsum("bahwk,hik->bahwi", of_rows, row_table[near_rows.clamp(0, last)])
    columns = torch.einsum(
        "bahwk,wjk->bahwj", of_columns, column_table[near_columns.clamp(0, last)]
    )
    outside_rows, outside_columns = ((x < 0) | (x > last) for x in (near_rows, near_columns))
    rows = rows.masked_fill(outside_rows.unsqueeze(1), -torch.inf)
    columns = columns.masked_fill(outside_columns, -torch.inf)
    return attend_by_axes(q, k, v, rows, columns)


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


def _spans(length: int) -> list[range]:
    """Return the blocks along an axis."""
    return [range(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _widened(span: range, reach: int, length: int) -> range:
    return range(max(0, span.start - reach), min(length, span.stop + reach))


def _crop(x: Tensor, rows: range, columns: range) -> Tensor:
    return x[:, :, rows.start : rows.stop, columns.start : columns.stop]


def _offsets(span: range, seen: range, window: int, device: torch.device) -> Tensor:
    """Return the place in a table of the offset of each place seen from each in the span."""
    own, others = (torch.arange(x.start, x.stop, device=device) for x in (span, seen))
    return others - own.unsqueeze(1) + window // 2


def _two(name: str, grid: Sequence[int]) -> tuple[int, int]:
    if len(grid) != 2:
        raise ValueError(f"{name} must be height and width, got {tuple(grid)}")
    for length in grid:
        check_positive(name, length)
    return grid[0], grid[1]


def _at_most(grid: tuple[int, int], largest: tuple[int, int]) -> None:
    if grid[0] > largest[0] or grid[1] > largest[1]:
        raise ValueError(
            f"x must be of at most {largest[0]} x {largest[1]} pixels, those of the tables, "
            f"got {grid[0]} x {grid[1]}"
        )
