"""``subquad compare``: runs of one experiment in one table, with their spread over seeds."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from subquad.cli.bench_output import show
from subquad.cli.console import say
from subquad.cli.parsing import UsageError, parse
from subquad.experiments.spec import Json

if TYPE_CHECKING:
    from subquad.bench.tables import Table

HEAD = (
    "mixer", "test {unit}", "lowest to highest", "seeds", "ties with", "steps", "minutes",
    "images/s", "state, bytes", "the paper",
)  # fmt: skip
NOTE = (
    "Ties: the ranges over the seeds touch. Minutes are of training; images/s of the largest batch "
    "that was drawn; the paper's number is of a larger model that was trained much longer."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """This command."""

    out: Path | None = None
    """Also write the table to this JSON file."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"--out must name a .json file, got {self.out}")


def compare(words: list[str]) -> int:
    """Print the table of the runs named, folders or exported files."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    named, rest = words[:first], words[first:]
    flags = parse(
        CompareOptions, rest, prog="subquad compare RUN RUN ...",
        description="Show finished runs of one experiment in one table: a line a mixer, with the "
        "spread over its seeds. A RUN is a run's folder or the file that --export wrote.",
    )  # fmt: skip
    if not named:
        raise UsageError("compare needs the folders or files of finished runs, got none")
    from subquad.experiments.seeds import differences, read_run, seed_rows

    runs = [read_run(Path(name)) for name in named]
    try:
        rows = seed_rows(runs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    first_run = runs[0]["results"]
    show(_table(rows, f"{first_run['experiment']}, {first_run['scale']} scale"))
    for line in differences(runs):
        say(f"not the same: {line}")
    if flags.out is not None:
        from subquad.files import atomic_write_json

        flags.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(flags.out, {"rows": rows, "not_the_same": differences(runs)})
        say(f"{flags.out}")
    return 0


def _table(rows: list[Json], title: str) -> "Table":
    from subquad.bench.tables import Table
    from subquad.experiments.report import NONE, number

    def cell(value: float | int | None) -> str:
        return NONE if value is None else number(value)

    lines = []
    for row in rows:
        ties = NONE if row["ties"] is None else ", ".join(row["ties"]) or "none"
        spread = f"{number(row['low'])} to {number(row['high'])}" if len(row["seeds"]) > 1 else NONE
        lines.append(
            (row["mixer"], cell(row["test"]), spread, str(len(row["seeds"])), ties,
             cell(row["steps"]), cell(row["minutes"]), cell(row["images_per_second"]),
             cell(row["state_bytes"]), NONE if row["paper"] is None else f"{row['paper']:g}")
        )  # fmt: skip
    header = tuple(words.format(unit=rows[0]["unit"]) for words in HEAD)
    return Table(title=title, header=header, rows=lines, note=NOTE)
