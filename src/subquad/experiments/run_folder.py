"""One run = one folder: made, recognised again, and refused where another run lives in it.

The folder holds config.json (the experiment and its options; training adds its own settings),
environment.json, what training writes, model/ (the trained weights), figures/, results.json
(written last) and report.html.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from subquad.experiments.spec import Json
from subquad.files import atomic_write_json
from subquad.tasks.config import FREE_ON_RESUME

OPTIONS, RESULTS, ENVIRONMENT = "config.json", "results.json", "environment.json"
CHECKPOINT = "checkpoint.safetensors"  # tasks.training writes it
TO_LOSE = (CHECKPOINT, RESULTS, "model", "model.safetensors")  # never lost to another run


def default_folder(experiment: str, mixer: str, scale: str, seed: int) -> Path:
    """Return the folder of a run that names none: ``runs/EXPERIMENT-MIXER-SCALE``."""
    suffix = f"-seed{seed}" if seed else ""
    return Path("runs") / f"{experiment}-{mixer}-{scale}{suffix}"


def open_folder(folder: Path, experiment: str, options: Any) -> Json | None:
    """Make the folder or take up the run that is in it; return its results if it is finished.

    Raises:
        ValueError: if the folder belongs to a run with another experiment or other options, or
            holds files that are no run's.
        OSError: if the folder cannot be written.
    """
    wanted = {"experiment": experiment, "options": as_json(options)}
    path = folder / OPTIONS
    found = find_run(folder)
    if found is not None and any((folder / name).is_file() for name in (CHECKPOINT, RESULTS)):
        _refuse_another_run(folder, found, wanted)
    else:  # a run that failed before its first checkpoint has nothing to lose
        if found is None or any((folder / name).exists() for name in TO_LOSE):
            _make(folder)
        atomic_write_json(path, wanted)
    results = folder / RESULTS
    return read_json(results) if results.is_file() else None


def find_run(folder: Path) -> Json | None:
    """Return what config.json says if it is a run's; a trained model's has that name too."""
    try:
        found = read_json(folder / OPTIONS)
    except (OSError, ValueError):
        return None
    return found if "experiment" in found else None


def as_json(options: Any) -> Json:
    """Return an option dataclass as plain JSON values."""
    values = dataclasses.asdict(options)
    loaded: Json = json.loads(json.dumps(values, default=str))
    return loaded


def read_json(path: Path) -> Json:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must hold JSON, got an unreadable file ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the run's folder must be a folder, got the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"the run's folder must be empty or hold a run, got {folder}; choose another with --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"the folder {folder} cannot be made: {reason}") from error


def _refuse_another_run(folder: Path, found: Json, wanted: Json) -> None:
    if found.get("experiment") != wanted["experiment"]:
        raise ValueError(
            f"{folder} holds a run of {found.get('experiment')}, not of {wanted['experiment']}; "
            "choose another folder with --out"
        )
    old, new = _flat(found.get("options", {})), _flat(wanted["options"])
    for name in {**new, **old}:
        if name not in FREE_ON_RESUME and old.get(name) != new.get(name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{folder} holds a run with {flag} {old.get(name)}, not {new.get(name)}; "
                "choose another folder with --out"
            )


def _flat(options: Json) -> Json:
    flat: Json = {}
    for name, value in options.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
