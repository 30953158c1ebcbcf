"""Quality against a cost or a property: one named point a model, one panel a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from subquad.plots.style import COLORS, TEXT, new_figure, plain_axes


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
        panels: points by the panel's title; a panel without points stays empty.
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
        for i, point in enumerate(sorted(points, key=lambda point: point.x)):
            up = i % 2 == 0  # so that the names of neighbours do not cover each other
            axes.annotate(
                point.label,
                (point.x, point.y),
                xytext=(4, 6 if up else -12),
                textcoords="offset points",
                fontsize=8,
                color=TEXT,
            )
        plain_axes(axes)
        axes.margins(0.14)
        axes.set_title(title, fontsize=10, color=TEXT)
        axes.set_xlabel(xlabel, fontsize=10, color=TEXT)
        axes.set_ylabel(ylabels[title], fontsize=10, color=TEXT)
    return figure
