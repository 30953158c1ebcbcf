"""The lambda layer on images, and on grids of one or three axes.

Axes: B batch, C channels, *grid the axes of the tokens, N their number; H queries of a token, K
rows of a lambda, U intra-depth, V columns of a lambda. Source: Bello 2021, "LambdaNetworks",
section 3; normalisation and first weights as in its appendix on the layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.ops.checks import (
    check_batch_size,
    check_choice,
    check_key_mask,
    check_odd,
    check_positive,
)
from subquad.ops.lambda_fft import Grid
from subquad.ops.lambda_layer import apply_content, content_lambda, normalised_keys
from subquad.ops.lambda_position import FORMS, Form, pair_rows, position_interactions

RESAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Lambdas(NamedTuple):
    """What ``LambdaLayer.summarise`` makes of a context, to be applied to any queries on its grid.

    ``content`` is one linear map for all tokens. The position lambdas of all tokens would be N
    linear maps; they are kept as the values that they are made of, and made while they are applied.
    """

    content: Float[Tensor, "B K V"]
    values: Float[Tensor, "B U N V"]
    grid: tuple[int, ...]
    key_mask: Bool[Tensor, "B N"] | None


class LambdaLayer(nn.Module):
    """Give each token a linear map of its context, and apply it to the token's queries.

    The context is the tokens themselves: (B, C, *grid) -> (B, D, *grid).

    Args:
        in_channels: C.
        out_channels: D, a multiple of ``num_heads``; C unless given.
        num_heads: H, queries of a token, each with a part of the output of its own. There is one
            set of keys and values: this is no multi-head attention.
        head_dim: K, width of a query and a key.
        intra_depth: U; lambdas are sums over so many slices of keys and values.
        window: odd number of tokens an axis that position sees, around each token; content sees all
            tokens always.
        grid: the largest grid that position sees all of; smaller ones use the middle of the table.
            Not together with ``window``; without both there are no position lambdas.
        num_axes: axes of the tokens, where ``grid`` does not say.
        bias: add a learned constant to each row of the position lambdas, as timm's and d-li14's
            layers do; it is not in the paper's equations.
        batch_norm: normalise queries and values over the batch.
        form: of the position lambdas; see ``position_interactions``.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit, or ``window`` and ``grid`` are both given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        num_heads: int = 4,
        head_dim: int = 16,
        intra_depth: int = 1,
        window: int | None = None,
        grid: Sequence[int] | None = None,
        num_axes: int = 2,
        bias: bool = False,
        batch_norm: bool = True,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        sizes = _table_sizes(window, grid, num_axes)
        for name, value in (
            ("in_channels", in_channels), ("out_channels", out_channels), ("num_heads", num_heads),
            ("head_dim", head_dim), ("intra_depth", intra_depth),
        ):  # fmt: skip
            check_positive(name, value)
        if out_channels % num_heads:
            raise ValueError(
                f"num_heads must divide out_channels ({out_channels}), got {num_heads}"
            )
        if bias and sizes is None:
            raise ValueError("bias must be False without window and grid, got True")
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.head_dim, self.intra_depth = head_dim, intra_depth
        self.num_axes = num_axes if grid is None else len(grid)
        check_choice("form", form, FORMS)
        self.is_local, self.form = window is not None, form
        queries, keys = num_heads * head_dim, intra_depth * head_dim
        values = intra_depth * (out_channels // num_heads)
        self.widths = (queries, keys, values)
        self.qkv = nn.Linear(in_channels, queries + keys + values, bias=False)
        self.norm_q = nn.BatchNorm1d(queries) if batch_norm else None
        self.norm_v = nn.BatchNorm1d(values) if batch_norm else None
        empty = None if sizes is None else torch.empty(head_dim, intra_depth, *sizes)
        self.table = None if empty is None else nn.Parameter(empty)
        self.bias = nn.Parameter(torch.empty(head_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as the paper does: a query's product with a key has variance 1."""
        with torch.no_grad():
            self.qkv.weight.normal_(std=self.in_channels**-0.5)
            self.qkv.weight[: self.widths[0]].mul_(self.head_dim**-0.5)
            if self.table is not None:
                self.table.normal_()
            if self.bias is not None:
                self.bias.zero_()

    def forward(
        self, x: Float[Tensor, "B C *grid"], *, key_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B D *grid"]:
        """Apply the layer.

        Args:
            x: (B, C, *grid).
            key_mask: (B, N) bool, True = keep, in the order of the grid. What stands in hidden
                tokens changes nothing, batch statistics included, and the output there is 0.

        Raises:
            ValueError: if a shape or mask does not fit, or the grid is larger than the table.
        """
        tokens = self._tokens(x, key_mask)
        self._check_grid(tuple(x.shape[2:]))
        q, k, v = torch.split(self.qkv.weight @ tokens, list(self.widths), dim=1)
        y = self._interact(self._queries(q, key_mask), self._lambdas(k, v, x, key_mask))
        return self._merge(y, x)

    def summarise(
        self, context: Float[Tensor, "B C *grid"], *, key_mask: Bool[Tensor, "B N"] | None = None
    ) -> Lambdas:
        """Return the lambdas of a context: made once, to be applied to many queries.

        Raises:
            ValueError: if a shape or mask does not fit, or the grid is larger than the table.
        """
        tokens = self._tokens(context, key_mask)
        self._check_grid(tuple(context.shape[2:]))
        projected = self.qkv.weight[self.widths[0] :] @ tokens
        k, v = torch.split(projected, list(self.widths[1:]), dim=1)
        return self._lambdas(k, v, context, key_mask)

    def apply_lambdas(
        self, x: Float[Tensor, "B C *grid"], lambdas: Lambdas
    ) -> Float[Tensor, "B D *grid"]:
        """Apply the lambdas of a context to the queries of ``x``.

        ``x`` lies on the context's grid, or on any where the layer has no position lambdas.

        Raises:
            ValueError: if a shape does not fit.
        """
        if self.table is not None and tuple(x.shape[2:]) != lambdas.grid:
            raise ValueError(
                f"x must lie on the grid of the context, {lambdas.grid}, got {tuple(x.shape[2:])}"
            )
        check_batch_size("x", x, "the context", lambdas.content)
        key_mask = lambdas.key_mask if self.table is not None else None
        q = self.qkv.weight[: self.widths[0]] @ self._tokens(x, key_mask)
        return self._merge(self._interact(self._queries(q, key_mask), lambdas), x)

    def effective_weights(
        self,
        x: Float[Tensor, "B C *grid"],
        rows: Sequence[int],
        *,
        key_mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B H R U N"]:
        """Return the attention that re-appears: the weights of chosen outputs on all values.

        y = sum_u sum_m weights[.., u, m] values[.., u, m], and the queries times ``bias`` besides.
        Weights may be negative and do not sum to 1.

        Args:
            x: (B, C, *grid).
            rows: which tokens, each from 0 to N - 1.
            key_mask: as in ``forward``.

        Raises:
            ValueError: if a shape, mask or row does not fit.
        """
        tokens, grid = self._tokens(x, key_mask), tuple(x.shape[2:])
        self._check_grid(grid)
        count = tokens.shape[2]
        if any(not 0 <= row < count for row in rows):
            raise ValueError(f"rows must be from 0 to {count - 1}, got {list(rows)}")
        q, k, _ = torch.split(self.qkv.weight @ tokens, list(self.widths), dim=1)
        q, k = self._queries(q, key_mask), by_head(k, self.intra_depth)
        chosen = torch.as_tensor(rows, dtype=torch.long, device=x.device)
        keys = normalised_keys(k, key_mask)
        weights = torch.einsum("bhrk,bumk->bhrum", q[:, :, chosen], keys)
        if self.table is not None:
            embeddings = pair_rows(self.table, grid, chosen)
            weights = weights + torch.einsum("bhrk,rmku->bhrum", q[:, :, chosen], embeddings)
        if key_mask is not None:
            weights = weights.masked_fill(~key_mask[:, None, None, None], 0)
        return weights

    def resample(self, grid: Sequence[int]) -> None:
        """Stretch the table to a larger or smaller grid, linearly; the layer is then of that grid.

        The table is a new parameter: an optimiser made before does not know it.

        Raises:
            ValueError: if the layer has no table of a grid, or ``grid`` does not fit.
        """
        if self.table is None or self.is_local:
            raise ValueError("resample must be called on a layer with a grid, got one without")
        sizes = _table_sizes(None, grid, self.num_axes)
        if len(grid) != self.num_axes or sizes is None:
            raise ValueError(f"grid must have {self.num_axes} axes, got {tuple(grid)}")
        table = self.table.detach()
        for axis, size in enumerate(sizes, start=2):
            if size == 1:  # offset 0, which is in the middle; interpolation would take the first
                table = table.narrow(axis, table.shape[axis] // 2, 1)
        table = F.interpolate(table, sizes, mode=RESAMPLING[self.num_axes], align_corners=True)
        self.table = nn.Parameter(table, requires_grad=self.table.requires_grad)

    def extra_repr(self) -> str:
        """Name the numbers that the parameters' shapes do not tell."""
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, "
            f"head_dim={self.head_dim}, intra_depth={self.intra_depth}"
        )

    def _tokens(self, x: Tensor, key_mask: Tensor | None) -> Float[Tensor, "B C N"]:
        """Check an input and return its tokens, 0 where hidden."""
        if x.dim() != 2 + self.num_axes or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x must have the shape (B, {self.in_channels}) and {self.num_axes} axes of "
                f"tokens, got {tuple(x.shape)}"
            )
        tokens = x.flatten(2)
        check_key_mask(key_mask, x, len(x), tokens.shape[2])
        return tokens if key_mask is None else tokens.masked_fill(~key_mask.unsqueeze(1), 0)

    def _queries(self, q: Tensor, key_mask: Tensor | None) -> Float[Tensor, "B H N K"]:
        return by_head(_normalised(self.norm_q, q, key_mask), self.num_heads)

    def _lambdas(self, k: Tensor, v: Tensor, x: Tensor, key_mask: Tensor | None) -> Lambdas:
        """Return the lambdas of projected keys and values (B, channels, N) on the grid of x."""
        k = by_head(k, self.intra_depth)
        v = by_head(_normalised(self.norm_v, v, key_mask), self.intra_depth)
        content = content_lambda(k, v, key_mask=key_mask)
        return Lambdas(content, v, tuple(x.shape[2:]), key_mask)

    def _interact(self, q: Tensor, lambdas: Lambdas) -> Float[Tensor, "B H N V"]:
        """Apply content and position; v is 0 where hidden, since ``_normalised`` leaves 0 there."""
        v = lambdas.values
        y = apply_content(q, lambdas.content).to(v.dtype)
        if self.table is not None:
            y = y + position_interactions(q, v, self.table, grid=lambdas.grid, form=self.form)
        if self.bias is not None:
            y = y + (q @ self.bias.to(q.dtype)).unsqueeze(-1)
        if lambdas.key_mask is not None and self.table is not None:
            y = y.masked_fill(~lambdas.key_mask[:, None, :, None], 0)
        return y

    def _merge(self, y: Tensor, x: Tensor) -> Tensor:
        return y.transpose(2, 3).reshape(len(x), self.out_channels, *x.shape[2:])

    def _check_grid(self, grid: Grid) -> None:
        """Refuse a grid that the table does not reach over, unless it is local."""
        if self.table is None or self.is_local:
            return
        largest = tuple((size + 1) // 2 for size in self.table.shape[2:])
        if any(g > most for g, most in zip(grid, largest, strict=True)):
            raise ValueError(
                f"x must lie on a grid of at most {largest}, that of the table, got {grid}; "
                "resample(grid) stretches the table"
            )


def by_head(x: Tensor, count: int) -> Tensor:
    """Return (B, channels, N) as (B, count, N, channels / count), a view."""
    return x.reshape(len(x), count, x.shape[1] // count, x.shape[2]).transpose(2, 3)


def _table_sizes(
    window: int | None, grid: Sequence[int] | None, num_axes: int
) -> tuple[int, ...] | None:
    if num_axes not in RESAMPLING:
        raise ValueError(f"num_axes must be 1, 2 or 3, got {num_axes}")
    if window is not None and grid is not None:
        raise ValueError(f"only one of window and grid may be given, got {window} and {grid}")
    if window is not None:
        check_odd("window", window)
        return (window,) * num_axes
    if grid is None:
        return None
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f"grid must have 1 to 3 axes of at least 1 token, got {tuple(grid)}")
    return tuple(2 * length - 1 for length in grid)


def _normalised(norm: nn.Module | None, x: Tensor, key_mask: Tensor | None) -> Tensor:
    """Normalise (B, channels, N) over batch and tokens, hidden ones left out and 0 afterwards."""
    if norm is None or key_mask is None:
        return x if norm is None else norm(x)
    channels_last = x.transpose(1, 2)
    kept = norm(channels_last[key_mask])
    zeros = torch.zeros_like(channels_last)
    return zeros.masked_scatter(key_mask.unsqueeze(-1), kept).transpose(1, 2)
