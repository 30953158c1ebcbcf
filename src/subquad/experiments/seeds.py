"""Runs of one experiment as one table: a line a mixer, its mean and its spread over the seeds.

Two mixers whose ranges from the lowest to the highest seed touch are a tie. With one seed a mixer
has no range, so its number is printed and no order is claimed.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from subquad.experiments.run_folder import OPTIONS, RESULTS, read_json
from subquad.experiments.spec import Json

FREE = ("mixer", "seed", "data_folder", "device")  # what may differ between the runs of a table


def read_run(path: Path) -> Json:
    """Return {"results", "options"} of a finished run: its folder, or its exported JSON file.

    Raises:
        FileNotFoundError: if there is no finished run.
        ValueError: if the file holds something else, or a run of many rows.
    """
    if path.is_dir():
        run = {
            "results": read_json(path / RESULTS),
            "options": read_json(path / OPTIONS)["options"],
        }
    else:
        run = read_json(path)
    results = run.get("results")
    if not isinstance(results, dict) or "test" not in results or "options" not in run:
        raise ValueError(f"{path} must hold a run of one model, got something else")
    return run


def seed_rows(runs: Sequence[Json]) -> list[Json]:
    """Return one row a mixer, in the order of the runs.

    A row has ``test`` (the mean over seeds), ``low``, ``high``, ``seeds``, ``ties`` (mixers whose
    range its own touches; None with one seed), means of what else was measured, and the paper's
    value where it has one.

    Raises:
        ValueError: if the runs are of different experiments, scales or units, or two are the same.
    """
    results = [run["results"] for run in runs]
    for name in ("experiment", "scale", "unit"):
        values = list(dict.fromkeys(str(r[name]) for r in results))
        if len(values) > 1:
            raise ValueError(f"all runs must have the same {name}, got {' and '.join(values)}")
    rows = [
        _row(mixer, [r for r in results if r["mixer"] == mixer])
        for mixer in dict.fromkeys(r["mixer"] for r in results)
    ]
    for row in rows:
        others = [other for other in rows if other is not row and len(other["seeds"]) > 1]
        row["ties"] = None if len(row["seeds"]) == 1 else [
            other["mixer"] for other in others
            if row["low"] <= other["high"] and other["low"] <= row["high"]
        ]  # fmt: skip
    return rows


def differences(runs: Sequence[Json]) -> list[str]:
    """Return a line for each option that differs between runs, the mixer and the seed aside."""
    flat = [_flat(run["options"]) for run in runs]
    lines = []
    for name in dict.fromkeys(name for options in flat for name in options):
        values = list(dict.fromkeys(str(options.get(name)) for options in flat))
        if name not in FREE and len(values) > 1:
            lines.append(f"{name}: {' and '.join(values)}")
    return lines


def _row(mixer: str, results: Sequence[Json]) -> Json:
    seeds = [r["seed"] for r in results]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs of {mixer} must have different seeds, got {seeds}")
    tests = [r["test"] for r in results]
    paper = [c["value"] for c in results[0].get("claims", ()) if c["unit"] == results[0]["unit"]]
    rates = [max(r["generation"].values()) for r in results if r.get("generation")]
    return {
        "mixer": mixer,
        "unit": results[0]["unit"],
        "test": statistics.fmean(tests),
        "low": min(tests),
        "high": max(tests),
        "seeds": seeds,
        "steps": round(statistics.fmean(r["steps"] for r in results)),
        "minutes": statistics.fmean(r["minutes"] for r in results),
        "images_per_second": statistics.fmean(rates) if rates else None,
        "state_bytes": results[0].get("state_bytes_per_image"),
        "paper": paper[0] if paper else None,
    }


def _flat(options: Json) -> Json:
    flat: Json = {}
    for name, value in options.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
