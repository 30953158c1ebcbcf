"""Run the demonstration: time both models' steps, train both, compare them."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from subquad.environment import environment
from subquad.experiments.compare import write_comparison
from subquad.experiments.demo import DEMO_MIXERS, DemoOptions, pixel_options
from subquad.experiments.image_data import load_images
from subquad.experiments.pixel_run import pixel_task, run_pixels
from subquad.experiments.run_folder import ENVIRONMENT, RESULTS, as_json, open_folder
from subquad.experiments.runner import hardware
from subquad.experiments.spec import Json, Mixer, Say
from subquad.files import atomic_write_json
from subquad.tasks.memory import keep_freed_memory

TRAINING_SHARE = 0.85  # of the minutes; drawing, completing and testing take the rest
TIMED_STEPS, WARMUP_STEPS = 6, 2


def run_demo(options: DemoOptions, folder: Path, *, command: Sequence[str], say: Say) -> list[Json]:
    """Train, draw and compare in ``folder``; return one row of results a mixer.

    Raises:
        OSError: if the folder cannot be written.
        KeyboardInterrupt: on Ctrl-C.
    """
    start = time.perf_counter()
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    stamp = environment(command)
    atomic_write_json(folder / ENVIRONMENT, stamp)
    atomic_write_json(folder / "config.json", {"experiment": "demo", "options": as_json(options)})
    say("timing a few steps of each model")
    each = {mixer: seconds_per_step(options, mixer) for mixer in DEMO_MIXERS}
    left = TRAINING_SHARE * 60 * options.minutes - (time.perf_counter() - start)
    max_steps = max(1, int(left / sum(each.values())))
    rows: list[Json] = []
    for mixer in DEMO_MIXERS:
        chosen = pixel_options(options, mixer, max_steps)
        minutes = max_steps * each[mixer] / 60
        say(f"{mixer}: {max_steps} steps, about {minutes:.1f} minutes, then drawing")
        open_folder(folder / mixer, "demo", chosen)
        measured = run_pixels(chosen, folder / mixer, say)
        row = {
            "experiment": "demo",
            "mixer": mixer,
            "seed": options.seed,
            **measured,
            "hardware": hardware(stamp, measured["device"]),
        }
        rows.append(row)
    _write_results(folder, options, rows, stamp)
    return rows


def seconds_per_step(options: DemoOptions, mixer: Mixer) -> float:
    """Return the seconds that one step of training takes here, with a model that is thrown away."""
    chosen = pixel_options(options, mixer, 1)
    images = load_images(chosen.data, chosen.data_folder, half_size=chosen.half_size)
    task = pixel_task(chosen, images)
    task.model.train()
    times = []
    for step in range(WARMUP_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        torch.autograd.backward(task.loss(*task.batch(step)))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARMUP_STEPS:])  # the median shrugs off a busy moment


def remarks(rows: Sequence[Json]) -> list[str]:
    """Say in words which mixer was faster at what; nobody should have to guess."""
    by_mixer = {row["mixer"]: row for row in rows}
    linear, softmax = by_mixer["linear"], by_mixer["softmax"]
    height, width, channels = linear["image_shape"]
    found = []
    pairs = {
        "Training": (linear["train_images_per_second"], softmax["train_images_per_second"]),
        **{
            f"Drawing, batch {batch}": (linear["generation"][batch], softmax["generation"][batch])
            for batch in linear["generation"]
        },
    }
    for what, (ours, theirs) in pairs.items():
        ratio = max(ours, theirs) / min(ours, theirs)
        if ratio < 1.05:
            found.append(f"{what}: equal to within 5 %.")
        else:
            winner = "linear" if ours > theirs else "softmax"
            found.append(f"{what}: {winner} is {ratio:.2f} times as fast.")
    length = height * width * channels
    if any("softmax is" in line for line in found):
        found.append(
            f"At {length} bytes an image softmax can be the faster one: its cost grows with the "
            "square of the length, but the square of a short length is small."
        )
    bytes_ratio = softmax["state_bytes_per_image"] / linear["state_bytes_per_image"]
    found.append(
        f"State of one image at full length: softmax holds {bytes_ratio:.1f} times the bytes of "
        "linear, and grows with every byte; linear's stays as it is."
    )
    return found


def _write_results(folder: Path, options: DemoOptions, rows: Sequence[Json], stamp: Json) -> None:
    write_comparison(
        folder,
        [folder / row["mixer"] for row in rows],
        rows,
        title="subquad demo: two models learn to draw digits",
        lead="The same recipe, the same images in the same order and as many steps, once with "
        "linear and once with softmax attention. Every figure was measured in this run.",
        environment=stamp,
        config={**as_json(options), "model": rows[0]["model"]},
        notes=remarks(rows),
    )
    atomic_write_json(folder / RESULTS, {"rows": list(rows), "remarks": remarks(rows)})
