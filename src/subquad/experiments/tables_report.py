"""report.html of an experiment that measures and trains nothing: its tables, figures, remarks.

Such an experiment's results hold ``tables``: dicts with ``title``, ``head``, ``lines`` (of strings)
and, if there is something to say, ``note``. Its options have no ``train``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subquad.experiments import markup
from subquad.experiments.options import ScaleOptions, at_least
from subquad.experiments.report import Figure, setting
from subquad.experiments.spec import Json
from subquad.files import atomic_write_bytes


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(ScaleOptions):
    """What the options of such experiments share."""

    seed: int = 0
    """Seed of all that is random."""

    def __post_init__(self) -> None:
        at_least(self, "seed", 0)

    @property
    def mixer(self) -> str:
        """What stands for the mixer in names of folders: a run has all of them."""
        return "all"


def write_tables_report(
    path: Path,
    *,
    title: str,
    lead: str,
    results: Json,
    figures: Sequence[Figure],
    environment: Json,
    config: Json,
) -> None:
    """Write the report of ``results``, which has ``tables`` and ``notes``, to ``path``.

    Raises:
        OSError: if the file cannot be written.
    """
    parts = [f"<h1>{markup.text(title)}</h1>", markup.paragraph(lead, "lead")]
    for table in results["tables"]:
        parts += [markup.heading(table["title"]), markup.table(table["head"], table["lines"])]
        if table.get("note"):
            parts.append(markup.paragraph(table["note"], "note"))
    parts += [markup.paragraph(note) for note in results["notes"]]
    for figure, description in figures:
        parts += [markup.heading(description), markup.picture(figure, description)]
    parts += setting(environment, config)
    atomic_write_bytes(path, markup.page(title, parts).encode())


def numbers(name: str, text: str, *, least: int) -> tuple[int, ...]:
    """Return the rising whole numbers of an option that has them with commas between.

    Raises:
        ValueError: if they are not that, or one is below ``least``.
    """
    words = [word.strip() for word in text.split(",")]
    found = [int(word) for word in words if word.isdecimal()]
    if len(found) < len(words) or sorted(set(found)) != found or found[0] < least:
        raise ValueError(
            f"{name} must be rising whole numbers of at least {least} with commas between, "
            f"got {text!r}"
        )
    return tuple(found)
