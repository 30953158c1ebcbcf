"""The measurements of lambda-speed: networks in turn, comparison by comparison."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from subquad.bench.image_networks import (
    EFFICIENTNET,
    EFFICIENTNETS,
    NetworkJob,
    NetworkStep,
    build_network,
    training_peak,
    why_no_efficientnets,
)
from subquad.bench.machine import Probes
from subquad.bench.passes import Key, check_device, time_passes
from subquad.bench.results import Spread
from subquad.bench.timing import threads
from subquad.experiments.lambda_measure_options import LambdaSpeedOptions
from subquad.experiments.lambda_speed import CURVE, DEPTHS, PLACEMENTS
from subquad.experiments.lambda_speed_tables import (
    INFERENCE,
    PLACES,
    TRAINING,
    speed_tables,
    verdicts,
)
from subquad.experiments.rows import write_figure
from subquad.experiments.spec import Json, Say
from subquad.models.multiply_adds import multiply_adds
from subquad.plots.lambda_measures import accuracy_figure, cost_figure

PAPER_SIDE = 224
PROBE = "gemm"
ResultRows = list[Json]


class Entry(NamedTuple):
    """One network of a comparison: what it is called, what is built, and the side of its images.

    ``paper`` holds what the paper reports for it.
    """

    label: str
    name: str
    kind: str
    image_size: int
    paper: Json


class Comparison(NamedTuple):
    """Networks that are timed in turn."""

    title: str
    entries: tuple[Entry, ...]


def run_lambda_speed(options: LambdaSpeedOptions, folder: Path, say: Say) -> Json:
    """Measure every comparison; return tables, figures and the numbers behind them.

    Raises:
        ValueError: if the device is not there, or only EfficientNets were asked for and there are
            none here.
        OSError: if the folder cannot be written.
    """
    check_device(options.device)
    missing = why_no_efficientnets() if options.efficientnets_named else None
    rows: ResultRows = []
    left_out: list[Json] = []
    rates: list[float] = []
    with threads(options.threads):
        for comparison in comparisons(options):
            kept = comparison.entries
            if missing:
                kept = tuple(e for e in kept if not e.name.startswith(EFFICIENTNET))
            say(f"{comparison.title}: {', '.join(entry.label for entry in kept)}")
            rates.append(measure(options, comparison._replace(entries=kept), rows, left_out))
        if options.has_memory:
            say("peak memory of a training step, one network after another")
            measure_memory(options, rows)
    figures = _draw(rows, folder)
    return {
        "device": options.device,
        "networks": rows,
        "left_out": left_out,
        "gemm_flops": rates,
        "tables": speed_tables(rows, options.batch_size),
        "figures": figures,
        "notes": [
            _setting(options, rates),
            *verdicts(rows),
            *([missing] if missing else []),
            *(f"Left out: {x['label']}, {x['pass']}: {x['reason']}." for x in left_out),
        ],
    }


def estimate_lambda_speed(options: LambdaSpeedOptions) -> Json:
    """Return about the most that it could take: the budgets, first calls, and memory."""
    found = list(comparisons(options))
    count = sum(len(comparison.entries) for comparison in found)
    first_calls = 2 * options.seconds / 7 * len(found)
    memory = 6.0 * count if options.has_memory else 0.0
    return {"minutes": (len(found) * options.seconds + first_calls + memory) / 60}


def comparisons(options: LambdaSpeedOptions) -> Iterator[Comparison]:
    """Yield what is compared: placements of lambdas, each depth, and pairs of equal accuracy."""
    side = options.image_size
    if options.placements_named:
        entries = [
            Entry(f"resnet50-{word}", f"resnet50-{word}", _kind(word), side, _placed(word))
            for word in options.placements_named
        ]
        yield Comparison(PLACES, tuple(entries))
    for depth in options.depths_named:
        yield Comparison(f"depth {depth}", tuple(_of_depth(depth, side)))
    pairs = [entry for n in options.efficientnets_named for entry in _pair(n, side / PAPER_SIDE)]
    if pairs:
        yield Comparison("equal accuracy", tuple(pairs))


def measure(
    options: LambdaSpeedOptions, comparison: Comparison, rows: ResultRows, left_out: list[Json]
) -> float:
    """Time both passes of all networks in turn, add a row for each, and return the FLOP/s of GEMMs.

    A network of which a pass fails has a row without it.
    """
    runs: dict[Key, Callable[[], object]] = {}
    for entry in comparison.entries:
        step = NetworkStep(_job(options, entry))
        runs[entry.label, TRAINING] = step.train
        runs[entry.label, INFERENCE] = step.infer
    probes = Probes(options.device, getattr(torch, options.dtype))
    runs[PROBE, ""] = probes.runs()[PROBE]
    found, reasons = time_passes(
        runs, device=options.device, repetitions=options.repetitions, seconds=options.seconds
    )
    for (label, which), reason in reasons.items():
        left_out.append({"label": label, "pass": which, "reason": reason})
    for entry in comparison.entries:
        row = _facts(options, entry) | {"comparison": comparison.title}
        for which in (TRAINING, INFERENCE):
            if (entry.label, which) in found:
                row[which] = _of_thousand(found[entry.label, which], options.batch_size)
        rows.append(row)
    return probes.flops / found[PROBE, ""].median


def measure_memory(options: LambdaSpeedOptions, rows: ResultRows) -> None:
    """Add to each row the peak memory of a step of training, where it could be made."""
    for row in rows:
        if TRAINING in row:
            entry = Entry(row["label"], row["name"], row["kind"], row["image_size"], {})
            row["peak_bytes"] = training_peak(_job(options, entry))


def _placed(word: str) -> Json:
    if word not in PLACEMENTS:
        return {}
    rate, accuracy = PLACEMENTS[word]
    return {"images_per_second": rate, "accuracy": accuracy}


def _kind(word: str) -> str:
    return "LambdaResNet" if "L" in word else "ResNet"


def _of_depth(depth: int, side: int) -> Iterator[Entry]:
    _, *known = DEPTHS.get(depth, (None, None, None, None))
    names = (f"resnet-rs-{depth}-CCCC", f"resnet-rs-{depth}-SSSS", str(depth))
    kinds = ("ResNet", "ResNet + SE", "LambdaResNet")
    for name, kind, paper in zip(names, kinds, known, strict=True):
        found = {} if paper is None else {"images_per_second": paper[0], "accuracy": paper[1]}
        yield Entry(f"{kind} {depth}", name, kind, side, found)


def _pair(number: int, scale: float) -> Iterator[Entry]:
    pair, size = CURVE[number], EFFICIENTNETS[number].image_size
    small, large = (max(16, round(side * scale)) for side in (pair.image_size, size))
    for kind, name, label, side, point in (
        ("EfficientNet", f"{EFFICIENTNET}{number}", f"EfficientNet-B{number}", large,
         pair.efficientnet),
        ("LambdaResNet", str(pair.depth), f"LambdaResNet-{pair.depth}@{small}", small,
         pair.lambdas),
    ):  # fmt: skip
        paper = {
            "training_seconds": point.seconds, "accuracy": point.accuracy, "pair": number,
            "is_probable": pair.is_probable,
        }  # fmt: skip
        yield Entry(label, name, kind, side, paper)


def _job(options: LambdaSpeedOptions, entry: Entry) -> NetworkJob:
    return NetworkJob(
        name=entry.name,
        image_size=entry.image_size,
        batch_size=options.batch_size,
        width=options.width,
        device=options.device,
        dtype=options.dtype,
        channels_last=options.channels_last,
        seed=options.seed,
        threads=options.threads,
    )


def _facts(options: LambdaSpeedOptions, entry: Entry) -> Json:
    with torch.device("meta"):
        model = build_network(entry.name, width=options.width)
    return {
        "label": entry.label, "name": entry.name, "kind": entry.kind,
        "image_size": entry.image_size, "paper": entry.paper,
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, 3, entry.image_size, entry.image_size),
    }  # fmt: skip


def _of_thousand(found: Spread, batch_size: int) -> Json:
    """Return seconds for 1,000 images."""
    share = 1000 / batch_size
    return {
        "median": share * found.median, "q25": share * found.q25, "q75": share * found.q75,
        "count": found.count,
    }  # fmt: skip


def _setting(options: LambdaSpeedOptions, rates: Sequence[float]) -> str:
    layout = "channels last" if options.channels_last else "channels first"
    speed = f"{min(rates) / 1e9:,.0f} to {max(rates) / 1e9:,.0f} GFLOP/s"
    return (
        f"Batches of {options.batch_size}, {options.dtype}, {layout}, width {options.width}; "
        f"matrix products, timed in the same rounds, ran at {speed} (medians of the comparisons)."
    )


def _draw(rows: ResultRows, folder: Path) -> dict[str, str]:
    figures = {"figures/cost.png": "Seconds for 1,000 images against multiply-adds"}
    write_figure(folder, "figures/cost.png", cost_figure(rows))
    if any("training_seconds" in row["paper"] for row in rows):
        file = "figures/accuracy.png"
        figures[file] = "The paper's accuracies against its seconds, and against ours"
        write_figure(folder, file, accuracy_figure(rows))
    return figures
