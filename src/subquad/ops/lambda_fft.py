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
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from subquad.ops.once_differentiable import once_differentiable

Grid = tuple[int, ...]
ALL = (slice(None), slice(None))  # of the table's first two axes
SLICE = 1 << 18  # complex numbers of a transform at once, unless one needs more: they stay in cache


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
        q, kernels = q.permute(3, 0, 1, 2).contiguous(), _kernels(table, sizes)
        y = v.new_zeros(q.shape[1], q.shape[2], v.shape[3], v.shape[2])
        for batch, columns in _images(v, sizes):
            values = _values(v[batch, ..., columns], grid, sizes)
            for rows in _rows(len(table), values):
                lambdas = _lambdas(values, kernels[rows], grid, sizes)
                _apply(y[batch, :, columns], q[rows, batch], lambdas)
        return y.transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, v, table = ctx.saved_tensors
        grid: Grid = ctx.grid
        sizes = padded_sizes(grid, tuple(table.shape[2:]))
        grad = grad.transpose(2, 3).contiguous()
        q, kernels = q.permute(3, 0, 1, 2).contiguous(), _kernels(table, sizes)
        grad_q, grad_v = torch.zeros_like(q), torch.empty_like(v)
        grad_kernels = torch.zeros_like(kernels) if ctx.needs_input_grad[2] else None
        for batch, columns in _images(v, sizes):
            values = _values(v[batch, ..., columns], grid, sizes)
            grad_values = torch.zeros_like(values)
            for rows in _rows(len(table), values):
                lambdas = _lambdas(values, kernels[rows], grid, sizes)
                for i, k in enumerate(range(rows.start, rows.stop)):
                    of_y = grad[batch, :, columns]
                    _differentiate_row(of_y, q[k, batch], lambdas[i], grad_q[k, batch])
                back = _transform(_on(grid, lambdas), sizes)
                _differentiate_product(back, values, kernels[rows], grad_values)
                if grad_kernels is not None:
                    _differentiate_kernels(back, values, grad_kernels[rows])
            grad_v[batch, ..., columns] = (
                _invert(grad_values, sizes, grid).flatten(3).transpose(2, 3)
            )
        grad_table = None
        if grad_kernels is not None:
            grad_table = _offsets(_invert(grad_kernels, sizes, sizes), tuple(table.shape[2:]))
        return grad_q.permute(1, 2, 3, 0), grad_v, grad_table, None


def _images(v: Tensor, sizes: Grid) -> Iterator[tuple[slice, slice]]:
    """Cut batch and columns so that their transforms are of bounded size."""
    room = max(1, SLICE // math.prod(sizes[:-1]) // (sizes[-1] // 2 + 1))
    columns = min(v.shape[3], room)
    for batch in _parts(len(v), room // columns):
        for part in _parts(v.shape[3], columns):
            yield batch, part


def _rows(count: int, values: Tensor) -> Iterator[slice]:
    """Cut the rows k of a lambda likewise."""
    return _parts(count, SLICE // max(1, values[:, 0].numel()))


def _parts(count: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _apply(y: Tensor, q: Tensor, lambdas: Tensor) -> None:
    """Add lambdas (k, B, V, n) times queries (k, B, H, n) to y (B, H, V, n)."""
    for queries, part in zip(q, lambdas, strict=True):
        y.addcmul_(queries.unsqueeze(2), part.unsqueeze(1))


def _differentiate_row(grad: Tensor, q: Tensor, lambdas: Tensor, grad_q: Tensor) -> None:
    """Add the gradient of queries (B, H, n) to ``grad_q``, put that of lambdas (B, V, n) in place.

    Query by query: what is summed over stays in the cache.
    """
    total = torch.zeros_like(lambdas)
    for h in range(grad.shape[1]):
        grad_q[:, h] += (grad[:, h] * lambdas).sum(1)
        total.addcmul_(grad[:, h], q[:, h].unsqueeze(1))
    lambdas.copy_(total)


def _differentiate_product(
    back: Tensor, values: Tensor, kernels: Tensor, grad_values: Tensor
) -> None:
    """Add the gradient of the values' transform: a correlation with real numbers, so conjugates."""
    for part, kernel in zip(back, kernels, strict=True):
        for u in range(values.shape[1]):
            grad_values[:, u].addcmul_(part, kernel[u].conj())


def _differentiate_kernels(back: Tensor, values: Tensor, grad_kernels: Tensor) -> None:
    """Add that of the kernels' transform."""
    for part, grad_kernel in zip(back, grad_kernels, strict=True):
        for u in range(values.shape[1]):
            grad_kernel[u] += (part * values[:, u].conj()).sum((0, 1))


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
    """Return the real transform of the last axes, which come out in the order that it needs.

    An axis is transformed where it is the last, and then turned to the front of the grid's axes:
    rows of numbers beside each other, and what is all padding is never transformed.
    """
    z: Tensor = torch.fft.rfft(x, n=sizes[-1])
    for size in reversed(sizes[:-1]):
        z = torch.fft.fft(z.movedim(-1, -len(sizes)), n=size)
    return z


def _invert(z: Tensor, sizes: Grid, grid: Grid) -> Tensor:
    """Return the real inverse on the grid, back the same way; what is cut is not turned over."""
    for length in grid[:-1]:
        z = torch.fft.ifft(z)[..., :length].movedim(-len(sizes), -1)
    x: Tensor = torch.fft.irfft(z, n=sizes[-1])
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
