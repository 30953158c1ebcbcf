"""Run one experiment in its folder, or take it up where it stopped, and write what it found.

results.json is written last: a folder that has it is a finished run.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subquad.environment import environment, without_folders
from subquad.experiments.report import write_report
from subquad.experiments.run_folder import (
    ENVIRONMENT,
    OPTIONS,
    RESULTS,
    as_json,
    open_folder,
    read_json,
)
from subquad.experiments.spec import Experiment, Json, Say
from subquad.files import atomic_write_json
from subquad.tasks.memory import keep_freed_memory


def run_experiment(
    experiment: Experiment[Any], options: Any, folder: Path, *, command: Sequence[str], say: Say
) -> Json:
    """Run ``experiment`` and return its results; a finished run's are read from its folder.

    Raises:
        ValueError: if the folder belongs to another run, or an option is out of its range.
        OSError: if the folder cannot be written, or data is missing.
    """
    found = open_folder(folder, experiment.name, options)
    if found is not None:
        return found
    keep_freed_memory()
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
        "claims": [dataclasses.asdict(claim) for claim in experiment.claims[options.mixer]],
    }
    write_report(
        folder / "report.html",
        title=f"{experiment.name}, {options.mixer} attention, {options.scale} scale",
        lead=experiment.summary[0].upper() + experiment.summary[1:] + ".",
        rows=[results],
        figures=[(folder / name, words) for name, words in results["figures"].items()],
        environment=stamp,
        config=as_json(options),
    )
    atomic_write_json(folder / RESULTS, results)
    return results


def export_results(folder: Path, path: Path) -> None:
    """Write a finished run's results, options and environment to one JSON file.

    Raises:
        FileNotFoundError: if the run is not finished.
        OSError: if the file cannot be written.
    """
    exported = {
        "results": read_json(folder / RESULTS),
        "options": _without_folders(read_json(folder / OPTIONS)["options"]),
        "environment": read_json(folder / ENVIRONMENT),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
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
