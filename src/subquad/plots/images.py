"""Grids of images: samples, and completions beside what was given and the original."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from subquad.plots.style import MUTED, new_figure

Images = NDArray[Any]  # uint8 (N, H, W) or (N, H, W, C) with C of 1 or 3

GAP = 2  # pixels between tiles
GROUND = 255  # the paper's white between the tiles
HIDDEN = np.array([208, 222, 236], np.uint8)  # stands for the pixels that were not given


def sample_figure(images: Images) -> Figure:
    """Return the images row by row: the squarest grid that is at least as wide as it is high."""
    tiles = _rgb(images, "images")
    columns = math.ceil(math.sqrt(len(tiles)))
    grid = _mosaic(tiles, columns)
    width = min(8.0, max(3.0, 0.62 * columns))
    figure = new_figure(width, width * grid.shape[0] / grid.shape[1])
    axes = figure.subplots()
    _show(axes, grid)
    return figure


def completion_figure(originals: Images, completed: Images, *, given_rows: int) -> Figure:
    """Return three labelled rows: what was given, its completion, and the original.

    The first ``given_rows`` rows of each original were given; in the top row the rest is tinted.
    """
    tiles = _rgb(originals, "originals")
    results = _rgb(completed, "completed")
    if tiles.shape != results.shape:
        raise ValueError(
            f"originals and completed must have one shape, got {originals.shape} "
            f"and {completed.shape}"
        )
    if not 0 < given_rows < tiles.shape[1]:
        raise ValueError(
            f"given_rows must lie between 1 and {tiles.shape[1] - 1}, got {given_rows}"
        )
    given = tiles.copy()
    given[:, given_rows:] = HIDDEN
    height, width = 3 * 0.62, 0.62 * len(tiles)
    figure = new_figure(width + 1.0, height + 0.2)
    axes = figure.subplots(3, 1)
    for ax, row, label in zip(
        axes, (given, results, tiles), ("given", "completed", "original"), strict=True
    ):
        _show(ax, _mosaic(row, len(row)))
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10, color=MUTED)
    return figure


def _rgb(images: Images, name: str) -> Images:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise ValueError(
            f"{name} must be uint8 of shape (N, H, W) or (N, H, W, C) with N >= 1, "
            f"got {images.dtype} {images.shape}"
        )
    tiles = images if images.ndim == 4 else images[..., None]
    if tiles.shape[-1] not in (1, 3):
        raise ValueError(f"{name} must have 1 or 3 channels, got {tiles.shape[-1]}")
    return np.repeat(tiles, 3, axis=-1) if tiles.shape[-1] == 1 else tiles


def _mosaic(tiles: Images, columns: int) -> Images:
    count, height, width, _ = tiles.shape
    rows = math.ceil(count / columns)
    grid = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), GROUND, np.uint8
    )
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        grid[top : top + height, left : left + width] = tile
    return grid


def _show(axes: Axes, grid: Images) -> None:
    axes.imshow(grid, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
