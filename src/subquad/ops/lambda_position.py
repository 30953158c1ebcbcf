"""Position lambdas applied to queries: what a lambda layer sees of where things are.

    lambda_n = sum_m sum_u E[n, m, u] v[m, u]^T,   y_n^h = lambda_n^T q_n^h

E depends on the offset m - n alone: E[n, m, u] = R[:, u, m - n], 0 where the table R ends. So a
table of 2 G - 1 offsets an axis of G tokens is a global context, a smaller one a local context, the
same as a convolution of the values with R (zeros beyond the border of the grid).

| form | operations a token and query | memory beyond inputs and outputs |
|---|---|---|
| quadratic, the definition | n K U (1 + V) | n^2 K U |
| by rows | n (K + V) U | B H s n of s queries, and n^2 places of offsets |
| by Fourier transform | K V log n / H | the transforms of a few rows k |

These two never hold B n K V numbers; the definition, the paper's einsum and the convolution do.

Axes: B batch, H queries of a token, U intra-depth, N tokens of a grid of 1 to 3 axes, K rows of a
lambda, V its columns, R offsets. Source: Bello 2021, "LambdaNetworks: modeling long-range
interactions without attention", sections 3.1 and 3.2, and its lambda convolution.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from subquad.ops.checks import check_batch_size, check_positive
from subquad.ops.feature_maps import no_autocast
from subquad.ops.lambda_fft import Grid, correlate_apply, padded_sizes

Form = Literal["auto", "quadratic", "einsum", "convolution", "rows", "fft"]
FORMS: tuple[Form, ...] = get_args(Form)
# In operations of a matrix product, as measured on a CPU: an operation of a transform, the start of
# all transforms, and the gathering of an embedding of a pair with the adding up of its gradient.
TRANSFORM, START, GATHER = 10.0, 1e7, 70.0
BLOCK = 1 << 22  # weights (B, H, s, N) of a block of queries, in the form by rows


def position_interactions_quadratic(
    q: Float[Tensor, "B H N K"], v: Float[Tensor, "B U N V"], table: Tensor, *, grid: Grid
) -> Float[Tensor, "B H N V"]:
    """Compute the definition, a lambda for each token; the other forms are tested against it."""
    embeddings = pair_embeddings(table, grid)
    out = []
    for n in range(q.shape[2]):
        position_lambda = torch.einsum("mku,bumv->bkv", embeddings[n], v)
        out.append(torch.einsum("bhk,bkv->bhv", q[:, :, n], position_lambda))
    return torch.stack(out, 2)


def position_interactions_einsum(
    q: Float[Tensor, "B H N K"], v: Float[Tensor, "B U N V"], table: Tensor, *, grid: Grid
) -> Float[Tensor, "B H N V"]:
    """Compute all lambdas at once, as the paper's listing does: B N K V numbers."""
    lambdas = torch.einsum("nmku,bumv->bnkv", pair_embeddings(table, grid), v)
    return torch.einsum("bhnk,bnkv->bhnv", q, lambdas)


def position_interactions_convolution(
    q: Float[Tensor, "B H N K"], v: Float[Tensor, "B U N V"], table: Tensor, *, grid: Grid
) -> Float[Tensor, "B H N V"]:
    """Compute all lambdas as a convolution of the values with the table: B N K V numbers."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1]
    columns = v.permute(0, 3, 1, 2).flatten(0, 1)
    columns = columns.reshape(*columns.shape[:2], *grid)  # (B V, U, *grid)
    lambdas = convolve(columns, table, padding=[r // 2 for r in table.shape[2:]]).flatten(2)
    return torch.einsum(
        "bhnk,bvkn->bhnv", q, lambdas.reshape(len(v), v.shape[3], *lambdas.shape[1:])
    )


def position_interactions_rows(
    q: Float[Tensor, "B H N K"],
    v: Float[Tensor, "B U N V"],
    table: Tensor,
    *,
    grid: Grid,
    block_size: int | None = None,
) -> Float[Tensor, "B H N V"]:
    """Compute the weights of a few queries on all values at a time, and never a lambda.

    The backward pass makes the weights again.

    Args:
        block_size: queries worked on at once; changes speed and memory only.
    """
    count = q.shape[2]
    if block_size is not None:
        check_positive("block_size", block_size)
    else:
        a_query = len(q) * q.shape[1] * count * v.shape[1] + count * table.shape[0] * v.shape[1]
        block_size = max(1, BLOCK // a_query)
    indices = offset_places(table, grid)
    flat = F.pad(table.flatten(2), (0, 1))  # the last place is that of offsets beyond the table

    def attend(q: Tensor, v: Tensor, flat: Tensor, rows: Tensor) -> Tensor:
        weights = torch.einsum("bhsk,kusm->bhusm", q, flat[:, :, rows])
        return torch.einsum("bhusm,bumv->bhsv", weights, v)

    out = []
    for start in range(0, count, block_size):
        part, rows = q[:, :, start : start + block_size], indices[start : start + block_size]
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, v, table)):
            y = checkpoint(attend, part, v, flat, rows, use_reentrant=False)
        else:
            y = attend(part, v, flat, rows)
        out.append(y)
    return torch.cat(out, 2)


def offset_places(
    table: Tensor, grid: Grid, rows: Int[Tensor, " R"] | None = None
) -> Int[Tensor, "R N"]:
    """Return for each pair n, m where its embedding lies in the flattened table; see there.

    Offsets beyond the table have the place after the last one. ``rows`` are the tokens n, None for
    all.
    """
    sizes, count = tuple(table.shape[2:]), math.prod(grid)
    rows = torch.arange(count, device=table.device) if rows is None else rows
    places = torch.zeros((), dtype=torch.long, device=table.device)
    inside = torch.ones((), dtype=torch.bool, device=table.device)
    stride = count
    for axis, (length, size) in enumerate(zip(grid, sizes, strict=True)):
        stride //= length
        at = torch.arange(length, device=table.device)
        offset = at - (rows // stride % length).unsqueeze(1) + size // 2
        shape = [1] * len(grid)
        shape[axis] = length
        offset = offset.reshape(len(rows), *shape)
        places = places * size + offset
        inside = inside & (offset >= 0) & (offset < size)
    return places.masked_fill(~inside, math.prod(sizes)).reshape(len(rows), count)


def pair_embeddings(table: Tensor, grid: Grid) -> Float[Tensor, "N N K U"]:
    """Return E, the embedding of each pair: N^2 K U numbers."""
    return _gathered(table, offset_places(table, grid))


def pair_rows(table: Tensor, grid: Grid, rows: Int[Tensor, " R"]) -> Float[Tensor, "R N K U"]:
    """Return the embeddings of the pairs of some tokens n with all m."""
    return _gathered(table, offset_places(table, grid, rows))


def _gathered(table: Tensor, places: Int[Tensor, "R N"]) -> Float[Tensor, "R N K U"]:
    return F.pad(table.flatten(2), (0, 1))[:, :, places].permute(2, 3, 0, 1)


def position_interactions(
    q: Float[Tensor, "B H N K"],
    v: Float[Tensor, "B U N V"],
    table: Tensor,
    *,
    grid: Grid,
    form: Form = "auto",
) -> Float[Tensor, "B H N V"]:
    """Apply the position lambda of each token to its queries.

    Args:
        q: queries (B, H, N, K).
        v: values (B, U, N, V).
        table: embeddings by offset (K, U, *R), one odd R for each axis of the grid; the offset 0 is
            in the middle.
        grid: the axes of the tokens, whose product is N, the last one running fastest.
        form: how it is computed; "auto" chooses by shape between "rows" and "fft".

    Returns:
        (B, H, N, V).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device or the form does not fit.
    """
    check_position_inputs(q, v, table, grid)
    if form not in FORMS:
        raise ValueError(f"form must be among {', '.join(FORMS)}, got {form!r}")
    table = _cropped(table, grid)
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    dtype = torch.promote_types(dtype, table.dtype)
    with no_autocast(q):
        wide = (q.to(dtype), v.to(dtype), table.to(dtype))
        y = _FORMS[_chosen(form, q, v, table, grid)](*wide, grid=grid)
    return y.to(v.dtype)


def _fft(q: Tensor, v: Tensor, table: Tensor, *, grid: Grid) -> Tensor:
    if not len(q):  # which no transform takes
        return position_interactions_rows(q, v, table, grid=grid)
    return correlate_apply(q, v, table, grid)


_FORMS = {
    "quadratic": position_interactions_quadratic,
    "einsum": position_interactions_einsum,
    "convolution": position_interactions_convolution,
    "rows": position_interactions_rows,
    "fft": _fft,
}


def _chosen(form: Form, q: Tensor, v: Tensor, table: Tensor, grid: Grid) -> Form:
    """Return the form; AUTO's is the one of less work, in operations of a matrix product."""
    if form != "auto":
        return form
    batch, heads, count, rows = q.shape
    depth, columns = v.shape[1], v.shape[3]
    padded = math.prod(padded_sizes(grid, tuple(table.shape[2:])))
    products = heads * count * count * (rows + columns) * depth
    embeddings = count * count * rows * depth
    spectra = rows * columns * padded * (math.log2(padded) + 3 * depth)
    transforms = spectra + heads * count * rows * columns
    by_rows = batch * products + GATHER * embeddings  # gathered once for all examples
    return "rows" if by_rows < batch * TRANSFORM * transforms + START else "fft"


def chosen_form(q: Tensor, v: Tensor, table: Tensor, *, grid: Grid) -> Form:
    """Return the form that "auto" stands for at these shapes; see ``position_interactions``."""
    return _chosen("auto", q, v, _cropped(table, grid), grid)


def _cropped(table: Tensor, grid: Grid) -> Tensor:
    """Leave out the offsets that no pair of tokens of the grid has."""
    for axis, length in enumerate(grid, start=2):
        half = min(table.shape[axis] // 2, length - 1)
        table = table.narrow(axis, table.shape[axis] // 2 - half, 2 * half + 1)
    return table


def check_position_inputs(q: Tensor, v: Tensor, table: Tensor, grid: Grid) -> None:
    """Require what ``position_interactions`` takes; errors as there."""
    for name, x in (("q", q), ("v", v), ("table", table)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of floating point, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on the device of q ({q.device}), got {x.device}")
    if not 1 <= len(grid) <= 3 or min(grid) < 1:
        raise ValueError(f"grid must have 1 to 3 axes of at least 1 token, got {tuple(grid)}")
    shapes = (tuple(q.shape), tuple(v.shape))
    if q.dim() != 4 or v.dim() != 4 or {x[2] for x in shapes} != {math.prod(grid)}:
        raise ValueError(
            f"q and v must have the shapes (B, H, N, K) and (B, U, N, V) with the N = "
            f"{math.prod(grid)} tokens of the grid, got {shapes[0]} and {shapes[1]}"
        )
    check_batch_size("v", v, "q", q)
    _check_table(table, (q.shape[3], v.shape[1]), len(grid))


def _check_table(table: Tensor, rows_and_depth: tuple[int, int], num_axes: int) -> None:
    sizes = tuple(table.shape[2:])
    if tuple(table.shape[:2]) != rows_and_depth or len(sizes) != num_axes:
        raise ValueError(
            f"table must have the shape (K, U) = {rows_and_depth} and {num_axes} axes of offsets, "
            f"got {tuple(table.shape)}"
        )
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"table must have odd axes of offsets, got {sizes}")
