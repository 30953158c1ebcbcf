"""The figures of the Performer's experiments, from their results."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from subquad.plots.approximation import ESTIMATOR_COLORS, LINES
from subquad.plots.style import COLORS, CYCLE, MUTED, TEXT, new_figure, plain_axes

Json = dict[str, Any]

SPEED_COLORS = {"softmax": COLORS["softmax"], "performer": "#009e73", "values only": MUTED}


def output_error_figure(rows: Sequence[Json]) -> Figure:
    """Return Figure 4: the median squared error of the output against the number of features.

    The band reaches from the lowest to the highest repetition.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        counts = [row["num_features"] for row in own]
        color, line = ESTIMATOR_COLORS[own[0]["estimator"]], LINES[own[0]["directions"]]
        axes.fill_between(
            counts, [row["low"] for row in own], [row["high"] for row in own],
            color=color, alpha=0.07, linewidth=0,
        )  # fmt: skip
        axes.plot(
            counts, [row["median"] for row in own], line, color=color, marker="o", markersize=3.5,
            label=kind,
        )  # fmt: skip
    _number_axis(axes, [row["num_features"] for row in rows], "features")
    axes.set_yscale("log")
    axes.set_ylabel("mean squared error of the output", fontsize=10, color=TEXT)
    axes.legend(frameon=False, fontsize=8, labelcolor=TEXT)
    return figure


def depth_figure(rows: Sequence[Json]) -> Figure:
    """Return Figure 14: the error of a Performer copy behind each layer."""
    figure = new_figure(5.6, 3.9)
    axes = figure.subplots()
    for i, count in enumerate(dict.fromkeys(row["num_features"] for row in rows)):
        own = [row for row in rows if row["num_features"] == count]
        layers, color = [row["layer"] for row in own], CYCLE[i % len(CYCLE)]
        axes.fill_between(
            layers, [row["low"] for row in own], [row["high"] for row in own],
            color=color, alpha=0.15, linewidth=0,
        )  # fmt: skip
        axes.plot(
            layers, [row["error"] for row in own], color=color, marker="o", markersize=3.5,
            label=f"{count:,} features",
        )  # fmt: skip
    plain_axes(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer", fontsize=10, color=TEXT)
    axes.set_ylabel("error, share of the norm", fontsize=10, color=TEXT)
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT)
    return figure


def speed_figure(rows: Sequence[Json]) -> Figure:
    """Return Figure 3: time against the length, a panel a pass, both axes logarithmic."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    figure = new_figure(4.7 * len(passes), 4.0)
    panels = figure.subplots(1, len(passes), squeeze=False)[0]
    for axes, which in zip(panels, passes, strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            own = [row for row in rows if (row["kind"], row["pass"]) == (kind, which)]
            lengths = [row["seq_len"] for row in own]
            color = SPEED_COLORS.get(kind, CYCLE[0])
            axes.fill_between(
                lengths, [row["q25"] for row in own], [row["q75"] for row in own],
                color=color, alpha=0.2, linewidth=0,
            )  # fmt: skip
            axes.plot(
                lengths, [row["median"] for row in own], color=color, marker="o", markersize=3.5,
                linestyle="--" if kind == "values only" else "-", label=kind,
            )  # fmt: skip
        _number_axis(axes, [row["seq_len"] for row in rows], "sequence length")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(which, fontsize=10, color=TEXT)
    panels[0].set_ylabel("seconds", fontsize=10, color=TEXT)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=TEXT)
    return figure


def _number_axis(axes: Axes, values: Sequence[float | int], label: str) -> None:
    plain_axes(axes)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(label, fontsize=10, color=TEXT)
