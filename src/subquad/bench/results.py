"""What a benchmark finds: timings with their spread, what was left out, and where it was measured.

A result file holds rows; each row says *what* was timed in a small dict, so that ``compare`` can
match the rows of any two files of one kind.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subquad.environment import environment
from subquad.files import atomic_write_json

Json = dict[str, Any]
FORMAT = "subquad-bench"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of ``count`` repetitions, in seconds."""

    median: float
    q25: float
    q75: float
    count: int

    @property
    def relative(self) -> float:
        """Return the interquartile range as a share of the median."""
        return (self.q75 - self.q25) / self.median if self.median else 0.0


def spread(samples: Sequence[float]) -> Spread:
    """Summarise repetitions of one measurement.

    Raises:
        ValueError: if there are none.
    """
    if not samples:
        raise ValueError("samples must hold at least one time, got none")
    if len(samples) == 1:
        return Spread(median=samples[0], q25=samples[0], q75=samples[0], count=1)
    q25, median, q75 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median=median, q25=q25, q75=q75, count=len(samples))


@dataclass(kw_only=True)
class Row:
    """One measurement: ``what`` names it, ``more`` holds what else was found out (bytes, ratios).

    Values of ``what`` are plain strings and ints. ``seconds`` is one call of the thing timed.
    """

    what: dict[str, str | int]
    seconds: Spread
    more: Json = field(default_factory=dict)


@dataclass(kw_only=True)
class Report:
    """A benchmark's findings, filled while it runs, so that Ctrl-C leaves what there is."""

    kind: str
    options: Json
    rows: list[Row] = field(default_factory=list)
    left_out: list[Json] = field(default_factory=list)
    summary: list[Json] = field(default_factory=list)
    machine: Json = field(default_factory=dict)
    interrupted: bool = False

    def find(self, **what: str | int) -> Row | None:
        """Return the row whose ``what`` holds these entries, or None."""
        wanted = what.items()
        return next((row for row in self.rows if wanted <= row.what.items()), None)

    def leave_out(self, reason: str, **what: str | int) -> None:
        """Note that something was not measured, and why."""
        self.left_out.append({**what, "reason": reason})

    def as_json(self) -> Json:
        """Return everything, with the environment's stamp, ready for JSON."""
        return {"format": FORMAT, **asdict(self), "environment": environment()}

    def write(self, path: Path) -> None:
        """Write the result file, atomically.

        Raises:
            OSError: if it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, self.as_json())


def read_result(path: Path) -> Json:
    """Read a result file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no result of ``subquad bench``.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path.name} must be a result file of subquad bench, got another file")
    return found


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row of two result files: B's time over A's, and whether that is more than noise."""

    what: dict[str, str | int]
    first: Spread
    second: Spread
    ratio: float
    within_spread: bool


def compare(first: Json, second: Json) -> list[Difference]:
    """Return the rows that both results hold, in the order of the first.

    A difference counts as within the spread if the interquartile ranges touch.

    Raises:
        ValueError: if the results are of different kinds or have no row in common.
    """
    if first["kind"] != second["kind"]:
        raise ValueError(
            f"both results must be of one kind, got {first['kind']} and {second['kind']}"
        )
    others = {_key(row): row for row in second["rows"]}
    differences = [
        _difference(row["what"], Spread(**row["seconds"]), Spread(**others[_key(row)]["seconds"]))
        for row in first["rows"]
        if _key(row) in others
    ]
    if not differences:
        raise ValueError("the results must have a measurement in common, got none")
    return differences


def changed_options(first: Json, second: Json) -> list[str]:
    """Say which settings of the two results differ, machine and versions included."""
    pairs = [("options", name) for name in first["options"]]
    pairs += [("environment", name) for name in ("processor", "gpu", "threads", "packages")]
    return [
        f"{name}: {first[part].get(name)} and {second[part].get(name)}"
        for part, name in pairs
        if first[part].get(name) != second[part].get(name)
    ]


def _key(row: Json) -> str:
    return json.dumps(row["what"], sort_keys=True)


def _difference(what: dict[str, str | int], first: Spread, second: Spread) -> Difference:
    return Difference(
        what=what,
        first=first,
        second=second,
        ratio=second.median / first.median,
        within_spread=first.q25 <= second.q75 and second.q25 <= first.q75,
    )
