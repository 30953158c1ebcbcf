"""What each head attends to: rows of the attention matrix as heat maps, or laid over a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from subquad.plots.style import MUTED, TEXT, new_figure

Weights = NDArray[Any]  # (H, R, T): R chosen rows of T tokens by head


def attention_figure(weights: Weights, rows: Sequence[int]) -> Figure:
    """Return a heat map a head: the chosen rows from top to bottom, all tokens from left to right.

    One scale for all heads. Blue where weights are negative, as rotary positions can make them.

    Args:
        weights: (H, R, T).
        rows: which token each of the R rows belongs to.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(weights, rows)
    heads, count, length = weights.shape
    columns = min(heads, 4)
    lines = -(-heads // columns)
    figure = new_figure(2.7 * columns + 0.6, lines * (0.7 + 2.4 * min(1.0, count / length)))
    grid = figure.subplots(lines, columns, squeeze=False)
    for head, axes in enumerate(grid.flat):
        if head >= heads:
            axes.set_axis_off()
            continue
        image = _draw(axes, weights[head], weights)
        axes.set_title(f"head {head + 1}", fontsize=9, color=TEXT)
        ticks = sorted({0, count // 2, count - 1})
        axes.set_yticks(ticks, [str(rows[tick]) for tick in ticks])
        axes.tick_params(colors=MUTED, labelsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("token", fontsize=9, color=TEXT)
    for axes in grid[-1]:
        axes.set_xlabel("looks at token", fontsize=9, color=TEXT)
    figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.8).ax.tick_params(labelsize=8)
    return figure


def picture_attention_figure(
    weights: Weights, rows: Sequence[int], *, picture: NDArray[Any]
) -> Figure:
    """Return a grid of maps over a picture: a line a chosen row, a column a head.

    The tokens are the picture's bytes, row by row, colours innermost; a pixel's weight is the sum
    over its colours. The first column shows the picture, a cross marks the token that looks.

    Args:
        weights: (H, R, T) with T at most the picture's bytes; the last ones may be missing, as a
            model that predicts the next byte never reads the last.
        rows: which token each of the R rows belongs to.
        picture: (height, width, colours), uint8.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check(weights, rows)
    heads, count, length = weights.shape
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.size < length:
        raise ValueError(
            "picture must be uint8 (height, width, colours) with at least as many bytes as tokens "
            f"({length}), got {picture.dtype} {picture.shape}"
        )
    height, width, colors = picture.shape
    whole = np.zeros((heads, count, picture.size))
    whole[..., :length] = weights
    maps = whole.reshape(heads, count, height, width, colors).sum(-1)
    figure = new_figure(1.5 * (heads + 1), 1.6 * count + 0.3)
    grid = figure.subplots(count, heads + 1, squeeze=False)
    for i, (line, row) in enumerate(zip(grid, rows, strict=True)):
        line[0].imshow(picture if colors == 3 else picture[..., 0], cmap="gray_r")
        for head, axes in enumerate(line[1:]):
            _draw(axes, maps[head, i], maps[:, i])
            if i == 0:
                axes.set_title(f"head {head + 1}", fontsize=9, color=TEXT)
        y, x = divmod(row // colors, width)
        for axes in line:
            axes.plot([x], [y], marker="x", color=TEXT, markersize=6, markeredgewidth=1.6)
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def _draw(axes: Axes, values: NDArray[Any], scale: NDArray[Any]) -> AxesImage:
    """Draw ``values`` in colours that span ``scale``; white is 0."""
    top = float(np.abs(scale).max()) or 1.0
    negative = scale.min() < -1e-3 * top  # less is rounding
    return axes.imshow(
        values,
        cmap="RdBu_r" if negative else "Reds",
        vmin=-top if negative else 0.0,
        vmax=top,
        aspect="auto" if values.shape[0] != values.shape[1] else "equal",
        interpolation="nearest",
    )


def _check(weights: Weights, rows: Sequence[int]) -> None:
    if weights.ndim != 3 or weights.size == 0:
        raise ValueError(f"weights must have the shape (H, R, T), got {weights.shape}")
    if len(rows) != weights.shape[1]:
        raise ValueError(f"rows must name {weights.shape[1]} tokens, got {len(rows)}")
    for row in rows:
        if not 0 <= row < weights.shape[2]:
            raise ValueError(f"rows must lie from 0 to {weights.shape[2] - 1}, got {row}")
