"""What all figures share: colours, resolution, and the way to PNG bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# A colour each for the mixers, the same in every figure; distinguishable with colour-blindness.
COLORS = {"linear": "#0072b2", "softmax": "#d55e00"}
CYCLE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
    "#000000", "#8a8f98", "#7a5195", "#8c564b", "#999933", "#882255",
)  # fmt: skip
TEXT = "#24292f"
MUTED = "#6e7781"
DPI = 144
CHARACTERS, LINE = 13, 8  # of a legend: in an inch, and those that its lines and gaps would be


def line_colors(
    labels: Sequence[str], named: Mapping[str, str] = MappingProxyType(COLORS)
) -> dict[str, str]:
    """Return a color for each label: its own if ``named`` has one, else one that none of them has.

    Where labels are more than colors, colors repeat.
    """
    spare = [color for color in CYCLE if color not in named.values()] or list(CYCLE)
    others = [label for label in labels if label not in named]
    return {label: named.get(label) or spare[others.index(label) % len(spare)] for label in labels}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches on a white ground."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> None:
    """Leave only the left and bottom spines, a light grid and quiet tick labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """Put the legend below all panels, where no line can run through it.

    It has fewer columns where labels are long, and the figure grows by its rows.
    """
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(columns, int(CHARACTERS * figure.get_figwidth() / (longest + LINE))))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8,
        labelcolor=TEXT,
    )  # fmt: skip
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))


def log_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Write plain numbers, more of each decade where there are few decades.

    Values without a place on the axis (0, NaN) play no part.
    """
    values = [value for value in values if 0 < value < math.inf]
    low, high = min(values, default=1.0) / 1.5, max(values, default=1.0) * 1.5
    digits = (1.0, 2.0, 5.0) if high / low > 16 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [digit * 10.0**decade for decade in decades for digit in digits]
    axis.set_major_locator(FixedLocator([place for place in places if low <= place <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def png_bytes(figure: Figure) -> bytes:
    """Return ``figure`` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
