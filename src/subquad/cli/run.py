"""``subquad run`` and ``subquad run-all``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subquad.cli.console import console, say
from subquad.cli.parsing import UsageError, choose, parse, peek
from subquad.experiments.options import resolve_duration, train_config
from subquad.experiments.registry import EXPERIMENTS, GROUPS
from subquad.experiments.run_folder import default_folder
from subquad.experiments.spec import MIXER_HELP, SCALES, Experiment, Json, MixerName, Scale

DEFAULT_SCALE: Scale = "laptop"
DEFAULT_MIXER: MixerName = "linear"

# What is shown of an estimate: the line's name, the value's, its unit, and how it is written.
ESTIMATE_LINES = (
    ("parameters", "parameters", 1, ",.0f"),
    ("steps", "steps", 1, ",.0f"),
    ("GFLOPs a step", "flops_per_step", 1e9, ",.1f"),
    ("TFLOPs in all", "flops", 1e12, ",.1f"),
    ("minutes", "minutes", 1, ",.1f"),
    ("memory, GB", "memory_gb", 1, ".2f"),
    ("disk, GB", "disk_gb", 1, ".3f"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """This command."""

    out: Path | None = None
    """Folder of the run (default: runs/EXPERIMENT-MIXER-SCALE)."""
    estimate: bool = False
    """Print what the run would cost, and stop."""
    export: Path | None = None
    """Also write the results with their environment to this JSON file, and the figures to a folder
    beside it that has the file's name."""

    def __post_init__(self) -> None:
        if self.export is not None and self.export.suffix != ".json":
            raise ValueError(f"--export must name a .json file, got {self.export}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunAllOptions:
    """Options of run-all."""

    group: str
    """Which experiments."""
    scale: Scale = DEFAULT_SCALE
    """How much to compute in each run."""
    seed: int = 0
    """Seed of all runs."""
    out: Path = Path("runs")
    """Folder that holds the runs' folders."""
    estimate: bool = False
    """Print what the runs would cost, and stop."""


def run(words: list[str]) -> int:
    """Run one experiment; the folder of an unfinished run is taken up where it stopped."""
    if not words or words[0] in ("-h", "--help"):
        say(_run_help())
        return 0
    experiment = EXPERIMENTS[choose(words[0], EXPERIMENTS, what="experiment")]
    options, flags = run_options(experiment, words[1:])
    if flags.estimate:
        show_estimate([(experiment.name, options.mixer, experiment.estimate(options))])
        return 0
    folder = flags.out or default_folder(
        experiment.name, options.mixer, options.scale, options.seed
    )
    results = _start(experiment, options, folder, ["subquad", "run", *words])
    if flags.export is not None:
        from subquad.experiments.runner import export_results

        export_results(folder, flags.export)
    show_results(results, folder)
    return 0


def run_all(words: list[str]) -> int:
    """Run a group; what is finished is skipped, what is unfinished goes on."""
    if not words or words[0] in ("-h", "--help"):
        say(_run_all_help())
        if not words:
            return 0
    options = parse(
        RunAllOptions,
        words,
        prog="subquad run-all",
        description="Run a group of experiments, one after another.",
        positional="group",
    )
    choose(options.group, GROUPS, what="group")
    runs = [
        (EXPERIMENTS[name], dataclasses.replace(preset, seed=options.seed))
        for name, mixer in GROUPS[options.group]
        for preset in [EXPERIMENTS[name].preset(options.scale, mixer)]
    ]
    for _, chosen in runs:
        _check_training(chosen)
    if options.estimate:
        show_estimate([(e.name, o.mixer, e.estimate(o)) for e, o in runs])
        return 0
    folders: dict[str, list[Path]] = {}
    for experiment, chosen in runs:
        name = default_folder(experiment.name, chosen.mixer, chosen.scale, chosen.seed).name
        folder = options.out / name
        results = _start(experiment, chosen, folder, ["subquad", "run-all", *words])
        show_results(results, folder)
        if not {"rows", "tables"} & set(results):  # they stand side by side already
            folders.setdefault(experiment.name, []).append(folder)
    from subquad.experiments.compare import compare_runs

    for name, compared in folders.items():
        where = default_folder(name, "compared", options.scale, options.seed).name
        report = compare_runs(compared, options.out / where, title=f"{name}, {options.scale} scale")
        console().print(f"{name}, side by side: {report}")
    return 0


def run_options(experiment: Experiment[Any], words: list[str]) -> tuple[Any, RunFlags]:
    """Return the experiment's options and this command's; the scale sets the former's defaults."""
    scale = choose(peek(words, "--scale") or DEFAULT_SCALE, SCALES, what="scale")
    mixer = choose(peek(words, "--mixer") or DEFAULT_MIXER, MIXER_HELP, what="mixer")
    preset = experiment.preset(scale, mixer)  # type: ignore[arg-type]  # chosen just above
    call = dataclasses.make_dataclass(
        "Call", [("run", RunFlags), ("experiment", experiment.options)], frozen=True, kw_only=True
    )
    parsed: Any = parse(
        call,
        words,
        prog=f"subquad run {experiment.name}",
        description=f"{experiment.summary[0].upper()}{experiment.summary[1:]}. "
        f"The defaults shown are those of --scale {scale}.",
        default=call(run=RunFlags(), experiment=preset),
    )
    if not hasattr(preset, "train"):  # it measures, and trains nothing
        return parsed.experiment, parsed.run
    try:
        options = resolve_duration(parsed.experiment, preset)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _check_training(options)
    return options, parsed.run


def _check_training(options: Any) -> None:
    try:
        if hasattr(options, "train"):
            train_config(options)
    except ValueError as error:
        raise UsageError(str(error)) from None


def show_estimate(rows: list[tuple[str, str, Json]]) -> None:
    """Print a table of what runs would cost, a column a run."""
    from rich.table import Table

    table = Table(title="Estimate; nothing was started", title_justify="left")
    table.add_column("")
    for name, mixer, _ in rows:
        table.add_column(f"{name}\n{mixer}", justify="right")
    for label, key, scale, form in ESTIMATE_LINES:
        cells = [format(cost[key] / scale, form) if key in cost else "" for _, _, cost in rows]
        table.add_row(label, *cells)
    console().print(table)


def show_results(results: Json, folder: Path) -> None:
    """Print the line that matters, or the table of rows, and where the rest is."""
    from subquad.experiments.report import number

    if "tables" in results:
        _show_tables(results, folder)
        return
    if "rows" in results:
        _show_rows(results, folder)
        return
    name = f"{results['experiment']}, {results['mixer']}"
    right = results.get("test_accuracy")
    share = "" if right is None else f", {right:.2%} right"
    console().print(
        f"{name}: [bold]{number(results['test'])} {results['unit']}{share}[/bold] on test data"
    )
    for claim in results["claims"]:
        if claim["unit"] == results["unit"]:
            console().print(f"  the paper: {claim['value']:g} {claim['unit']} ({claim['source']})")
    console().print(f"  report: {folder / 'report.html'}")


def _show_rows(results: Json, folder: Path) -> None:
    from rich.table import Table

    from subquad.experiments.rows_report import FIRST, rows_lines

    for group in dict.fromkeys(row["group"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["group"] == group]
        head, lines = rows_lines(rows, only=FIRST)  # the report has them all
        table = Table(title=f"{results['experiment']}: {group}", title_justify="left")
        for i, words in enumerate(head):
            table.add_column(words, justify="right" if i else "left")
        for line in lines:
            table.add_row(*line)
        console().print(table)
    console().print(f"  report: {folder / 'report.html'}")


def _show_tables(results: Json, folder: Path) -> None:
    from subquad.bench.tables import Table
    from subquad.cli.bench_output import show

    for table in results["tables"]:
        lines = [tuple(line) for line in table["lines"]]
        note = table.get("note", "")
        show(Table(title=table["title"], header=tuple(table["head"]), rows=lines, note=note))
    console().print(f"  report: {folder / 'report.html'}")


def _start(experiment: Experiment[Any], options: Any, folder: Path, command: list[str]) -> Json:
    from subquad.experiments.runner import run_experiment
    from subquad.tasks.memory import keep_freed_memory

    keep_freed_memory()
    console().print(f"{experiment.name}, {options.mixer}, {options.scale} scale, in {folder}")
    return run_experiment(experiment, options, folder, command=command, say=console().print)


def _run_help() -> str:
    lines = ["usage: subquad run EXPERIMENT [OPTIONS]", "", "Run one experiment of a paper.", ""]
    lines += ["experiments:", *_listed({e.name: e.summary for e in EXPERIMENTS.values()})]
    lines += ["", "scales (--scale):", *_listed(SCALES)]
    lines += ["", "mixers (--mixer):", *_listed(MIXER_HELP)]
    lines += ["", "subquad run EXPERIMENT --help lists all options and their defaults."]
    return "\n".join(lines)


def _run_all_help() -> str:
    groups = {name: ", ".join(" ".join(run) for run in runs) for name, runs in GROUPS.items()}
    lines = ["usage: subquad run-all GROUP [OPTIONS]", "", "groups:", *_listed(groups), ""]
    return "\n".join(lines)


def _listed(texts: Mapping[Any, str]) -> list[str]:
    width = max(map(len, texts))
    return [f"  {name:<{width}}  {text}" for name, text in texts.items()]
