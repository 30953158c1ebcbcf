"""What a Vision Transformer has learned before its first layer: patch filters and position tables.

Axes: D width, C channels, P side of a patch, h and w the grid of patches, K components. Source:
Dosovitskiy et al. 2021, section 4.5, figure 7 (left, centre).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_positions import LearnedAxes, LearnedTable, tables_of
from subquad.models.vit_stems import PatchStem
from subquad.ops.checks import check_positive


class FilterComponents(NamedTuple):
    """Principal components of the patch filters, the greatest first."""

    filters: Float[Tensor, "K C P P"]  # of length 1; the largest number in each is positive
    shares: Float[Tensor, " K"]  # of the filters' variance


@torch.no_grad()
def filter_components(model: VisionTransformer, count: int = 28) -> FilterComponents:
    """Return the leading components of the patch embedding's D filters.

    The filters are rows of a matrix (D, C P P); their mean is taken out, and the components are its
    right singular vectors. At most as many as the smaller side of the matrix.

    Raises:
        TypeError: if ``count`` is not an int.
        ValueError: if it is below 1, or the stem's patches are not of pixels.
    """
    check_positive("count", count)
    if not isinstance(model.stem, PatchStem):
        raise ValueError(
            'stem must be "patch" for filters of patches of pixels, '
            f"got {model.config['stem']!r}, whose patches are of features"
        )
    filters = model.stem.proj.weight
    flat = filters.to(torch.promote_types(filters.dtype, torch.float32)).flatten(1)
    _, sizes, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    variance = sizes.square()
    total = variance.sum()
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = torch.where(largest < 0, -rows, rows)
    return FilterComponents(
        rows[:count].reshape(-1, *filters.shape[1:]),
        (variance / total.masked_fill(total == 0, 1))[:count],
    )


@torch.no_grad()
def position_similarity(model: VisionTransformer) -> Float[Tensor, "h w h w"]:
    """Return the cosine of each patch's position vector with those of all patches.

    Of the table before the first layer, where each layer has its own.

    Raises:
        ValueError: if the model has no tables of positions.
    """
    table = tables_of(model.positions)[0]
    if not isinstance(table, LearnedTable | LearnedAxes):
        raise ValueError(
            'positions must be "learned" or "learned-2d" for their similarity, '
            f"got {model.config['positions']!r}"
        )
    vectors = table(model.grid, model.config["resampling"])[0, -model.grid[0] * model.grid[1] :]
    unit = torch.nn.functional.normalize(
        vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1
    )
    return (unit @ unit.mT).reshape(*model.grid, *model.grid)
