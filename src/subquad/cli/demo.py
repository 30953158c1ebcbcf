"""``subquad demo``: five minutes that show what this library is about."""

from pathlib import Path

from subquad.cli.console import console
from subquad.cli.parsing import parse
from subquad.experiments.demo import DemoOptions
from subquad.experiments.spec import Json


def demo(words: list[str]) -> int:
    """Train two small models, draw with both, and print what was measured."""
    options = parse(
        DemoOptions,
        words,
        prog="subquad demo",
        description="Train a linear and a softmax transformer on 4,500 real digits by the same "
        "recipe, let both draw and complete digits, and compare them.",
    )
    folder = free_folder(options.out)
    from subquad.experiments.demo_run import remarks, run_demo
    from subquad.tasks.memory import keep_freed_memory

    keep_freed_memory()
    say = console().print
    say(f"subquad demo, about {options.minutes:g} minutes, in {folder}")
    rows = run_demo(options, folder, command=["subquad", "demo", *words], say=say)
    show(rows)
    for remark in remarks(rows):
        say(remark)
    say(f"\nreport and pictures: [bold]{folder / 'report.html'}[/bold]")
    return 0


def free_folder(out: Path | None) -> Path:
    """Return the folder asked for, or the first of runs/demo, runs/demo-2, ... that is not there.

    Raises:
        ValueError: if the folder asked for is not empty.
    """
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out must be a new or empty folder, got {out}")
        return out
    folder, number = Path("runs") / "demo", 2
    while folder.exists():
        folder, number = Path("runs") / f"demo-{number}", number + 1
    return folder


def show(rows: list[Json]) -> None:
    """Print the table: a column a mixer."""
    from rich.table import Table

    from subquad.experiments.report import our_lines

    table = Table(title="Measured in this run", title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(row["mixer"], justify="right")
    for line in our_lines(rows):
        table.add_row(*line)
    console().print(table)
