"""Figures of ``subquad bench``, from its result files."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from subquad.plots.style import COLORS, CYCLE, TEXT, new_figure, plain_axes

Json = dict[str, Any]
Line = list[tuple[float, float]]

TORCH_FORM = "linear-torch"
TORCH_LABEL = "linear (torch)"
LABELS = {"linear-cpu": "linear (C++)", "linear-triton": "linear (Triton)"}
# Fixed colours, so that one mechanism looks alike in all figures.
MECHANISM_COLORS = {
    "softmax": COLORS["softmax"],
    TORCH_LABEL: "#56b4e9",
    "linear (C++)": COLORS["linear"],
    "linear (Triton)": "#009e73",
}
BOTH = "forward+backward"


def figures(result: Json) -> dict[str, Figure]:
    """Return the figures that a result has the data for, by name."""
    kind, rows = result["kind"], result["rows"]
    if kind in ("attention", "peers") and rows:
        return {"scaling": scaling_figure(result), "wall": wall_figure(result)}
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
    """Return time against T on linear axes: the wall that softmax runs into."""
    figure = new_figure(6.2, 4.2)
    axes = figure.subplots()
    rows, which = _rows(result)
    batch = result["options"]["batch"]
    times = _lines(rows, lambda row: row["seconds"]["median"] / batch)
    _draw(axes, times, f"seconds a sample, {which}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, loc="upper left")
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
    spare = [c for c in CYCLE if c not in MECHANISM_COLORS.values()] or list(CYCLE)
    others = [label for label in lines if label not in MECHANISM_COLORS]
    for label, points in lines.items():
        color = MECHANISM_COLORS.get(label) or spare[others.index(label) % len(spare)]
        axes.plot(
            [x for x, _ in points], [y for _, y in points],
            color=color, linewidth=1.8, marker="o", markersize=3.5, label=label,
        )  # fmt: skip
    plain_axes(axes)
    axes.set_xlabel("sequence length", fontsize=10, color=TEXT)
    axes.set_ylabel(ylabel, fontsize=10, color=TEXT)


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
