"""Experiments of many rows: each row is one trained model in a folder of its own.

A row that is finished is read from its folder, one that was stopped goes on, so the experiment as a
whole can be stopped at any time. A row whose loss is no longer finite is a result too.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subquad.experiments.options import TrainedRowsOptions
from subquad.experiments.run_folder import RESULTS, open_folder
from subquad.experiments.spec import Json, Say
from subquad.experiments.train import training_results
from subquad.files import atomic_write_bytes, atomic_write_json
from subquad.plots import learning_curves, png_bytes, read_curve
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import estimate
from subquad.tasks.task import Task
from subquad.tasks.training import fit


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model to train.

    Args:
        group: what rows must share to be compared: the task.
        label: names the row within its group.
        build: makes the task with a new model in it.
        train: how it is trained.
        facts: what is known of the row without training, for the table.
        measure: called with the trained task and the experiment's folder; what it returns joins the
            row's results. ``figures`` there maps files below the folder to what they show.
    """

    group: str
    label: str
    build: Callable[[], Task]
    train: TrainConfig
    facts: Json = field(default_factory=dict)
    measure: Callable[[Any, Path], Json] | None = None

    @property
    def name(self) -> str:
        """The row's folder."""
        return as_file_name(f"{self.group}-{self.label}")


def as_file_name(words: str) -> str:
    """Return ``words`` with nothing but letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")


def run_rows(
    experiment: str, rows: Sequence[Row], options: TrainedRowsOptions, folder: Path, say: Say
) -> list[Json]:
    """Train what is not trained yet, and return the results of all rows.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    found = []
    for i, row in enumerate(rows):
        where = folder / row.name
        results = open_folder(where, experiment, _options_of(row, options))
        say(f"row {i + 1} of {len(rows)}: {row.name}{', finished' if results else ''}")
        if results is None:
            results = {"row": row.name, "group": row.group, "label": row.label, **row.facts}
            results |= _train(row, folder, where)
            atomic_write_json(where / RESULTS, results)
        found.append(results)
    return found


def estimate_rows(rows: Sequence[Row]) -> Json:
    """Return what all rows would cost together: the largest model, memory and disk of all."""
    costs = [dataclasses.asdict(estimate(row.build(), row.train)) for row in rows]
    whole: Json = {name: sum(c[name] for c in costs) for name in ("steps", "flops", "minutes")}
    whole |= {name: max(c[name] for c in costs) for name in ("parameters", "memory_gb")}
    return whole | {
        "rows": len(rows),
        "flops_per_step": whole["flops"] // whole["steps"],
        "seconds_per_step": 60 * whole["minutes"] / whole["steps"],
        "disk_gb": sum(c["disk_gb"] for c in costs),
    }


def combined(rows: Sequence[Json], folder: Path, figures: dict[str, str]) -> Json:
    """Return the results of the whole experiment, with the learning curves of each group.

    ``figures`` are those made of all rows; those of single rows follow them.
    """
    groups = dict.fromkeys(row["group"] for row in rows)
    shown = {}
    for group in groups:
        file = f"figures/curves-{as_file_name(group)}.png"
        _draw_curves(folder, [row for row in rows if row["group"] == group], file)
        shown[file] = f"Learning curves: {group}"
    shown |= figures
    for row in rows:
        shown |= row.get("figures", {})
    device = next((row["device"] for row in rows if "device" in row), "cpu")
    return {"rows": list(rows), "device": device, "figures": shown}


def write_figure(folder: Path, file: str, figure: Any) -> None:
    """Write a matplotlib figure as ``file`` below ``folder``."""
    (folder / file).parent.mkdir(exist_ok=True)
    atomic_write_bytes(folder / file, png_bytes(figure))


def _options_of(row: Row, options: TrainedRowsOptions) -> Any:
    """Return the options with the row's name among them: a folder belongs to one row."""
    kind = dataclasses.make_dataclass(
        "RowOptions", [("row", str)], bases=(type(options),), frozen=True, kw_only=True
    )
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return kind(row=row.name, **values)


def _train(row: Row, folder: Path, where: Path) -> Json:
    task = row.build()
    unit = {"unit": task.unit, "device": next(task.model.parameters()).device.type}
    try:
        fitted = fit(task, row.train, where)
    except FloatingPointError as error:
        return {**unit, "failed": str(error).split(";")[0]}  # the rest names a folder
    if fitted.interrupted:
        raise KeyboardInterrupt
    measured = task.evaluate(full=True)
    return {
        **unit,
        "device": fitted.device,
        "test": measured["loss"],
        **{f"test_{name}": value for name, value in measured.items() if name != "loss"},
        **training_results(fitted, task.sample_name, task.model),
        **(row.measure(task, folder) if row.measure else {}),
    }


def _draw_curves(folder: Path, rows: Sequence[Json], file: str) -> None:
    curves = [
        read_curve(path, row["label"])
        for row in rows
        if (path := folder / row["row"] / "metrics.csv").is_file()
    ]
    unit = rows[0]["unit"]
    write_figure(folder, file, learning_curves(curves, unit=unit, log_scale=unit != "bits/dim"))
