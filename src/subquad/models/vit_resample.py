"""A grid of vectors at another size: position tables of images of another resolution.

Four published codes do it in four ways, which give slightly different tables:

| method | of | what |
|---|---|---|
| "zoom" | Google's code (scipy.ndimage.zoom, order=1) | linear, corners stay corners |
| "bilinear" | timm, from .npz files | linear, cells stay cells |
| "bicubic-antialias" | timm, from state dicts and at run time | cubic, smoothed where it shrinks |
| "bicubic" | transformers | cubic |
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import check_choice

Resampling = Literal["zoom", "bilinear", "bicubic-antialias", "bicubic"]
METHODS: dict[str, dict[str, Any]] = {
    "zoom": {"mode": "bilinear", "align_corners": True},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bicubic-antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
}


def resample_grid(
    table: Float[Tensor, "B h w D"], grid: tuple[int, int], method: Resampling
) -> Float[Tensor, "B h2 w2 D"]:
    """Return ``table`` at another size, computed in float32 or wider; of its own size as it is.

    Args:
        table: a vector for each place.
        grid: the new height and width.
        method: how; see above.

    Raises:
        ValueError: if ``method`` is unknown.
    """
    check_choice("method", method, tuple(METHODS))
    if tuple(table.shape[1:3]) == tuple(grid):
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32)).permute(0, 3, 1, 2)
    resampled = F.interpolate(wide, size=tuple(grid), **METHODS[method])
    return resampled.permute(0, 2, 3, 1).to(table.dtype)
