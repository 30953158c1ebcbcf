"""The figures of lambda-memory and lambda-speed, from their results."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from subquad.plots.style import (
    MUTED,
    TEXT,
    legend_below,
    line_colors,
    log_ticks,
    new_figure,
    plain_axes,
)

Json = dict[str, Any]

KINDS = {
    "ResNet": "#000000", "ResNet + SE": "#8a8f98", "LambdaResNet": "#0072b2",
    "EfficientNet": "#d55e00",
}  # fmt: skip
MARKERS = {"ResNet": "s", "ResNet + SE": "D", "LambdaResNet": "o", "EfficientNet": "^"}
PASSES = ("training", "inference")


def cost_figure(rows: Sequence[Json]) -> Figure:
    """Return the seconds for 1,000 images against multiply-adds, a panel a pass, a point a network.

    The bars are quartiles; both axes are logarithmic, so equal multiply-adds a second lie on a
    rising diagonal.
    """
    figure = new_figure(9.4, 4.2)
    for axes, which in zip(figure.subplots(1, 2, squeeze=False)[0], PASSES, strict=True):
        own = [row for row in rows if which in row]
        for kind in dict.fromkeys(row["kind"] for row in own):
            found = [row for row in own if row["kind"] == kind]
            middle = [row[which]["median"] for row in found]
            axes.errorbar(
                [row["multiply_adds"] / 1e9 for row in found], middle,
                yerr=[[row[which]["median"] - row[which]["q25"] for row in found],
                      [row[which]["q75"] - row[which]["median"] for row in found]],
                fmt=MARKERS[kind], color=KINDS[kind], markersize=6, alpha=0.85, linewidth=1,
                label=kind,
            )  # fmt: skip
        plain_axes(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        log_ticks(axes.xaxis, [row["multiply_adds"] / 1e9 for row in own])
        log_ticks(axes.yaxis, [row[which]["median"] for row in own])
        axes.set_title(which, fontsize=10, color=TEXT)
        axes.set_xlabel("multiply-adds of an image, G", fontsize=10, color=TEXT)
    figure.axes[0].set_ylabel("seconds for 1,000 images", fontsize=10, color=TEXT)
    _legend(figure.axes[0])
    return figure


def accuracy_figure(rows: Sequence[Json]) -> Figure:
    """Return the paper's top-1 accuracies against its seconds, and against those measured here.

    Only networks of the paper's curve have a place in it.
    """
    own = [row for row in rows if "training_seconds" in row["paper"]]
    panels: dict[str, tuple[str, Callable[[Json], float | None]]] = {
        "the paper, training": (
            "seconds for 1,024 images",
            lambda row: float(row["paper"]["training_seconds"]),
        ),
        **{f"here, {which}": ("seconds for 1,000 images", _median_of(which)) for which in PASSES},
    }
    figure = new_figure(4.2 * len(panels), 4.0)
    for axes, (title, (label, seconds)) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for kind in ("EfficientNet", "LambdaResNet"):
            points = [
                (at, row["paper"]["accuracy"], row["label"])
                for row in sorted(own, key=lambda row: float(row["paper"]["accuracy"]))
                if row["kind"] == kind and (at := seconds(row)) is not None
            ]
            axes.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], marker=MARKERS[kind],
                color=KINDS[kind], markersize=6, label=kind,
            )  # fmt: skip
            for x, y, name in points:
                _name(axes, x, y, name.removeprefix(f"{kind}-"), kind)
        plain_axes(axes)
        axes.set_xscale("log")
        log_ticks(axes.xaxis, [at for row in own if (at := seconds(row)) is not None])
        axes.margins(x=0.3, y=0.16)  # names stand beside their points
        axes.set_title(title, fontsize=10, color=TEXT)
        axes.set_xlabel(label, fontsize=10, color=TEXT)
    figure.axes[0].set_ylabel("top-1 accuracy in the paper, %", fontsize=10, color=TEXT)
    _legend(figure.axes[0], loc="lower right")
    return figure


def _legend(axes: Axes, **where: Any) -> None:
    if axes.get_legend_handles_labels()[0]:  # matplotlib warns where there are none
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, **where)


def _median_of(which: str) -> Callable[[Json], float | None]:
    return lambda row: float(row[which]["median"]) if which in row else None


def _name(axes: Axes, x: float, y: float, name: str, kind: str) -> None:
    """Write a point's name beside its line: above and left of the one, below and right."""
    is_above = kind == "LambdaResNet"
    axes.annotate(
        name, (x, y), xytext=(-6, 4) if is_above else (6, -11), textcoords="offset points",
        fontsize=8, color=KINDS[kind], ha="right" if is_above else "left",
    )  # fmt: skip


def growth_figure(rows: Sequence[Json], left_out: Sequence[Json], *, limit: float) -> Figure:
    """Return peak memory and time against the side of the image, forward and backward.

    All axes are logarithmic; attention is dashed. Hollow points at the end of dotted lines are what
    a layer that was left out is expected to need, the thin dashed line is the limit in bytes.
    """
    own = [row for row in rows if row["pass"] == "forward and backward"]
    counts = Counter(row["layer"] for row in own)
    layers = [layer for layer, count in counts.items() if count > 1 or len(counts) == 1]
    colors = line_colors(layers, {})
    has_memory = any("peak_bytes" in row for row in own)
    figure = new_figure(5.4 * (1 + has_memory), 5.0)
    panels = figure.subplots(1, 1 + has_memory, squeeze=False)[0]
    keys = [("peak_bytes", 1e6, "peak memory, MB")] * has_memory + [
        ("median", 1e-3, "milliseconds")
    ]
    for axes, (key, unit, label) in zip(panels, keys, strict=True):
        for layer in layers:
            points = [
                (row["side"], row[key] / unit)
                for row in own
                if row["layer"] == layer and key in row
            ]
            axes.plot(
                *([list(x) for x in zip(*points, strict=True)] or ([], [])), color=colors[layer],
                marker="o", markersize=3.5, linewidth=1.4,
                linestyle="--" if "attention" in layer else "-", label=layer,
            )  # fmt: skip
            if key == "peak_bytes":
                _expected(axes, layer, points, left_out, colors[layer], unit)
        if key == "peak_bytes":
            axes.axhline(limit / unit, color=MUTED, linewidth=1, linestyle="--")
        _sides_axis(axes, [row["side"] for row in own])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(label, fontsize=10, color=TEXT)
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def _expected(
    axes: Axes,
    layer: str,
    points: Sequence[tuple[float | int, float]],
    left_out: Sequence[Json],
    color: str,
    unit: float,
) -> None:
    """Draw what a layer is expected to need at the first side at which it was left out."""
    gone = [x for x in left_out if x["layer"] == layer and "expected_bytes" in x]
    if gone and points:
        first = min(gone, key=lambda x: float(x["side"]))
        last, at = points[-1], (first["side"], first["expected_bytes"] / unit)
        axes.plot([last[0], at[0]], [last[1], at[1]], color=color, linestyle=":", linewidth=1.2)
        axes.plot(*at, color=color, marker="o", markersize=5, markerfacecolor="white")


def _sides_axis(axes: Axes, sides: Sequence[int]) -> None:
    plain_axes(axes)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(sides))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelrotation=0)
    axes.set_xlabel("side of the image (its square are the tokens)", fontsize=10, color=TEXT)
