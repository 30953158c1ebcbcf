"""Local attention over images: each pixel sees a window around it, computed block by block.

(B, C, H, W) to (B, D, H, W), like the layers of ``image_attention``. Axes: B batch, C and D
channels, A attention heads, H and W height and width, K head width; h and w rows and columns of a
block, i and j of all that its pixels see. Sources: Ramachandran et al. 2019, "Stand-Alone
Self-Attention in Vision Models", equations 2 and 3; blocks as in Vaswani et al. 2021, "Scaling
Local Self-Attention for Parameter Efficient Visual Backbones".
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from subquad.layers.image_heads import (
    Heads,
    attend_by_axes,
    merge_heads,
    projection,
    sizes,
    split_heads,
)
from subquad.ops.checks import check_odd

BLOCK = 8  # side of the blocks


class LocalImageAttention(nn.Module):
    """Each pixel attends to the r x r around it, of those that are in the image.

    Ramachandran et al. 2019: half of an embedding's channels belong to the offset in rows, half to
    that in columns. Computed in blocks of 8 x 8 pixels with all pixels that any of the block sees,
    as Vaswani et al. 2021 do: matrix products, and beyond queries, keys and values the memory of
    one block.

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: A.
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
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.qkv = projection(in_channels, out_channels, num_heads)
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim = out_channels // num_heads
        check_odd("window", window)
        if self.head_dim % 2:
            raise ValueError(
                "out_channels must be an even multiple of num_heads, so that half of a head is "
                f"for rows, got {self.out_channels} and {num_heads}"
            )
        self.window = window
        half, std = self.head_dim // 2, self.head_dim**-0.5
        self.rows = nn.Parameter(torch.randn(window, half) * std)
        self.columns = nn.Parameter(torch.randn(window, half) * std)

    extra_repr = sizes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        """Attend block by block; what backward needs of a block is made anew there.

        Raises:
            ValueError: if the shape does not fit.
        """
        q, k, v = split_heads(x, self.qkv, self.num_heads)
        bands = [
            torch.cat([self._block(q, k, v, rows, columns) for columns in _spans(q.shape[3])], 3)
            for rows in _spans(q.shape[2])
        ]
        return merge_heads(torch.cat(bands, 2))

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
