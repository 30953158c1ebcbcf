"""Run one experiment in its folder, or take it up where it stopped, and write what it found.

results.json is written last: a folder that has it is a finished run.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subquad.environment import environment, without_folders
from subquad.experiments.options import train_config
from subquad.experiments.report import write_report
from subquad.experiments.rows_report import write_rows_report
from subquad.experiments.run_folder import (
    ENVIRONMENT,
    OPTIONS,
    RESULTS,
    as_json,
    open_folder,
    read_json,
)
from subquad.experiments.spec import Experiment, Json, Say
from subquad.experiments.tables_report import write_tables_report
from subquad.files import atomic_write_bytes, atomic_write_json


def run_experiment(
    experiment: Experiment[Any], options: Any, folder: Path, *, command: Sequence[str], say: Say
) -> Json:
    """Run ``experiment`` and return its results; a finished run's are read from its folder.

    Raises:
        ValueError: if the folder belongs to another run, or an option is out of its range.
        OSError: if the folder cannot be written, or data is missing.
    """
    if hasattr(options, "train"):
        train_config(options)  # refuses what is out of range while there is no folder yet
    found = open_folder(folder, experiment.name, options)
    if found is not None:
        return found
    stamp = environment(command)
    atomic_write_json(folder / ENVIRONMENT, stamp)
    measured = experiment.run(options, folder, say)
    results = {
        "experiment": experiment.name,
        "mixer": options.mixer,
        "scale": options.scale,
        "seed": options.seed,
        **measured,
        "hardware": hardware(stamp, measured["device"]),
        "claims": [dataclasses.asdict(claim) for claim in experiment.claims.get(options.mixer, ())],
    }
    page: Json = {
        "lead": experiment.summary[0].upper() + experiment.summary[1:] + ".",
        "figures": [(folder / name, words) for name, words in results["figures"].items()],
        "environment": stamp,
        "config": as_json(options),
    }
    name = experiment.name
    if "tables" in results:
        title = f"{name}, {options.scale} scale"
        write_tables_report(folder / "report.html", title=title, results=results, **page)
    elif "rows" in results:
        title = f"{name}, {options.scale} scale"
        write_rows_report(folder / "report.html", title=title, results=results, **page)
    else:
        title = f"{name}, {options.mixer} attention, {options.scale} scale"
        write_report(folder / "report.html", title=title, rows=[results], **page)
    atomic_write_json(folder / RESULTS, results)
    return results


def export_results(folder: Path, path: Path) -> None:
    """Write a finished run's results, options and environment to one JSON file.

    The figures go beside it, in a folder of the file's name: results/one.json, results/one/*.png.

    Raises:
        FileNotFoundError: if the run is not finished.
        ValueError: if ``path`` does not end in .json; the folder could have its name.
        OSError: if the file or its figures cannot be written.
    """
    results = read_json(folder / RESULTS)
    exported = {
        "results": results,
        "options": _without_folders(read_json(folder / OPTIONS)["options"]),
        "environment": read_json(folder / ENVIRONMENT),
    }
    if path.suffix != ".json":
        raise ValueError(f"path must name a .json file, got {path}")
    beside = path.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    for name in results["figures"]:
        figure = folder / name
        atomic_write_bytes(beside / figure.name, figure.read_bytes())
    atomic_write_json(path, exported)


def _without_folders(options: Json) -> Json:
    """Cut absolute paths to their last part: the file is shared, the folders are the user's."""
    return {k: without_folders(v) if isinstance(v, str) else v for k, v in options.items()}


def hardware(stamp: Json, device: str) -> str:
    """Return the words for what the run computed on."""
    if device == "cuda":
        return str(stamp["gpu"])
    threads = stamp["threads"]
    return f"{stamp['processor']} ({threads} thread{'s' if threads > 1 else ''})"
