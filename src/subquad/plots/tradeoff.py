"""Quality against a cost or a property: one named point a model, one panel a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from subquad.plots.style import COLORS, TEXT, new_figure, plain_axes

# Where a name may stand: points to the right and up of its point, and the side that lies there.
PLACES: tuple[tuple[tuple[int, int], Literal["left", "right"]], ...] = tuple(
    place for up in (5, -11, 16, -22, 27) for place in (((5, up), "left"), ((-5, up), "right"))
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model."""

    label: str
    x: float | int
    y: float | int


def tradeoff_figure(
    panels: Mapping[str, Sequence[Point]],
    *,
    xlabel: str,
    ylabels: Mapping[str, str],
    joined: bool = False,
) -> Figure:
    """Return a panel for each of ``panels``, with its points and their names.

    Args:
        panels: points by the panel's title; a panel without points says so.
        xlabel: of all panels.
        ylabels: by the panel's title.
        joined: a line through the points, in the order given.
    """
    figure = new_figure(4.9 * len(panels), 3.9)
    for axes, (title, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        x, y = [point.x for point in points], [point.y for point in points]
        style = {"marker": "o", "markersize": 6, "linewidth": 1.4 if joined else 0.0}
        axes.plot(x, y, color=COLORS["linear"], alpha=0.9, **style)
        plain_axes(axes)
        axes.margins(0.14)
        axes.set_title(title, fontsize=10, color=TEXT)
        axes.set_xlabel(xlabel, fontsize=10, color=TEXT)
        axes.set_ylabel(ylabels[title], fontsize=10, color=TEXT)
        if not points:
            axes.set(xticks=[], yticks=[])
            middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "no row of it ended", fontsize=10, color=TEXT, **middle)
    figure.draw_without_rendering()  # until then no point has its place
    for axes, points in zip(figure.axes, panels.values(), strict=True):
        _name_points(axes, points)
    return figure


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name at the first place beside its point where it covers nothing else."""
    if not points:
        return
    taken = [
        Bbox.from_bounds(x - 4, y - 4, 8, 8)
        for x, y in axes.transData.transform([(point.x, point.y) for point in points]).tolist()
    ]
    for point in sorted(points, key=lambda point: point.x):
        name = axes.annotate(
            point.label, (point.x, point.y), xytext=(0, 0), textcoords="offset points",
            fontsize=8, color=TEXT,
        )  # fmt: skip
        for place, side in PLACES:
            name.set_position(place)
            name.set_horizontalalignment(side)
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
