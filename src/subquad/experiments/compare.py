"""One report on several runs of the same experiment: mixers side by side, curves in one figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subquad.experiments.report import write_report
from subquad.experiments.run_folder import ENVIRONMENT, OPTIONS, RESULTS, read_json
from subquad.experiments.spec import Json
from subquad.files import atomic_write_bytes
from subquad.plots import learning_curves, png_bytes, read_curve

CURVES = "Learning curves"


def compare_runs(folders: Sequence[Path], folder: Path, *, title: str) -> Path:
    """Write report.html and curves.png on finished runs to ``folder`` and return the report's path.

    Raises:
        FileNotFoundError: if a run is not finished.
        OSError: if the folder cannot be written.
    """
    rows = [read_json(run / RESULTS) for run in folders]
    config = merged([read_json(run / OPTIONS)["options"] for run in folders])
    folder.mkdir(parents=True, exist_ok=True)
    return write_comparison(
        folder,
        folders,
        rows,
        title=title,
        lead="The same recipe with each mixer; every figure was measured in these runs.",
        environment=read_json(folders[0] / ENVIRONMENT),
        config=config,
    )


def merged(options: Sequence[Json]) -> Json:
    """Return the options of several runs as one; where they differ, all values side by side."""
    one: Json = {}
    for name, value in options[0].items():
        values: list[Any] = [other.get(name) for other in options]
        if isinstance(value, dict):
            one[name] = merged(values)
        else:
            one[name] = (
                value if values.count(value) == len(values) else " / ".join(map(str, values))
            )
    return one


def write_comparison(
    folder: Path,
    runs: Sequence[Path],
    rows: Sequence[Json],
    *,
    title: str,
    lead: str,
    environment: Json,
    config: Json,
    notes: Sequence[str] = (),
) -> Path:
    """Write report.html and curves.png on ``rows``, the results of the folders ``runs``."""
    curves = [
        read_curve(run / "metrics.csv", row["mixer"]) for run, row in zip(runs, rows, strict=True)
    ]
    unit = rows[0]["unit"]
    figure = learning_curves(curves, unit=unit, log_scale=unit != "bits/dim")
    atomic_write_bytes(folder / "curves.png", png_bytes(figure))
    figures = [(folder / "curves.png", CURVES)]
    for name in ("figures/samples.png", "figures/completions.png"):
        for run, row in zip(runs, rows, strict=True):
            if name in row["figures"]:
                figures.append((run / name, row["figures"][name]))
    report = folder / "report.html"
    write_report(
        report,
        title=title,
        lead=lead,
        rows=rows,
        figures=figures,
        environment=environment,
        config=config,
        notes=notes,
    )
    return report
