"""Learning curves of one or more runs, against steps and against minutes."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from subquad.plots.style import TEXT, legend_below, line_colors, log_ticks, new_figure, plain_axes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one run recorded: (steps, minutes, value) of the training and of the test loss."""

    label: str
    train: list[tuple[float, float, float]]
    test: list[tuple[float, float, float]]


def read_curve(path: Path, label: str) -> Curve:
    """Read a run's metrics.csv: columns step, seconds, train and test, empty where not measured."""
    points: dict[str, list[tuple[float, float, float]]] = {"train": [], "test": []}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"step", "seconds", "train", "test"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path.name} must have the columns step, seconds, train and test, "
                f"lacks {', '.join(sorted(missing))}"
            )
        for row in reader:
            for name, found in points.items():
                if row[name]:
                    found.append((float(row["step"]), float(row["seconds"]) / 60, float(row[name])))
    return Curve(label=label, train=points["train"], test=points["test"])


def learning_curves(curves: Sequence[Curve], *, unit: str, log_scale: bool = False) -> Figure:
    """Return two panels side by side: ``unit`` against steps, and against minutes of training.

    Faint lines are training losses, strong lines with dots the losses on test data.
    """
    figure = new_figure(9.0, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    colors = line_colors([curve.label for curve in curves])
    for axis, (axes, xlabel) in enumerate(
        zip(panels, ("training steps", "minutes of training"), strict=True)
    ):
        for curve in curves:
            color = colors[curve.label]
            if curve.train:
                axes.plot(*_xy(curve.train, axis), color=color, alpha=0.35, linewidth=1.0)
            if curve.test:
                axes.plot(
                    *_xy(curve.test, axis),
                    color=color,
                    linewidth=1.8,
                    marker="o",
                    markersize=3.5,
                    label=f"{curve.label} (test)",
                )
        plain_axes(axes)
        axes.set_xlabel(xlabel, fontsize=10, color=TEXT)
        axes.set_xlim(left=0)
    values = [point[2] for curve in curves for point in (*curve.train, *curve.test)]
    if log_scale and any(value > 0 for value in values):
        panels[0].set_yscale("log")
        log_ticks(panels[0].yaxis, values)
    else:
        _limit_to_the_curves(figure, values)
    panels[0].set_ylabel(unit, fontsize=10, color=TEXT)
    legend_below(figure, panels[1].get_legend_handles_labels()[0])
    return figure


def _xy(points: list[tuple[float, float, float]], axis: int) -> tuple[list[float], list[float]]:
    return [p[axis] for p in points], [p[2] for p in points]


def _limit_to_the_curves(figure: Figure, values: Sequence[float]) -> None:
    """Cut off the first, very high losses, which would flatten all that follows."""
    values = sorted(value for value in values if math.isfinite(value))
    if not values:
        return
    lowest = values[0]
    upper = max(values[int(0.95 * (len(values) - 1))], lowest + 1e-6)
    margin = 0.08 * (upper - lowest)
    figure.axes[0].set_ylim(lowest - margin, upper + margin)
