"""Measures of attention, as functions of plain tensors.

Where a measure needs shares it takes |w_ij| / sum_j |w_ij|: the weights themselves where they are a
mean's, as softmax's. What is measured of each query by itself takes any rows of a layer's weights.

Axes: B images, H heads, T tokens, R rows (queries), N patches, V value width. Sources: Dosovitskiy
et al. 2021, section 4.5 and appendix; Abnar & Zuidema 2020 (rollout); Kornblith et al. 2019 (linear
CKA).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Grid = tuple[int, int]

ROUNDING = 1e-6  # outputs that differ by no larger share of their size are one vector


class Products(NamedTuple):
    """What linear CKA needs of heads' outputs, in float64: how many tokens, mean, and Y_g^T Y_h."""

    tokens: int
    mean: Float[Tensor, "H V"]
    products: Float[Tensor, "H H V V"]


def patch_shares(weights: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows T"]:
    """Return |w_j| / sum_j |w_j|; a row of zeros stays one."""
    sizes = weights.abs()
    total = sizes.sum(-1, keepdim=True)
    return sizes.div_(total.masked_fill(total == 0, 1))


def pixel_distances(
    grid: Grid, patch_size: int, *, rows: slice = slice(None), device: torch.device | None = None
) -> Float[Tensor, "R N"]:
    """Return the distances between the centres of patches, in pixels, in raster order.

    Args:
        grid: patches down and across.
        patch_size: pixels of a patch's side.
        rows: of which patches; by default of all.
        device: where.
    """
    down = torch.arange(grid[0], device=device, dtype=torch.float64)
    across = torch.arange(grid[1], device=device, dtype=torch.float64)
    places = torch.cartesian_prod(down, across).reshape(-1, 2)
    exact = "donot_use_mm_for_euclid_dist"
    return patch_size * torch.cdist(places[rows], places, compute_mode=exact)


def mean_pixel_distance(grid: Grid, patch_size: int) -> float:
    """Return the mean distance of all patches from all, by how often each offset occurs."""
    down, across = (torch.arange(side, dtype=torch.float64) for side in grid)
    shares = [
        (side - offset) * (1 + (offset > 0).double()) / side**2
        for side, offset in zip(grid, (down, across), strict=True)
    ]
    return patch_size * float(shares[0] @ torch.hypot(down[:, None], across) @ shares[1])


def query_distances(
    weights: Float[Tensor, "B H R T"], distances: Float[Tensor, "R N"]
) -> tuple[Float[Tensor, "B H R"], Bool[Tensor, "B H R"]]:
    """Return sum_j A_ij D_ij of each query, and whether it looks at a patch at all.

    A are the shares between patches alone, the last N tokens; 0 where a query looks at none.
    """
    shares = patch_shares(weights[..., weights.shape[-1] - distances.shape[1] :])
    found = (shares * distances.to(shares.dtype)).sum(-1)
    return found, shares.sum(-1) > 0


def attention_distance(
    weights: Float[Tensor, "B H T T"], grid: Grid, patch_size: int, *, num_class: int = 0
) -> Float[Tensor, "B H"]:
    """Return how far each head looks: mean_i sum_j A_ij D_ij, in pixels.

    D are the distances between patches' centres; A are the shares between patches alone. The class
    token has no place, so its row and its column are dropped and the rows normalised anew, on which
    the paper says nothing. A patch that looks at no other patch counts for no distance in the mean
    of the others; a head of such patches alone gives NaN.

    Args:
        weights: of one layer.
        grid: patches down and across.
        patch_size: pixels of a patch's side.
        num_class: tokens before the patches, 0 or 1.

    Raises:
        ValueError: if the tokens are not those of the grid.
    """
    _check_tokens(weights, grid, num_class)
    distances = pixel_distances(grid, patch_size, device=weights.device)
    by_query, looks = query_distances(weights[:, :, num_class:], distances)
    return by_query.sum(-1) / looks.sum(-1)


def query_class_shares(
    weights: Float[Tensor, "B H R T"], *, num_class: int
) -> Float[Tensor, "B H R"]:
    """Return the class token's share in what each query looks at."""
    return patch_shares(weights)[..., :num_class].sum(-1)


def class_share(weights: Float[Tensor, "B H T T"], *, num_class: int = 0) -> Float[Tensor, "B H"]:
    """Return the class token's mean share in what patches look at; 0 where there is none."""
    return query_class_shares(weights[:, :, num_class:], num_class=num_class).mean(-1)


def negative_share(weights: Float[Tensor, "B H T T"]) -> Float[Tensor, " H"]:
    """Return how much of each head's weights is negative, as a share of the sum of their sizes."""
    negative, total = signed_sizes(weights)
    return negative / total.masked_fill(total == 0, 1)


def signed_sizes(
    weights: Float[Tensor, "B H R T"],
) -> tuple[Float[Tensor, " H"], Float[Tensor, " H"]]:
    """Return the sums of the sizes of each head's negative weights, and of all its weights."""
    return weights.clamp(max=0).sum((0, 2, 3)).neg(), weights.abs().sum((0, 2, 3))


def rollout_rows(
    weights: Float[Tensor, "B H R T"], rows: slice = slice(None)
) -> Float[Tensor, "B R T"]:
    """Return rows of A' = (mean_h A_h + I) / 2, normalised: so each sums to 1.

    The half for I stands for the residual connection.
    """
    mixed = patch_shares(weights).mean(1)
    count = range(mixed.shape[-1])[rows]
    places = torch.arange(count.start, count.stop, device=mixed.device)
    mixed[:, torch.arange(len(places), device=mixed.device), places] += 1
    return patch_shares(mixed)


def rollout_step(
    weights: Float[Tensor, "B H T T"], before: Float[Tensor, "B T T"] | None = None
) -> Float[Tensor, "B T T"]:
    """Return the rollout behind one more layer: A' R; its rows sum to 1."""
    mixed = rollout_rows(weights)
    return mixed if before is None else mixed @ before


def attention_rollout(layers: Iterable[Float[Tensor, "B H T T"]]) -> Float[Tensor, "B T T"]:
    """Return A'_L ... A'_1: row i says what share each token of the first layer has in token i.

    Raises:
        ValueError: if there is no layer.
    """
    rollout: Tensor | None = None
    for weights in layers:
        rollout = rollout_step(weights, rollout)
    if rollout is None:
        raise ValueError("layers must hold the weights of at least one layer, got none")
    return rollout


def query_cosines(weights: Float[Tensor, "B H R T"]) -> Float[Tensor, "B R H H"]:
    """Return the cosine of two heads' weights of each query; 0 where one looks at nothing."""
    by_query = weights.transpose(1, 2)  # no normalised copy of all weights is made
    products = by_query @ by_query.mT
    lengths = products.diagonal(dim1=2, dim2=3).sqrt()
    both = lengths.unsqueeze(3) * lengths.unsqueeze(2)
    return products / both.masked_fill(both == 0, 1)


def head_similarity(weights: Float[Tensor, "B H T T"]) -> Float[Tensor, "H H"]:
    """Return how alike heads look: the cosine of two heads' weights of a query, mean over queries.

    1: the same tokens in the same proportions. Weights that are not negative never give less than
    0, and two heads that both look everywhere are alike in this sense.
    """
    return query_cosines(weights).mean((0, 1))


def output_similarity(outputs: Float[Tensor, "B H T V"]) -> Float[Tensor, "H H"]:
    """Return how alike what heads put out is, by linear CKA over all tokens of all images.

    |Y_g^T Y_h|^2 / (|Y_g^T Y_g| |Y_h^T Y_h|) with Frobenius norms, of outputs less their mean:
    1 where one is the other turned and scaled. Few tokens beside V make it too high. A head that
    puts out one vector has 0 with all.
    """
    return linear_cka(output_products(outputs))


def output_products(outputs: Float[Tensor, "B H T V"]) -> Products:
    """Return what linear CKA needs of some images' outputs; see ``joined_products``."""
    y = outputs.double().transpose(0, 1).flatten(1, 2)
    mean = y.mean(1)
    y = y - mean.unsqueeze(1)
    return Products(y.shape[1], mean, torch.einsum("gnv,hnu->ghvu", y, y))


def joined_products(one: Products | None, other: Products) -> Products:
    """Return those of both together: of each about its own mean, and of the means."""
    if one is None:
        return other
    tokens = one.tokens + other.tokens
    apart = other.mean - one.mean
    between = torch.einsum("gv,hu->ghvu", apart, apart) * (one.tokens * other.tokens / tokens)
    mean = one.mean + apart * (other.tokens / tokens)
    return Products(tokens, mean, one.products + other.products + between)


def linear_cka(found: Products) -> Float[Tensor, "H H"]:
    """Return the similarity of each two heads; see ``output_similarity``."""
    shared = found.products.square().sum((2, 3))
    own = shared.diagonal().sqrt()
    constant = own <= ROUNDING**2 * found.tokens * found.mean.square().sum(1)
    none = constant[:, None] | constant
    return (shared / (own[:, None] * own).masked_fill(none, 1)).masked_fill(none, 0)


def _check_tokens(weights: Tensor, grid: Grid, num_class: int) -> None:
    expected = grid[0] * grid[1] + num_class
    if weights.dim() != 4 or weights.shape[2:] != (expected, expected):
        raise ValueError(
            f"weights must have the shape (B, H, {expected}, {expected}) for a grid of "
            f"{grid[0]} x {grid[1]} and num_class={num_class}, got {tuple(weights.shape)}"
        )
