"""Quality against a cost or a property: one named point a model, one panel a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from subquad.plots.style import COLORS, MUTED, TEXT, new_figure, plain_axes

# Where a name may stand, the best place first: points to the right and up of its point, and the
# part of the name that lies there.
Place = tuple[tuple[int, int], Literal["left", "center", "right"]]
PLACES: tuple[Place, ...] = tuple(
    place
    for up in (5, -11, 16, -22, 27, -33, 38, -44, 49, -55)
    for place in (((5, up), "left"), ((-5, up), "right"), ((0, up), "center"))
)
BESIDE = 12  # points up or down; a name farther away has a line to its point


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
    """Write each name at the place beside its point where it covers least, most often nothing."""
    if not points:
        return
    marks = axes.transData.transform([(point.x, point.y) for point in points]).tolist()
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for point in sorted(points, key=lambda point: point.x):
        name, boxes = _written(axes, point, PLACES[0]), []
        for (right, up), side in PLACES:
            name.set_position((right, up))
            name.set_horizontalalignment(side)
            boxes.append(name.get_window_extent())
        name.remove()
        costs = [_cost(box, taken, axes.bbox) for box in boxes]
        best = costs.index(min(costs))
        _written(axes, point, PLACES[best])
        taken.append(boxes[best])


def _written(axes: Axes, point: Point, place: Place) -> Annotation:
    (right, up), side = place
    line: dict[str, Any] = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0}
    return axes.annotate(
        point.label, (point.x, point.y), xytext=(right, up), textcoords="offset points",
        horizontalalignment=side, fontsize=8, color=TEXT,
        arrowprops=line if abs(up) > BESIDE else None,
    )  # fmt: skip


def _cost(box: Bbox, taken: Sequence[Bbox], frame: BboxBase) -> float:
    """Return the area of a name that covers something else or lies beyond the axes."""
    return sum(_common(box, other) for other in taken) + _area(box) - _common(box, frame)


def _common(box: Bbox, other: BboxBase) -> float:
    both = Bbox.intersection(box, other)
    return 0.0 if both is None else _area(both)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)
