"""What a Vision Transformer looks at: the figures of ``subquad explain``, from plain arrays.

Axes: L layers, H heads, B images, h and w the grid of patches, K components, C channels, P the side
of a patch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from numpy.typing import NDArray

from subquad.plots.style import CYCLE, MUTED, TEXT, new_figure, plain_axes

Array = NDArray[Any]

MOST_COLUMNS = 6
GAP = 1  # cells between the small grids of positions
MOST_GRIDS = 16  # of these along a side; of more every second, third, ... is drawn


def distance_figure(distance: Sequence[Array], *, uniform: float, image_size: str) -> Figure:
    """Return each head's distance against its layer, and the line of a head that sees all alike.

    Args:
        distance: an array (H,) a layer, in pixels; NaN is left out.
        uniform: the distance of a head that weighs all patches alike.
        image_size: of the model's images, for the axis, such as "28 x 28".
    """
    figure = new_figure(min(11.0, 3.6 + 0.42 * len(distance)), 3.8)
    axes = figure.subplots()
    for layer, heads in enumerate(distance, start=1):
        # Side by side, so that heads of one distance do not hide each other.
        offsets = np.linspace(-0.22, 0.22, len(heads)) if len(heads) > 1 else np.zeros(1)
        axes.scatter(
            layer + offsets, heads, s=26, color=CYCLE[0], edgecolors="white", linewidths=0.5,
            zorder=3, clip_on=False,
        )  # fmt: skip
    axes.axhline(uniform, color=MUTED, linestyle="--", linewidth=1.2)
    plain_axes(axes)
    axes.set_xlim(0.5, len(distance) + 0.5)
    highest = max(uniform, float(np.nan_to_num(np.concatenate(distance)).max()))
    axes.set_ylim(bottom=0, top=1.12 * highest or 1.0)
    axes.set_xticks(range(1, len(distance) + 1, math.ceil(len(distance) / 12)))
    axes.set_xlabel("layer (a dot for each head)", fontsize=10, color=TEXT)
    axes.set_ylabel(f"attention distance, pixels of {image_size}", fontsize=10, color=TEXT)
    axes.set_title(
        "How far heads look\n(dashed: one that weighs all patches alike)",
        fontsize=10, color=TEXT, loc="left",
    )  # fmt: skip
    return figure


def rollout_figure(pictures: Array, rollout: Array, labels: Sequence[str]) -> Figure:
    """Return pairs of each picture and the rollout over it, in one scale for all pictures.

    The colour is the rollout, white an even spread; the brightness is the picture.

    Args:
        pictures: (B, height, width) or (B, height, width, C) with C of 1 or 3, uint8.
        rollout: (B, h, w), shares of the patches.
        labels: a line each, above the pictures.

    Raises:
        ValueError: if the shapes do not fit.
    """
    shown = _rgb(pictures)
    if rollout.ndim != 3 or not len(shown) == len(rollout) == len(labels):
        raise ValueError(
            f"rollout must have the shape (B, h, w) and labels B lines for {len(shown)} pictures, "
            f"got {rollout.shape} and {len(labels)} labels"
        )
    columns = min(len(shown), MOST_COLUMNS)
    bands = math.ceil(len(shown) / columns)
    side = 1.9
    tall = side * min(1.6, shown.shape[1] / shown.shape[2])
    figure = new_figure(max(4.2, side * columns + 1.1), bands * (2 * tall + 0.6) + 0.5)
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    times = rollout * rollout[0].size
    least, most = min(0.99, float(times.min())), max(1.01, float(times.max()))
    colors = ScalarMappable(TwoSlopeNorm(1.0, least, most), "coolwarm")
    for i in range(bands * columns):
        upper, lower = (grid[2 * (i // columns) + row, i % columns] for row in (0, 1))
        _bare(upper, lower)
        if i >= len(shown):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        upper.set_title(_short(labels[i]), fontsize=8, color=TEXT, parse_math=False)
        upper.imshow(shown[i], interpolation="nearest")
        lower.imshow(_tinted(shown[i], times[i], colors), interpolation="nearest")
    bar = _colorbar(figure, colors, grid, "share of a patch, times that of an even spread")
    middles = (1 + least) / 2, (1 + most) / 2
    bar.set_ticks([least, middles[0], 1, middles[1], most])
    bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%.2f"))
    figure.suptitle("Attention rollout over the picture", fontsize=11, color=TEXT)
    return figure


def filters_figure(filters: Array, shares: Array) -> Figure:
    """Return the components as small pictures, each with its share of the filters' variance.

    With three channels they are colours, grey being 0; with one, red is above 0 and blue below.
    Each has a scale of its own.

    Args:
        filters: (K, C, P, P), C of 1 or 3.
        shares: (K,).

    Raises:
        ValueError: if the shapes do not fit.
    """
    if filters.ndim != 4 or filters.shape[1] not in (1, 3) or len(shares) != len(filters):
        raise ValueError(
            "filters must have the shape (K, 1, P, P) or (K, 3, P, P) with K shares, "
            f"got {filters.shape} and {len(shares)} shares"
        )
    columns = min(len(filters), 7)
    lines = math.ceil(len(filters) / columns)
    figure = new_figure(max(3.6, 1.05 * columns), 1.28 * lines + 0.5)
    grid = figure.subplots(lines, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        _bare(axes)
        if i >= len(filters):
            axes.set_axis_off()
            continue
        top = float(np.abs(filters[i]).max()) or 1.0
        if filters.shape[1] == 3:
            axes.imshow(0.5 + filters[i].transpose(1, 2, 0) / (2 * top), interpolation="nearest")
        else:
            axes.imshow(filters[i, 0], cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
        axes.set_title(f"{i + 1}: {_percent(float(shares[i]))}", fontsize=8, color=TEXT)
    figure.suptitle(
        "Principal components of the patch filters,\nand their share of the variance",
        fontsize=10, color=TEXT,
    )  # fmt: skip
    return figure


def positions_figure(similarity: Array) -> Figure:
    """Return a grid of small grids: patch (i, j)'s cosine with all patches stands at (i, j).

    Of more than 16 patches along a side, every second, third, ... has a small grid.

    Args:
        similarity: (h, w, h, w).

    Raises:
        ValueError: if it has another shape.
    """
    if similarity.ndim != 4 or similarity.shape[:2] != similarity.shape[2:]:
        raise ValueError(f"similarity must have the shape (h, w, h, w), got {similarity.shape}")
    rows, columns = similarity.shape[:2]
    down, across = (range(0, side, math.ceil(side / MOST_GRIDS)) for side in (rows, columns))
    shape = len(down) * (rows + GAP) - GAP, len(across) * (columns + GAP) - GAP
    mosaic = np.full(shape, np.nan)
    for i, j in np.ndindex(len(down), len(across)):
        top, left = i * (rows + GAP), j * (columns + GAP)
        mosaic[top : top + rows, left : left + columns] = similarity[down[i], across[j]]
    figure = new_figure(6.4, max(2.6, min(9.0, 5.6 * shape[0] / shape[1])))
    axes = figure.subplots()
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    for axis, drawn, side in ((axes.xaxis, across, columns), (axes.yaxis, down, rows)):
        labelled = range(0, len(drawn), math.ceil(len(drawn) / 14))
        axis.set_ticks([i * (side + GAP) + (side - 1) / 2 for i in labelled])
        axis.set_ticklabels([str(drawn[i] + 1) for i in labelled])
    _quiet(axes)
    axes.set_xlabel("the patch's column", fontsize=10, color=TEXT)
    axes.set_ylabel("the patch's row", fontsize=10, color=TEXT)
    axes.set_title("Position vectors, each beside all others", fontsize=11, color=TEXT)
    _colorbar(figure, image, axes, "cosine similarity")
    return figure


def heads_figure(weights: Sequence[Array], outputs: Sequence[Array]) -> Figure:
    """Return two matrices (H, H) a layer: how alike heads look, above, and what they put out.

    Args:
        weights: of each layer, mean cosine of two heads' weights of a query.
        outputs: of each layer, linear CKA of two heads' outputs.

    Raises:
        ValueError: if layers differ in number.
    """
    if len(weights) != len(outputs) or not weights:
        raise ValueError(
            f"weights and outputs must have as many layers, got {len(weights)} and {len(outputs)}"
        )
    columns = min(len(weights), MOST_COLUMNS)
    bands = math.ceil(len(weights) / columns)
    figure = new_figure(max(4.6, 1.65 * columns + 1.6), bands * 3.7 + 0.4)
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    low = min(0.0, *(float(matrix.min()) for matrix in weights))
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": 1, "interpolation": "nearest"}
    for i in range(bands * columns):
        pair = [grid[2 * (i // columns) + row, i % columns] for row in (0, 1)]
        for axes, matrices in zip(pair, (weights, outputs), strict=True):
            if i >= len(weights):
                axes.set_axis_off()
                continue
            image = axes.imshow(matrices[i], **scale)
            count = len(matrices[i])
            ticks = list(range(0, count, max(1, math.ceil(count / 8))))
            axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
            axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
            _quiet(axes)
        if i < len(weights):
            pair[0].set_title(f"layer {i + 1}", fontsize=9, color=TEXT)
    for band in range(bands):
        grid[2 * band, 0].set_ylabel("where they look\nhead", fontsize=9, color=TEXT)
        grid[2 * band + 1, 0].set_ylabel("what they put out\nhead", fontsize=9, color=TEXT)
    _colorbar(figure, image, grid, "cosine of weights, CKA of outputs")
    figure.suptitle("How alike heads are", fontsize=11, color=TEXT)
    return figure


def _rgb(pictures: Array) -> Array:
    fits = pictures.dtype == np.uint8 and pictures.ndim in (3, 4) and pictures.size > 0
    if not fits or (pictures.ndim == 4 and pictures.shape[3] not in (1, 3)):
        raise ValueError(
            "pictures must be uint8 (B, height, width), or with 1 or 3 channels behind, "
            f"got {pictures.dtype} {pictures.shape}"
        )
    tiles = pictures if pictures.ndim == 4 else pictures[..., None]
    return np.repeat(tiles, 3, axis=3) if tiles.shape[3] == 1 else tiles


def _tinted(picture: Array, times: Array, colors: ScalarMappable) -> Array:
    """Return the picture as the brightness of the map's colours, bilinear between patches."""
    height, width = picture.shape[:2]
    rows = np.clip((np.arange(height) + 0.5) * len(times) / height - 0.5, 0, len(times) - 1)
    columns = (np.arange(width) + 0.5) * times.shape[1] / width - 0.5
    across = np.stack([np.interp(columns, np.arange(times.shape[1]), row) for row in times])
    down = np.stack([np.interp(rows, np.arange(len(times)), column) for column in across.T], axis=1)
    brightness = 0.5 + 0.5 * picture.mean(-1, keepdims=True) / 255
    tinted: Array = colors.to_rgba(down)[..., :3] * brightness
    return tinted


def _short(label: str, most: int = 24) -> str:
    lines = label.split("\n")
    return "\n".join(each if len(each) <= most else f"{each[: most - 1]}…" for each in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.1f}%"


def _bare(*panels: Axes) -> None:
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)


def _quiet(axes: Axes) -> None:
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colorbar(figure: Figure, image: ScalarMappable, panels: Any, label: str) -> Colorbar:
    where = panels.ravel().tolist() if isinstance(panels, np.ndarray) else panels
    bar = figure.colorbar(image, ax=where, shrink=0.85, aspect=28)
    bar.set_label(label, fontsize=9, color=TEXT)
    bar.ax.tick_params(labelsize=8, colors=MUTED)
    return bar
