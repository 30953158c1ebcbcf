"""report.html: our figures beside the paper's, with what differs, the setting and the command.

Everything is read from results.json, environment.json and the PNG files of one or more runs.
"""

from collections.abc import Sequence
from pathlib import Path

from subquad.experiments import markup
from subquad.experiments.paper_tables import (
    TABLE_1,
    TABLE_2,
    TABLE_4_CIFAR,
    TABLE_4_MNIST,
    TABLE_5_CIFAR,
    TABLE_5_MNIST,
    PaperTable,
)
from subquad.experiments.spec import Json
from subquad.files import atomic_write_bytes

NONE = "\N{EN DASH}"  # where there is no value
PAPER = "Katharopoulos et al. 2020, Transformers are RNNs"

Figure = tuple[Path, str]  # PNG file and what it shows


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    rows: Sequence[Json],
    figures: Sequence[Figure],
    environment: Json,
    config: Json,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of the results ``rows``, one a trained model, to ``path``.

    Raises:
        OSError: if the file cannot be written.
    """
    parts = [
        f"<h1>{markup.text(title)}</h1>",
        markup.paragraph(lead, "lead"),
        markup.heading("Measured in this run"),
        our_table(rows),
        *(markup.paragraph(note, "note") for note in notes),
    ]
    for figure, description in figures:
        parts += [markup.heading(description), markup.picture(figure, description)]
    if "paper" in rows[0]:
        parts += paper_section(rows[0]["paper"])
    elif any("image_shape" in row for row in rows):
        parts += [
            markup.heading(f"Beside the paper ({PAPER})"),
            markup.paragraph(differences(rows)),
        ]
        for printed in paper_tables(rows):
            parts.append(beside_the_paper(printed, rows))
    else:
        parts += [
            markup.heading(f"Beside the paper ({PAPER}, section 4.1 and Figure 2)"),
            markup.paragraph(copy_differences(rows, config)),
        ]
    parts += setting(environment, config)
    atomic_write_bytes(path, markup.page(title, parts).encode())


def paper_section(paper: Json) -> list[str]:
    """Return what an experiment's results have to say of its paper.

    ``paper`` holds ``heading``, ``words`` and ``tables``: dicts with ``title``, ``head``, ``lines``
    and, if there is something to say, ``note``.
    """
    parts = [markup.heading(paper["heading"]), markup.paragraph(paper["words"])]
    for table in paper["tables"]:
        parts += [markup.heading(table["title"]), markup.table(table["head"], table["lines"])]
        if table.get("note"):
            parts.append(markup.paragraph(table["note"], "note"))
    return parts


def setting(environment: Json, config: Json) -> list[str]:
    """Return the sections that close every report: command, options, environment."""
    return [
        markup.heading("Command"),
        markup.code(environment.get("command", "")),
        markup.heading("Options"),
        markup.table(("option", "value"), _flat(config)),
        markup.heading("Environment"),
        markup.table(("", ""), _flat(environment)),
    ]


def our_table(rows: Sequence[Json]) -> str:
    """Return the table of what was measured: a column a trained model."""
    return markup.table(("", *(str(row["mixer"]) for row in rows)), our_lines(rows))


def our_lines(rows: Sequence[Json]) -> list[list[str]]:
    """Return the lines of that table: what was measured, and its value in each row of results."""
    batches = rows[0].get("generation", {})
    wanted = [
        *OUR_LINES,
        *((f"images drawn a second, batch {batch}", f"generation.{batch}") for batch in batches),
        ("state of one image at full length, bytes", "state_bytes_per_image"),
    ]
    lines: list[list[str]] = []
    for label, key in wanted:
        values = [lookup(row, key) for row in rows]
        if any(value is not None for value in values):
            unit = str(rows[0].get("unit", ""))
            cells = [NONE if value is None else number(value) for value in values]
            lines.append([label.format(unit=unit), *cells])
    return lines


def number(value: float | int) -> str:
    """Return a number with three or four figures that count; whole numbers whole."""
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.{3 - len(str(int(abs(value)))) + 1}f}"


def lookup(row: Json, key: str) -> float | int | None:
    """Return ``row["a"]["b"]`` for the key "a.b", or None where there is none."""
    value: object = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


OUR_LINES = (
    ("test {unit}", "test"),
    ("share right", "test_accuracy"),
    ("test images", "test_images"),
    ("parameters", "parameters"),
    ("training steps", "steps"),
    ("images seen", "images_seen"),
    ("sequences seen", "sequences_seen"),
    ("training minutes", "minutes"),
    ("training images a second", "train_images_per_second"),
    ("training sequences a second", "train_sequences_per_second"),
    ("images classified a second", "inference_images_per_second"),
    ("peak memory of a training step, bytes", "peak_bytes"),
)


def paper_tables(rows: Sequence[Json]) -> tuple[PaperTable, ...]:
    """Return the paper's tables about such images."""
    if rows[0]["image_shape"][-1] == 3:
        return TABLE_2, TABLE_4_CIFAR, TABLE_5_CIFAR
    return TABLE_1, TABLE_4_MNIST, TABLE_5_MNIST


def beside_the_paper(printed: PaperTable, rows: Sequence[Json]) -> str:
    """Return the paper's table with our rows below it, and what must be known to compare them."""
    lines: list[list[str]] = [
        [name, *(NONE if value is None else f"{value:,g}" for value in values)]
        for name, values in printed.rows.items()
    ]
    ours = range(len(lines), len(lines) + len(rows))
    lines += [[f"{row['mixer']}, this run", *_our_cells(printed, row)] for row in rows]
    head = (printed.title, *printed.columns)
    return markup.table(head, lines, ours=ours) + markup.paragraph(printed.note, "note")


def _our_cells(printed: PaperTable, row: Json) -> list[str]:
    batches = row.get("generation", {})
    best = max(batches.values(), default=None)
    on_gpu = row.get("device") == "cuda"
    cells = {
        "bits/dim": row.get("test"),
        "images/s": best,
        "CPU": None if on_gpu or "1" not in batches else 1 / batches["1"],
        "GPU": 1 / batches["1"] if on_gpu and "1" in batches else None,
    }
    found = [cells[column] for column in printed.columns]
    return [NONE if value is None else number(value) for value in found]


def differences(rows: Sequence[Json]) -> str:
    """Return the sentences that say what differs from the paper: hardware, scale, images seen."""
    row = rows[0]
    height, width, channels = row["image_shape"]
    cifar = channels == 3
    paper_model, epochs = (
        ("16 layers of width 256 (12,677,150 parameters)", "7 days")
        if cifar
        else ("8 layers of width 256 (6,359,070 parameters)", "250 epochs of 60,000 images")
    )
    model = row["model"]
    seen = "; ".join(
        f"{r['mixer']}: {r['images_seen']:,} images seen, {r['epochs']:.2f} passes over "
        f"{r['train_images']:,}"
        for r in rows
    )
    side = 32 if cifar else 28
    size = f"{height} x {width} images"
    if height != side:
        size += f" (the paper's have {side} x {side})"
    return (
        f"The paper trained {paper_model} for {epochs} on a GPU. Here: "
        f"{model['num_layers']} layers of width {model['d_model']} "
        f"({row['parameters']:,} parameters), {size}, on "
        f"{row['hardware']} ({seen}). Speeds on other hardware, and bits/dim of other models, "
        "other image sizes or shorter training cannot be expected to agree."
    )


def copy_differences(rows: Sequence[Json], config: Json) -> str:
    """Return the sentences that say what differs from the paper's copy task."""
    row, train = rows[0], config["train"]
    model = row["model"]
    trained = "; ".join(
        f"{r['mixer']}: {r['steps']:,} updates, {r['sequences_seen']:,} sequences" for r in rows
    )
    return (
        "Figure 2 is a plot without numbers: with linear attention the loss ends as low as with "
        "softmax, which is ahead on the way. The paper copies 10 symbols in sequences of 128, with "
        "4 layers, batches of 64 and RAdam, and drops the learning rate from 1e-3 to 1e-4 after "
        f"3,000 updates. Here: {config['num_symbols']} symbols, sequences of {row['seq_len']}, "
        f"{model['num_layers']} layers of width {model['d_model']} ({row['parameters']:,} "
        f"parameters), batches of {train['batch_size']}, {train['optimizer']} with the schedule "
        f"{train['schedule']} from {train['lr']}, on {row['hardware']} ({trained}). What the paper "
        "does not state (dropout, feed-forward width, positions) follows the released code at the "
        "paper scale only."
    )


def _flat(values: Json, prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name} ")
        else:
            lines.append((prefix + name, NONE if value is None else str(value)))
    return lines
