"""The measurements of lambda-memory: layers in turn, side by side, and the peak of each alone."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from subquad.bench.image_layers import (
    ALL,
    BOTH,
    FORWARD,
    LAYERS,
    STACKS,
    LayerSizes,
    embedding_bytes,
    expected_bytes,
    form_taken,
    layer_pass,
    layer_peaks,
)
from subquad.bench.passes import Key, check_device, time_passes
from subquad.bench.timing import threads
from subquad.experiments.lambda_measure_options import LambdaMemoryOptions
from subquad.experiments.lambda_memory_tables import (
    growth,
    memory_by_the_image,
    memory_tables,
    memory_verdicts,
)
from subquad.experiments.rows import write_figure
from subquad.experiments.spec import Json, Say
from subquad.plots.lambda_measures import growth_figure

PASSES = (FORWARD, BOTH)


def run_lambda_memory(options: LambdaMemoryOptions, folder: Path, say: Say) -> Json:
    """Measure every layer at every side; return tables, the figure and the numbers behind them.

    Raises:
        ValueError: if the device is not there.
        OSError: if the folder cannot be written.
    """
    check_device(options.device)
    rows: list[Json] = []
    left_out: list[Json] = []
    with threads(options.threads):
        for side in options.sides_named:
            kept = within_limit(options, side, left_out)
            say(f"{side} x {side}: time of {len(kept)} layers in turn")
            measure_times(options, kept, side, rows, left_out)
        if options.has_memory:
            for name in ALL:
                say(f"memory of {name}, in a process of its own")
                measure_memory(options, name, rows, left_out)
    by_image = {
        name: found
        for name in ALL
        if (found := memory_by_the_image(rows, name, options.base_side, options.batch_size))
    }
    growths = growth(rows, options.base_side)
    file = "figures/growth.png"
    write_figure(folder, file, growth_figure(rows, left_out, limit=1e9 * options.limit))
    return {
        "device": options.device,
        "layers": rows,
        "left_out": left_out,
        "memory_by_the_image": by_image,
        "growth": growths,
        "tables": memory_tables(rows, by_image, growths, options.base_side),
        "figures": {file: "Growth with the image, forward and backward; hollow: expected"},
        "notes": [
            _setting(options),
            *memory_verdicts(rows, by_image, growths, options.base_side, options.batch_size),
            *_left_out(left_out),
        ],
    }


def estimate_lambda_memory(options: LambdaMemoryOptions) -> Json:
    """Return about the most that it could take: the budgets, first calls, and memory."""
    sides = len(options.sides_named)
    memory = 10.0 * len(ALL) if options.has_memory else 0.0
    return {
        "minutes": (1.5 * sides * options.seconds + memory) / 60,
        "memory_gb": options.limit,
    }


def sizes_of(options: LambdaMemoryOptions) -> LayerSizes:
    """Return what all layers share."""
    return LayerSizes(
        channels=options.channels,
        attention_heads=options.attention_heads,
        heads=options.heads,
        head_dim=options.head_dim,
        device=options.device,
        dtype=options.dtype,
        seed=options.seed,
        threads=options.threads,
    )


def within_limit(options: LambdaMemoryOptions, side: int, left_out: list[Json]) -> list[str]:
    """Return the layers to be measured at a side; those that need too much join ``left_out``."""
    kept = []
    for name in (*LAYERS, *STACKS) if side == options.base_side else LAYERS:
        expected = expected_bytes(name, sizes_of(options), side, options.batch_size)
        if expected <= 1e9 * options.limit:
            kept.append(name)
            continue
        reason = f"expected to need {expected / 1e9:.1f} GB, more than {options.limit:g}"
        left_out.append({"layer": name, "side": side, "expected_bytes": expected, "reason": reason})
    return kept


def measure_times(
    options: LambdaMemoryOptions,
    names: list[str],
    side: int,
    rows: list[Json],
    left_out: list[Json],
) -> None:
    """Time both passes of the layers in turn, and add a row for each."""
    sizes, batch = sizes_of(options), options.batch_size
    runs: dict[Key, Callable[[], object]] = {
        (name, which): layer_pass(name, sizes, side, batch, which)
        for name in names
        for which in PASSES
    }
    found, reasons = time_passes(
        runs, device=options.device, repetitions=options.repetitions, seconds=options.seconds
    )
    for (layer, which), reason in reasons.items():
        left_out.append(
            {"layer": layer, "side": side, "pass": which, "reason": f"cannot run: {reason}"}
        )
    for (layer, which), took in found.items():
        rows.append(
            {"layer": layer, "side": side, "batch_size": batch, "pass": which,
             **asdict(took), "images_per_second": batch / took.median,
             "form": form_taken(layer, sizes, side, batch),
             "embedding_bytes": embedding_bytes(layer, sizes, side)}
        )  # fmt: skip


def measure_memory(
    options: LambdaMemoryOptions, name: str, rows: list[Json], left_out: list[Json]
) -> None:
    """Add peak memory to a layer's rows, and at the base side that of half as many images."""
    own = [row for row in rows if row["layer"] == name]
    batch, half = options.batch_size, options.batch_size // 2
    sides = list(dict.fromkeys(row["side"] for row in own))
    cells = [(side, batch) for side in sides]
    if options.base_side in sides:
        cells.insert(0, (options.base_side, half))
    if not cells:
        return
    peaks = {
        (x["side"], x["batch_size"], x["pass"]): int(x["peak_bytes"])
        for x in layer_peaks(name, sizes_of(options), cells, PASSES)
    }
    for row in own:
        peak = peaks.get((row["side"], batch, row["pass"]))
        if peak is None:
            where = {"layer": name, "side": row["side"], "pass": row["pass"]}
            left_out.append({**where, "reason": "its memory could not be measured"})
            continue
        row["peak_bytes"] = peak
        if row["side"] == options.base_side:
            row["peak_bytes_of_half"] = peaks.get((row["side"], half, row["pass"]))


def _setting(options: LambdaMemoryOptions) -> str:
    return (
        f"Layers of width {options.channels}, {options.attention_heads} heads of attention, "
        f"lambda layers of h = {options.heads} and k = {options.head_dim}, batches of "
        f"{options.batch_size}, {options.dtype}. Memory is the peak beyond inputs and weights."
    )


def _left_out(left_out: list[Json]) -> list[str]:
    return [
        f"Left out: {x['layer']} at {x['side']} x {x['side']}"
        f"{', ' + x['pass'] if 'pass' in x else ''}: {x['reason']}."
        for x in left_out
    ]
