"""The lambda layer in attention's place: a mixer of sequences.

Content sees all tokens (causal: those up to itself), position a window of them. The paper's
batch-norm of queries and values is left out: over a sequence it would tell a token of later ones.
Tokens may lie on a grid, as the patches of an image do.

Axes: B batch, T time, D model width, H queries of a token, K rows of a lambda, V its columns.
Source: Bello 2021, "LambdaNetworks", section 3 and its appendix on masked contexts.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.layers.attention_rows import Attended
from subquad.layers.heads import as_cached, check_causal
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.causal_lambda import (
    LambdaState,
    causal_lambda,
    causal_lambda_step,
    lambda_state,
)
from subquad.ops.checks import (
    check_cu_seqlens,
    check_key_mask,
    check_positive,
    check_token,
    check_tokens,
)
from subquad.ops.lambda_fft import Grid
from subquad.ops.lambda_layer import lambda_layer
from subquad.ops.lambda_position import position_interactions
from subquad.ops.packing import run_packed
from subquad.ops.window import compaction


class LambdaMixer(nn.Module):
    """Mix tokens by lambdas; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    There is one set of keys and values for all H queries of a token. Offsets count valid tokens, so
    hidden ones are as if taken out.

    Args:
        d_model: width D of the tokens.
        num_heads: H, queries of a token, each with D / H outputs of its own.
        is_causal: token i sees tokens j <= i only.
        window: tokens that position sees on one side, the token itself included; along each axis.
        grid: axes of the tokens, whose product are the last of a sequence, row by row. Those before
            them, class tokens, have no place: they see and are seen by content alone. None for
            tokens in one line. Not together with ``is_causal``.
        head_dim: K, query and key width.
        value_dim: V, by default d_model / num_heads.
        bias: whether the output's projection has a bias; those of q, k and v have none.
        rotary: must be False: lambdas know positions by their embeddings.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit, ``rotary`` is True, or a causal mixer has a grid.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        window: int = 64,
        grid: Sequence[int] | None = None,
        head_dim: int = 16,
        value_dim: int | None = None,
        bias: bool = True,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if rotary:
            raise ValueError(f"rotary must be False for LambdaMixer, got {rotary}")
        self.value_dim = _value_dim(d_model, num_heads, value_dim)
        check_positive("window", window)
        check_positive("head_dim", head_dim)
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, head_dim
        self.is_causal, self.window = is_causal, window
        self.grid = None if grid is None else _checked_grid(grid, is_causal)
        self.widths = [num_heads * head_dim, head_dim, self.value_dim]
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(num_heads * self.value_dim, d_model, bias=bias)
        offsets = [window if is_causal else 2 * window - 1]
        if self.grid is not None:
            offsets = [2 * min(window, length) - 1 for length in self.grid]
        self.table = nn.Parameter(torch.empty(head_dim, *offsets))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw q, k, v and the table as the paper does, the output's projection as Glorot."""
        nn.init.normal_(self.qkv_proj.weight, std=self.d_model**-0.5)
        with torch.no_grad():
            self.qkv_proj.weight[: self.widths[0]].mul_(self.head_dim**-0.5)
        nn.init.normal_(self.table)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); hidden tokens give the output's bias."""
        x = self._check(x, key_mask, cu_seqlens)
        q, k, v = self._split(x)
        if cu_seqlens is None:
            return self.merge(self._interact(q, k, v, key_mask))
        packed = run_packed(
            lambda q, k, v, mask: self._interact(q, k, v, mask), cu_seqlens, q, k, v
        )
        return self.merge(packed)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return the outputs by query, and the one set of values once for each, for
        ``attention_rows``; the weights may be negative and do not sum to 1.
        """
        x = self._check(x, key_mask, cu_seqlens)
        q, k, v = self._split(x)
        values = v.repeat(1, self.num_heads, 1, 1)

        def each(q: Tensor, k: Tensor, v: Tensor, mask: KeyMask | None) -> Tensor:
            # A query and its values are a row of a batch, so that each has weights of its own.
            q, k, wide_v = (y.flatten(0, 1).unsqueeze(1) for y in (q, k.expand_as(q), v))
            mask = None if mask is None else mask.repeat_interleave(self.num_heads, 0)
            return self._interact(q, k, wide_v, mask).reshape(v.shape)

        if cu_seqlens is None:
            return Attended(each(q, k, values, key_mask), values)
        return Attended(run_packed(each, cu_seqlens, q, k, values), values)

    def init_state(self, batch_size: int) -> LambdaState:
        """Return an empty ``LambdaState``."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        like = self.out_proj.weight
        return lambda_state(batch_size, self.head_dim, self.value_dim, like, window=self.window)

    def prefill(
        self, x: Tokens, state: LambdaState, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, LambdaState]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        check_causal(self.is_causal, "prefill")
        x = self._check(x, key_mask, None)
        q, k, v = as_cached(state.values, *self._split(x))
        y, state = causal_lambda(q, k, v, self.table, state, key_mask=key_mask)
        return self.merge(y), state

    def step(self, x_t: Token, state: LambdaState) -> tuple[Token, LambdaState]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        return self._step(x_t, state, in_place=False)

    def step_(self, x_t: Token, state: LambdaState) -> tuple[Token, LambdaState]:
        """Mix one more token (B, D) into ``state``'s own tables; no gradient through the past."""
        return self._step(x_t, state, in_place=True)

    def _step(self, x_t: Token, state: Any, *, in_place: bool) -> tuple[Token, Any]:
        check_causal(self.is_causal, "step")
        check_token("x_t", x_t, self.d_model)
        parts = as_cached(state.values, *self._split(x_t.unsqueeze(1)))
        q, k, v = (part.squeeze(2) for part in parts)
        y, state = causal_lambda_step(q, k, v, self.table, state, in_place=in_place)
        return self.merge(y.unsqueeze(2)).squeeze(1), state

    def _interact(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: KeyMask | None
    ) -> Float[Tensor, "B H T V"]:
        if self.is_causal:
            size = {"window": self.window}
            state = lambda_state(len(q), self.head_dim, self.value_dim, v, **size)
            return causal_lambda(q, k, v, self.table, state, key_mask=key_mask)[0]
        table, grid = self.table.unsqueeze(1), (q.shape[2],)
        if self.grid is not None:
            return self._on_grid(q, k, v, table, self.grid, key_mask)
        if key_mask is None:
            return lambda_layer(q, k, v, table, grid=grid)
        rows = compaction(key_mask)
        q, k, v = rows.front(q), rows.front(k), rows.front(v)
        front = torch.arange(q.shape[2], device=q.device) < rows.lengths[:, None]
        return rows.restore(lambda_layer(q, k, v, table, grid=grid, key_mask=front))

    def _on_grid(
        self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, key_mask: KeyMask | None
    ) -> Float[Tensor, "B H T V"]:
        """Content for all tokens, position for those of the grid."""
        y = lambda_layer(q, k, v, None, grid=(q.shape[2],), key_mask=key_mask)
        first = q.shape[2] - math.prod(grid)
        seen = v if key_mask is None else v.masked_fill(~key_mask[:, None, :, None], 0)
        placed = position_interactions(q[:, :, first:], seen[:, :, first:], table, grid=grid)
        y = y + F.pad(placed, (0, 0, first, 0))
        return y if key_mask is None else y.masked_fill(~key_mask[:, None, :, None], 0)

    def _check(
        self, x: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Float[Tensor, "B T D"]:
        check_tokens("x", x, self.d_model)
        check_key_mask(key_mask, x, *x.shape[:2])
        check_cu_seqlens(cu_seqlens, key_mask, *x.shape[:2])
        if self.grid is not None:
            self._check_on_grid(x.shape[1], cu_seqlens)
        return x if key_mask is None else x.masked_fill(~key_mask.unsqueeze(-1), 0)

    def _check_on_grid(self, seq_len: int, cu_seqlens: Tensor | None) -> None:
        assert self.grid is not None
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens must be None for a LambdaMixer with a grid, got a tensor")
        if seq_len < math.prod(self.grid):
            raise ValueError(
                f"x must hold at least the {math.prod(self.grid)} tokens of the grid {self.grid}, "
                f"got {seq_len}"
            )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, D) to q (B, H, T, K), k (B, 1, T, K) and v (B, 1, T, V)."""
        q, k, v = torch.split(self.qkv_proj(x), self.widths, dim=-1)
        q = q.reshape(*q.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
        return q, k.unsqueeze(1), v.unsqueeze(1)

    def merge(self, y: Float[Tensor, "B H T V"]) -> Float[Tensor, "B T D"]:
        """Lay the outputs of a token's queries side by side and project them back."""
        merged: Tensor = self.out_proj(y.transpose(1, 2).flatten(2).to(self.out_proj.weight.dtype))
        return merged


def _value_dim(d_model: int, num_heads: int, value_dim: int | None) -> int:
    for name, number in (("d_model", d_model), ("num_heads", num_heads), ("value_dim", value_dim)):
        if number is not None:
            check_positive(name, number)
    if value_dim is None and d_model % num_heads:
        raise ValueError(
            f"num_heads must divide d_model ({d_model}) unless value_dim is given, got {num_heads}"
        )
    return d_model // num_heads if value_dim is None else value_dim


def _checked_grid(grid: Sequence[int], is_causal: bool) -> Grid:
    if is_causal:
        raise ValueError(f"grid must be None for a causal LambdaMixer, got {tuple(grid)}")
    if not 1 <= len(grid) <= 3:
        raise ValueError(f"grid must have 1 to 3 axes, got {tuple(grid)}")
    for axis, length in enumerate(grid):
        check_positive(f"grid[{axis}]", length)
    return tuple(grid)
