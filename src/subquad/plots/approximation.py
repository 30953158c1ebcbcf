"""The figure of ``subquad approx``, from its result file alone."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from subquad.plots.style import MUTED, TEXT, legend_below, new_figure, plain_axes

Json = dict[str, Any]

ESTIMATOR_COLORS = {
    "trigonometric": "#d55e00", "positive": "#0072b2", "hyperbolic": "#009e73",
}  # fmt: skip
LINES: dict[str, Any] = {"iid": ":", "orthogonal": "-", "regularized": "--", "hadamard": "-."}
TITLES = {"kernel": "kernel, not divided", "weights": "attention weights", "output": "output"}
TALLEST = 5.0  # what is worse leaves the figure: such features are of no use


def approximation_figure(result: Json) -> Figure:
    """Return the errors against the number of features, a panel each for kernel, weights, output.

    Colours are estimators, kinds of line are kinds of directions; the faint lines are Lemma 2.
    """
    rows = result["rows"]
    shown = [name for name in TITLES if any(name in row for row in rows)]
    figure = new_figure(4.2 * len(shown), 4.4)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, shown, strict=True):
        for estimator, color in ESTIMATOR_COLORS.items():
            for directions, line in LINES.items():
                own = [
                    (row["num_features"], row[name]["error"])
                    for row in rows
                    if (row["estimator"], row["directions"]) == (estimator, directions)
                    and row[name]["error"]
                ]
                axes.plot(*_xy(own), line, color=color, linewidth=1.5, marker="o", markersize=3)
            if name == "kernel":
                _theory(axes, rows, estimator, color)
        plain_axes(axes)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        counts = sorted({row["num_features"] for row in rows})
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_title(TITLES[name], fontsize=10, color=TEXT)
        axes.set_xlabel("features", fontsize=10, color=TEXT)
    if panels[0].get_ylim()[1] > TALLEST:
        panels[0].set_ylim(top=TALLEST)
    panels[0].set_ylabel("error, share of the norm (median draw)", fontsize=10, color=TEXT)
    legend_below(figure, _handles(rows), columns=8)
    return figure


def _theory(axes: Axes, rows: list[Json], estimator: str, color: str) -> None:
    found = {
        row["num_features"]: row["kernel"]["iid_variance"] ** 0.5
        for row in rows
        if row["estimator"] == estimator and row["kernel"]["iid_variance"]
    }
    axes.plot(*_xy(sorted(found.items())), color=color, alpha=0.25, linewidth=5, zorder=0)


def _handles(rows: list[Json]) -> list[Line2D]:
    estimators = dict.fromkeys(row["estimator"] for row in rows)
    directions = dict.fromkeys(row["directions"] for row in rows)
    handles = [Line2D([], [], color=ESTIMATOR_COLORS[e], label=e) for e in estimators]
    handles += [Line2D([], [], color=MUTED, linestyle=LINES[d], label=d) for d in directions]
    faint = Line2D([], [], color=MUTED, alpha=0.3, linewidth=5, label="Lemma 2, iid")
    return [*handles, faint]


def _xy(points: Any) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]
