"""Figures of ``subquad bench``, from its result files."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from subquad.plots.style import COLORS, CYCLE, TEXT, line_colors, new_figure, plain_axes

Json = dict[str, Any]
Line = list[tuple[float, float]]

TORCH_FORM = "linear-torch"
TORCH_LABEL = "linear (torch)"
LABELS = {"linear-cpu": "linear (C++)", "linear-triton": "linear (Triton)"}
SOFTMAX = "softmax"
# Fixed colours, so that one mechanism looks alike in all figures; LSH darker with more rounds.
MECHANISM_COLORS = {
    SOFTMAX: COLORS["softmax"],
    TORCH_LABEL: "#56b4e9",
    "linear (C++)": COLORS["linear"],
    "linear (Triton)": "#005c46",
    "lsh-1": "#e3a6c8",
    "lsh-4": "#cc79a7",
    "lsh-8": "#8f3f6d",
    "local-256": "#009e73",
    "performer-256": "#d55e00",
    "hybrid-256": "#7a5195",
    "strided-128": "#8a8f98",
    "linformer-256": "#e69f00",
}
BOTH = "forward+backward"
LABEL_GAP = 0.045  # between two names at the right edge, as a share of the axis


def figures(result: Json) -> dict[str, Figure]:
    """Return the figures that a result has the data for, by name."""
    kind, rows = result["kind"], result["rows"]
    if kind in ("attention", "peers") and rows:
        return {"scaling": scaling_figure(result), "wall": wall_figure(result)}
    if kind == "lsh-rounds" and rows:
        return {"error": lsh_error_figure(result)}
    if kind == "decode" and any("position" in row["what"] for row in rows):
        return {"steps": decode_figure(result)}
    return {}


def scaling_figure(result: Json) -> Figure:
    """Return the paper's Figure 1: time and memory a sample against T, both axes logarithmic.

    Forward and backward where both were measured. Of the torch form's chunk sizes the best is
    shown at each length.
    """
    has_memory = any("peak_bytes_per_sample" in row["more"] for row in result["rows"])
    figure = new_figure(9.4 if has_memory else 5.4, 4.2)
    panels = list(figure.subplots(1, 2 if has_memory else 1, squeeze=False)[0])
    rows, which = _rows(result)
    batch = result["options"]["batch"]
    times = _lines(rows, lambda row: 1e3 * row["seconds"]["median"] / batch)
    _draw(panels[0], times, f"ms a sample, {which}")
    if has_memory:
        peaks = _lines(rows, _megabytes)
        _draw(panels[1], peaks, f"MB a sample, {which}")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].legend(frameon=False, fontsize=9, labelcolor=TEXT)
    _lengths(panels, times)
    return figure


def wall_figure(result: Json) -> Figure:
    """Return time against T on linear axes: the wall that softmax runs into.

    Where softmax was not measured up to the longest length, a dotted line continues it by the
    square of T and leaves the figure, which is as high as the longest time that was measured.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    rows, which = _rows(result)
    batch = result["options"]["batch"]
    times = _lines(rows, lambda row: row["seconds"]["median"] / batch)
    _draw(axes, times, f"seconds a sample, {which}")
    longest = max(x for points in times.values() for x, _ in points)
    top = 1.06 * max(y for points in times.values() for _, y in points)
    axes.set_xlim(0, longest)
    axes.set_ylim(0, top)
    ends = {label: points[-1] for label, points in times.items()}
    if SOFTMAX in times and ends[SOFTMAX][0] < longest:
        x, y = times[SOFTMAX][-1]
        reach = [x + (longest - x) * i / 100 for i in range(101)]
        squares = [y * (t / x) ** 2 for t in reach]
        axes.plot(reach, squares, color=MECHANISM_COLORS[SOFTMAX], linewidth=1.6, linestyle=":")
        axes.annotate(
            "not measured: T\N{SUPERSCRIPT TWO}", (min(x * (top / y) ** 0.5, longest), top),
            xytext=(6, -4), textcoords="offset points", va="top", fontsize=8,
            color=MECHANISM_COLORS[SOFTMAX],
        )  # fmt: skip
    _name_ends(axes, ends, longest, top)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    return figure


def lsh_error_figure(result: Json) -> Figure:
    """Return, for each kind of queries, LSH attention's error against the rounds of hashing.

    A line for each way to combine the rounds, with a band from the lowest to the highest draw.
    """
    rows = result["rows"]
    kinds = list(dict.fromkeys(row["what"]["queries"] for row in rows))
    figure = new_figure(4.7 * len(kinds), 3.8)
    panels = list(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0])
    for axes, kind in zip(panels, kinds, strict=True):
        for i, combine in enumerate(dict.fromkeys(row["what"]["combine"] for row in rows)):
            own = [
                r for r in rows if (r["what"]["queries"], r["what"]["combine"]) == (kind, combine)
            ]
            rounds = [float(row["what"]["rounds"]) for row in own]
            low, error, high = (
                [row["more"][key] for row in own] for key in ("error_low", "error", "error_high")
            )
            color = (MECHANISM_COLORS["lsh-4"], COLORS["linear"])[i % 2]
            axes.fill_between(rounds, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(rounds, error, color=color, marker="o", markersize=4, label=combine)
        plain_axes(axes)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(
            FixedLocator(sorted({float(r["what"]["rounds"]) for r in rows}))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{kind} queries", fontsize=10, color=TEXT)
        axes.set_xlabel("rounds of hashing", fontsize=10, color=TEXT)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("relative error beside exact attention", fontsize=10, color=TEXT)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=TEXT)
    return figure


def decode_figure(result: Json) -> Figure:
    """Return, for each model, time of a step and bytes of state against position."""
    rows = [
        row
        for row in result["rows"]
        if row["what"].get("part") == "step" and "state_bytes_per_image" in row["more"]
    ]
    models = list(dict.fromkeys(row["what"]["model"] for row in rows))
    figure = new_figure(9.4, 3.4 * len(models))
    grid = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(grid, models, strict=True):
        own = [row for row in rows if row["what"]["model"] == model]
        batches = sorted({row["what"]["batch"] for row in own})
        for row_key in dict.fromkeys((r["what"]["mixer"], r["what"]["batch"]) for r in own):
            mixer, batch = row_key
            chosen = [r for r in own if (r["what"]["mixer"], r["what"]["batch"]) == row_key]
            x = [r["what"]["position"] for r in chosen]
            style = ("-", "--", ":", "-.")[batches.index(batch) % 4]
            left.plot(
                x, [1e3 * r["seconds"]["median"] / batch for r in chosen], style,
                color=COLORS.get(mixer, CYCLE[2]), label=f"{mixer}, batch {batch:,}",
            )  # fmt: skip
            if batch == batches[0]:
                right.plot(
                    x, [r["more"]["state_bytes_per_image"] / 1e6 for r in chosen],
                    color=COLORS.get(mixer, CYCLE[2]), label=mixer,
                )  # fmt: skip
        left.set_ylabel(f"{model}: ms a step and image", fontsize=10, color=TEXT)
        right.set_ylabel(f"{model}: MB of state an image", fontsize=10, color=TEXT)
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        left.yaxis.set_major_formatter(FuncFormatter(_plain))
        left.yaxis.set_minor_locator(NullLocator())
        for axes in (left, right):
            plain_axes(axes)
            axes.set_xlabel("position", fontsize=10, color=TEXT)
            # Above the panel: lines may run anywhere within it.
            axes.legend(
                frameon=False, fontsize=8, labelcolor=TEXT,
                loc="lower left", bbox_to_anchor=(0, 1), ncols=3 if axes is left else 2,
            )  # fmt: skip
    return figure


def _rows(result: Json) -> tuple[list[Json], str]:
    """Return the rows of the pass to show, with its name."""
    passes = [row["what"]["pass"] for row in result["rows"]]
    which = BOTH if BOTH in passes else passes[0]
    return [row for row in result["rows"] if row["what"]["pass"] == which], which


def _lines(rows: Sequence[Json], value: Any) -> dict[str, Line]:
    """Return points by label; of the torch form's chunk sizes the lowest value at each length."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        y = value(row)
        if y is None:
            continue
        name = row["what"]["mechanism"]
        label = TORCH_LABEL if name.startswith(TORCH_FORM) else LABELS.get(name, name)
        points = found.setdefault(label, {})
        x = float(row["what"]["seq_len"])
        points[x] = min(float(y), points.get(x, float(y)))
    return {label: sorted(points.items()) for label, points in found.items()}


def _draw(axes: Axes, lines: dict[str, Line], ylabel: str) -> None:
    colors = line_colors(list(lines), MECHANISM_COLORS)
    for label, points in lines.items():
        axes.plot(
            [x for x, _ in points], [y for _, y in points],
            color=colors[label], linewidth=1.8, marker="o", markersize=3.5, label=label,
            clip_on=False,
        )  # fmt: skip
    plain_axes(axes)
    axes.set_xlabel("sequence length", fontsize=10, color=TEXT)
    axes.set_ylabel(ylabel, fontsize=10, color=TEXT)


def _name_ends(axes: Axes, ends: dict[str, tuple[float, float]], right: float, top: float) -> None:
    """Write each line's name at its end, those at the right edge apart from each other."""
    lowest = 0.0
    for label, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        at_edge = x >= right
        place = max(y, lowest) if at_edge else y
        if at_edge:
            lowest = place + LABEL_GAP * top
        axes.annotate(
            label, (x, place), xytext=(6, 0 if at_edge else -2),
            textcoords="offset points", ha="left", va="center" if at_edge else "top",
            annotation_clip=False, fontsize=9, color=_color(axes, label),
        )  # fmt: skip


def _color(axes: Axes, label: str) -> Any:
    return next(line.get_color() for line in axes.lines if line.get_label() == label)


def _lengths(panels: Sequence[Axes], lines: dict[str, Line]) -> None:
    """Label powers of two as 512, 1k, 2k ... and no other lengths."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    for axes in panels:
        axes.xaxis.set_major_locator(FixedLocator(xs))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_length))


def _length(x: float, _: object) -> str:
    return f"{x / 1024:.0f}k" if x >= 1024 and x % 1024 == 0 else f"{x:.0f}"


def _plain(y: float, _: object) -> str:
    return f"{y:,.0f}" if y >= 1 else f"{y:g}"


def _megabytes(row: Json) -> float | None:
    peak = row["more"].get("peak_bytes_per_sample")
    return peak / 1e6 if peak else None
