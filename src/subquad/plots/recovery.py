"""How a model whose attention was exchanged gets its accuracy back."""

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from subquad.plots.style import CYCLE, TEXT, legend_below, new_figure, plain_axes

Points = list[tuple[int, float]]


def read_accuracy(path: Path) -> Points:
    """Return steps and accuracies on held-out data from a run's metrics.csv.

    Raises:
        ValueError: if it has no such columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"step", "test_accuracy"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path.name} must have the column {sorted(missing)[0]}, it has not")
        return [
            (int(row["step"]), float(row["test_accuracy"]))
            for row in reader
            if row["test_accuracy"]
        ]


def recovery_figure(
    curves: Mapping[str, Points], *, before: float, transfer_steps: int, ylabel: str
) -> Figure:
    """Return accuracy against steps, a line a model; ``before`` is that before the swap.

    The shaded steps are those in which attention is matched.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    if transfer_steps:
        axes.axvspan(0, transfer_steps, color="#eef1f4", zorder=0, label="attention is matched")
    axes.axhline(
        before, color=TEXT, linewidth=1.2, linestyle="--", label="softmax, before the swap"
    )
    for i, (label, points) in enumerate(curves.items()):
        axes.plot(
            [step for step, _ in points],
            [accuracy for _, accuracy in points],
            color=CYCLE[i % len(CYCLE)],
            linewidth=1.8,
            marker="o",
            markersize=3.5,
            label=label,
        )
    plain_axes(axes)
    axes.set_xlabel("steps after the swap", fontsize=10, color=TEXT)
    axes.set_ylabel(ylabel, fontsize=10, color=TEXT)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure
