"""report.html of an experiment of many rows: a table for each group, the figures, the remarks."""

from collections.abc import Collection, Sequence
from pathlib import Path

from subquad.experiments import markup
from subquad.experiments.report import NONE, Figure, lookup, number, paper_section, setting
from subquad.experiments.spec import Json
from subquad.files import atomic_write_bytes

# A column: its head, and where a row of results holds its value.
COLUMNS = (
    ("test {unit}", "test"),
    ("share right", "test_accuracy"),
    ("perplexity", "test_perplexity"),
    ("share right, held-out families", "held_out_accuracy"),
    ("perplexity, held-out families", "held_out_perplexity"),
    ("paper: share right", "paper_accuracy"),
    ("paper: perplexity", "paper_perplexity"),
    ("paper: share right, held-out", "paper_held_out_accuracy"),
    ("paper: perplexity, held-out", "paper_held_out_perplexity"),
    ("share right at the swap", "accuracy_at_swap"),
    ("5-shot, share right", "five_shot"),
    ("10-shot, share right", "ten_shot"),
    ("paper: 5-shot, ImageNet", "paper_five_shot"),
    ("images with labels", "labels"),
    ("distance from softmax", "distance"),
    ("features a head", "num_features"),
    ("softmax heads, %", "softmax_percent"),
    ("state, bytes", "state_bytes"),
    ("parameters", "parameters"),
    ("paper: parameters, M", "paper_parameters_millions"),
    ("multiply-adds an image", "multiply_adds"),
    ("steps", "steps"),
    ("minutes", "minutes"),
    ("seconds a step", "seconds_per_step"),
    ("sequences a second", "train_sequences_per_second"),
    ("images a second", "train_images_per_second"),
    ("classified a second", "inference_images_per_second"),
    ("peak memory, bytes", "peak_bytes"),
    ("training images", "train_images"),
)
FIRST = (
    "test", "test_accuracy", "five_shot", "held_out_accuracy", "distance", "num_features",
    "state_bytes", "minutes",
)  # fmt: skip


def write_rows_report(
    path: Path,
    *,
    title: str,
    lead: str,
    results: Json,
    figures: Sequence[Figure],
    environment: Json,
    config: Json,
) -> None:
    """Write the report of ``results``, which has ``rows`` and ``notes``, to ``path``.

    Raises:
        OSError: if the file cannot be written.
    """
    parts = [f"<h1>{markup.text(title)}</h1>", markup.paragraph(lead, "lead")]
    for group in dict.fromkeys(row["group"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["group"] == group]
        parts += [markup.heading(f"Measured in this run: {group}"), rows_table(rows)]
        parts += [
            markup.paragraph(f"{row['label']}: {row['failed']}.", "note")
            for row in rows
            if "failed" in row
        ]
    parts += [markup.paragraph(note) for note in results["notes"]]
    for figure, description in figures:
        parts += [markup.heading(description), markup.picture(figure, description)]
    if "paper" in results:
        parts += paper_section(results["paper"])
    parts += setting(environment, config)
    atomic_write_bytes(path, markup.page(title, parts).encode())


def rows_table(rows: Sequence[Json]) -> str:
    """Return the table of one group: a line a row, the columns that any of them has."""
    head, lines = rows_lines(rows)
    return markup.table(head, lines)


def rows_lines(
    rows: Sequence[Json], *, only: Collection[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return that table's head and lines; ``only`` names the columns wanted, such as ``FIRST``."""
    columns = [
        (label, key)
        for label, key in COLUMNS
        if (only is None or key in only) and any(lookup(row, key) is not None for row in rows)
    ]
    lines = []
    for row in rows:
        values = [lookup(row, key) for _, key in columns]
        cells = [NONE if value is None else number(value) for value in values]
        lines.append([str(row["label"]), *cells])
    return ["", *(label.format(unit=rows[0]["unit"]) for label, _ in columns)], lines
