"""Position lambdas by Fourier transform: O(n log n) in the tokens of a grid, whatever the context.

The embedding of a pair of tokens depends on their offset alone, so a row of all position lambdas is
a cross-correlation of the values with that row of the table,

    lambda[n, k, v] = sum_d sum_u R[k, u, d] V[u, n + d, v]

a product of transforms. They are made a few rows k at a time and applied to the queries at once, so
that neither the lambdas of all tokens nor an embedding of pairs is ever held; the backward pass
makes them again. A transform rounds every output by the largest of them, so this form is not for
causal tokens.

Axes: B batch, H queries of a token, U intra-depth, n tokens of a grid of 1 to 3 axes, K rows of a
lambda, V its columns, R offsets of the table. Source: Bello 2021, section 3.1 (the lambdas and
their equivariance to translation); the transform is ours.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from subquad.ops.once_differentiable import once_differentiable

Grid = tuple[int, ...]
Part = tuple[slice, ...]
ALL = (slice(None), slice(None))  # of the table's first two axes
SLICE = 1 << 23  # numbers of a transform held at once, unless a single row k needs more


def correlate_apply(q: Tensor, v: Tensor, table: Tensor, grid: Grid) -> Tensor:
    """Return the position lambdas of all tokens, applied to their queries.

    Args:
        q: (B, H, n, K).
        v: (B, U, n, V).
        table: (K, U, *R), R odd and at most twice the grid's axis.
        grid: the axes whose product is n.

    Returns:
        (B, H, n, V).
    """
    y: Tensor = _CorrelateApply.apply(q, v, table, grid)  # type: ignore[no-untyped-call]
    return y


def padded_sizes(grid: Grid, table_sizes: Grid) -> Grid:
    """Return the axes of the transforms, long enough that no offset wraps around onto the grid."""
    least = [g + r // 2 for g, r in zip(grid, table_sizes, strict=True)]
    # The last axis is a real transform, which is best of even length.
    return (*map(_fast, least[:-1]), 2 * _fast((least[-1] + 1) // 2))


class _CorrelateApply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, table: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(q, v, table)
        ctx.grid = grid
        sizes = padded_sizes(grid, tuple(table.shape[2:]))
        values, kernels = _values(v, grid, sizes), _kernels(table, sizes)
        y = v.new_zeros(len(q), q.shape[1], v.shape[3], v.shape[2])
        for rows in _slices(len(table), values):
            lambdas = _lambdas(values, kernels[rows], grid, sizes)
            _apply(y, q[..., rows], lambdas)
        return y.transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, v, table = ctx.saved_tensors
        grid: Grid = ctx.grid
        sizes = padded_sizes(grid, tuple(table.shape[2:]))
        values, kernels = _values(v, grid, sizes), _kernels(table, sizes)
        grad = grad.transpose(2, 3).contiguous()
        grad_q = torch.empty(
            q.shape[0], q.shape[1], q.shape[3], q.shape[2], dtype=q.dtype, device=q.device
        )
        grad_values, grad_kernels = torch.zeros_like(values), torch.empty_like(kernels)
        for rows in _slices(len(table), values):
            lambdas = _lambdas(values, kernels[rows], grid, sizes)
            for i, k in enumerate(range(rows.start, rows.stop)):
                _differentiate_row(grad, q[..., k], lambdas[i], grad_q[:, :, k])
            back = _transform(_on(grid, lambdas), sizes)
            # The transform of a correlation with real numbers: conjugates.
            for i, k in enumerate(range(rows.start, rows.stop)):
                for u in range(values.shape[1]):
                    grad_values[:, u].addcmul_(back[i], kernels[k, u].conj())
                    if ctx.needs_input_grad[2]:
                        grad_kernels[k, u] = (back[i] * values[:, u].conj()).sum((0, 1))
        grad_v = _invert(grad_values, sizes, grid).flatten(3).transpose(2, 3)
        grad_table = None
        if ctx.needs_input_grad[2]:
            grad_table = _offsets(_invert(grad_kernels, sizes, sizes), tuple(table.shape[2:]))
        return grad_q.transpose(2, 3), grad_v, grad_table, None


def _slices(count: int, values: Tensor) -> Iterator[slice]:
    """Cut the rows k of a lambda so that the transforms of each part are of bounded size."""
    step = max(1, min(count, SLICE // max(1, values[:, 0].numel())))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _apply(y: Tensor, q: Tensor, lambdas: Tensor) -> None:
    """Add lambdas (k, B, V, n) times queries (B, H, n, k) to y (B, H, V, n)."""
    for i, part in enumerate(lambdas):
        y.addcmul_(q[..., i].unsqueeze(2), part.unsqueeze(1))


def _differentiate_row(grad: Tensor, q: Tensor, lambdas: Tensor, grad_q: Tensor) -> None:
    """Put the gradient of queries (B, H, n) into ``grad_q``, that of lambdas (B, V, n) in place.

    Query by query: what is summed over stays in the cache.
    """
    total = torch.zeros_like(lambdas)
    for h in range(grad.shape[1]):
        grad_q[:, h] = (grad[:, h] * lambdas).sum(1)
        total.addcmul_(grad[:, h], q[:, h].unsqueeze(1))
    lambdas.copy_(total)


def _lambdas(values: Tensor, kernels: Tensor, grid: Grid, sizes: Grid) -> Tensor:
    """Return some rows of the lambdas (k, B, V, n)."""
    product = values[:, 0] * kernels[:, 0, None, None]  # no einsum, which would copy
    for u in range(1, values.shape[1]):
        product.addcmul_(values[:, u], kernels[:, u, None, None])
    return _invert(product, sizes, grid).flatten(3)


def _values(v: Tensor, grid: Grid, sizes: Grid) -> Tensor:
    return _transform(_on(grid, v.transpose(2, 3)), sizes)


def _kernels(table: Tensor, sizes: Grid) -> Tensor:
    """Return the transform of the table, offset d at place -d, as a convolution takes it."""
    placed = table.new_zeros(*table.shape[:2], *sizes)
    flipped = table.flip(tuple(range(2, table.dim())))
    for into, of in _corners(tuple(table.shape[2:]), sizes):
        placed[ALL + into] = flipped[ALL + of]
    return _transform(placed, sizes)


def _offsets(placed: Tensor, table_sizes: Grid) -> Tensor:
    """Return the table whose offset d is at place -d: the other way."""
    table = placed.new_empty(*placed.shape[:2], *table_sizes)
    for of, into in _corners(table_sizes, tuple(placed.shape[2:])):
        table[ALL + into] = placed[ALL + of]
    return table.flip(tuple(range(2, table.dim())))


def _corners(
    table_sizes: Grid, sizes: Grid
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Tell where in a circle of ``sizes`` the parts of a table centred at 0 lie, and which."""
    halves = [(size, r // 2) for size, r in zip(sizes, table_sizes, strict=True)]
    axes: list[Any] = [
        ((slice(size - half, size), slice(0, half)), (slice(0, half + 1), slice(half, None)))
        for size, half in halves
    ]
    for corner in itertools.product(*axes):
        yield tuple(into for into, _ in corner), tuple(of for _, of in corner)


def _on(grid: Grid, x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], *grid)


def _transform(x: Tensor, sizes: Grid) -> Tensor:
    """Return the real transform, the last axis first: what is all padding is never transformed."""
    z: Tensor = torch.fft.rfft(x, n=sizes[-1], dim=-1)
    for axis, size in enumerate(reversed(sizes[:-1]), start=2):
        z = torch.fft.fft(z, n=size, dim=-axis)
    return z


def _invert(z: Tensor, sizes: Grid, grid: Grid) -> Tensor:
    """Return the real inverse on the grid; what is cut is not transformed further."""
    for axis, size in reversed(list(enumerate(reversed(sizes[:-1]), start=2))):
        z = torch.fft.ifft(z, dim=-axis).narrow(-axis, 0, grid[-axis])
        assert size >= grid[-axis]
    x: Tensor = torch.fft.irfft(z, n=sizes[-1], dim=-1)
    return x[..., : grid[-1]]


def _fast(least: int) -> int:
    """Return the next length with no prime factor above 5, which transforms are quick at."""
    while True:
        rest = least
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1
