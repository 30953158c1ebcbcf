"""What ``subquad bench`` shows: tables, a bar while it measures, and figures beside its file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subquad.cli.console import console, say

if TYPE_CHECKING:
    from subquad.bench.results import Report
    from subquad.bench.tables import Table
    from subquad.bench.timing import Progress

LONG_CELL, WIDEST = 40, 200


def show(table: "Table") -> None:
    """Print a table, and its note under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(table.header):
        cells = [row[i] for row in table.rows]
        number, long = all(map(_is_number, cells)), max(map(len, cells)) > LONG_CELL
        shown.add_column(name, justify="right" if number else "left", no_wrap=not long)
    for row in table.rows:
        shown.add_row(*row)
    # Wider than a narrow terminal rather than cut short: a name that is cut says nothing.
    needed = shown.__rich_measure__(console(), console().options.update(max_width=WIDEST)).maximum
    has_long = any(len(cell) > LONG_CELL for row in table.rows for cell in row)
    width = console().width if has_long else max(console().width, needed)
    Console(width=width, highlight=False, markup=False).print(shown)
    if table.note:
        say(f"{table.note}\n")


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] == "-"


@contextlib.contextmanager
def progress_bar() -> Iterator["Progress"]:
    """Give a Progress that moves a bar on standard error, with an estimate of the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from subquad.bench.timing import Progress

    columns = (
        BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    # A long memory for the speed: the units of work differ much. Few redraws: they take time.
    with Bar(
        *columns, console=Console(stderr=True), transient=True, refresh_per_second=1,
        speed_estimate_period=900,
    ) as bar:  # fmt: skip
        task = bar.add_task("warming up", total=None)

        def show(done: float, total: float, label: str) -> None:
            options: dict[str, Any] = {"description": label} if label else {}
            bar.update(task, completed=done, total=total, **options)

        yield Progress(show)


def write_figures(report: "Report", out: Path) -> Iterator[Path]:
    """Write the figures of a report beside its file and yield their paths."""
    from subquad.files import atomic_write_bytes
    from subquad.plots import png_bytes
    from subquad.plots.bench import figures

    for name, figure in figures(report.as_json()).items():
        path = out.with_name(f"{out.stem}-{name}.png")
        atomic_write_bytes(path, png_bytes(figure))
        yield path
