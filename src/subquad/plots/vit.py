"""The figures of the Vision Transformer's experiments, from their results."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from subquad.plots.style import TEXT, line_colors, new_figure, plain_axes

Json = dict[str, Any]


def confusion_figure(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Return how often each class (rows) was taken for each (columns), as shares of its images."""
    side = 2.2 + 0.42 * len(names)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if counts[i][j]:
                axes.text(
                    j, i, f"{100 * share:.0f}" if share >= 0.01 else "<1", ha="center",
                    va="center", fontsize=8, color="white" if share > 0.5 else TEXT,
                )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8, color=TEXT)
    axes.set_yticks(range(len(names)), names, fontsize=8, color=TEXT)
    axes.set_xlabel("taken for, %", fontsize=10, color=TEXT)
    axes.set_ylabel("is", fontsize=10, color=TEXT)
    for side_name in axes.spines:
        axes.spines[side_name].set_visible(False)
    return figure


def resolution_figure(times: Sequence[Json], rows: Sequence[Json]) -> Figure:
    """Return time, memory and accuracy against the number of patches, a line a mixer.

    Args:
        times: dicts with ``mixer``, ``patches``, ``seconds_per_image`` and, where it was measured,
            ``peak_bytes_per_image``: one step of training.
        rows: results with ``mixer``, ``patches`` and ``test_accuracy``.
    """
    panels = (
        ("milliseconds an image, training", times, "seconds_per_image", 1e-3),
        ("peak memory an image, MB", times, "peak_bytes_per_image", 1e6),
        ("test images right, %", rows, "test_accuracy", 1e-2),
    )
    figure = new_figure(12.6, 3.9)
    mixers = list(dict.fromkeys(row["mixer"] for row in (*times, *rows)))
    colors = line_colors(mixers)
    patches = [row["patches"] for row in (*times, *rows)]
    for axes, (label, source, key, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        for mixer in mixers:
            own = sorted(
                (row["patches"], row[key] / unit)
                for row in source
                if row["mixer"] == mixer and key in row
            )
            axes.plot(
                [x for x, _ in own], [y for _, y in own], color=colors[mixer], marker="o",
                markersize=3.5, label=mixer,
            )  # fmt: skip
        _log_axis(axes, patches, "patches")
        if source is times:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_title(label, fontsize=10, color=TEXT)
    figure.axes[0].legend(frameon=False, fontsize=9, labelcolor=TEXT)
    return figure


def data_size_figure(rows: Sequence[Json], names: Mapping[str, str]) -> Figure:
    """Return the share right against the number of training images, a line a network.

    Solid lines are images as they are, dashed ones those with their pixels scrambled.

    Args:
        rows: results with ``network``, ``train_images``, ``scrambled`` and ``test_accuracy``.
        names: of the networks, for the legend.
    """
    figure = new_figure(6.8, 4.6)
    axes = figure.subplots()
    networks = list(dict.fromkeys(row["network"] for row in rows))
    colors = line_colors(networks)
    for network in networks:
        for scrambled, line in ((False, "-"), (True, "--")):
            own = sorted(
                (row["train_images"], 100 * row["test_accuracy"])
                for row in rows
                if (row["network"], row["scrambled"]) == (network, scrambled)
                and "test_accuracy" in row
            )
            axes.plot(
                [x for x, _ in own], [y for _, y in own], line, color=colors[network], marker="o",
                markersize=3.5, linewidth=1.6, label=None if scrambled else names[network],
            )  # fmt: skip
    _log_axis(axes, [row["train_images"] for row in rows], "training images")
    axes.set_ylabel("test images right, %", fontsize=10, color=TEXT)
    handles = axes.get_legend_handles_labels()[0]
    handles += [
        Line2D([], [], color=TEXT, linestyle="-", label="pixels in order"),
        Line2D([], [], color=TEXT, linestyle="--", label="pixels scrambled"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8, labelcolor=TEXT)
    return figure


def _log_axis(axes: Axes, values: Sequence[float | int], label: str) -> None:
    plain_axes(axes)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(label, fontsize=10, color=TEXT)
