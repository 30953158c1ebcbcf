"""Run the demonstration: time both models' steps, train both, compare them."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subquad.environment import environment
from subquad.experiments.compare import write_comparison
from subquad.experiments.demo import DEMO_MIXERS, DemoOptions, pixel_options
from subquad.experiments.image_data import load_images
from subquad.experiments.options import train_config
from subquad.experiments.pixel_run import pixel_task, run_pixels
from subquad.experiments.run_folder import ENVIRONMENT, RESULTS, as_json, open_folder
from subquad.experiments.runner import hardware
from subquad.experiments.spec import Json, MixerName, Say
from subquad.files import atomic_write_json
from subquad.tasks.estimate import seconds_per_step

TRAINING_SHARE = 0.85  # of the minutes; drawing, completing and testing take the rest


def run_demo(options: DemoOptions, folder: Path, *, command: Sequence[str], say: Say) -> list[Json]:
    """Train, draw and compare in ``folder``; return one row of results a mixer.

    Raises:
        OSError: if the folder cannot be written.
        KeyboardInterrupt: on Ctrl-C.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    stamp = environment(command)
    atomic_write_json(folder / ENVIRONMENT, stamp)
    atomic_write_json(folder / "config.json", {"experiment": "demo", "options": as_json(options)})
    say("timing a few steps of each model")
    costs = {mixer: training_cost(options, mixer) for mixer in DEMO_MIXERS}
    left = TRAINING_SHARE * 60 * options.minutes - (time.perf_counter() - start)
    max_steps = steps_within(left, list(costs.values()))
    rows: list[Json] = []
    for mixer in DEMO_MIXERS:
        chosen = pixel_options(options, mixer, max_steps)
        minutes = costs[mixer].of(max_steps) / 60
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


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Seconds of one step and of one evaluation, which comes every so many steps."""

    step: float
    evaluation: float
    eval_every: int

    def of(self, steps: int) -> float:
        """Return the seconds of so many steps, with the evaluations at their start and end."""
        return steps * self.step + (1 + math.ceil(steps / self.eval_every)) * self.evaluation


def training_cost(options: DemoOptions, mixer: MixerName) -> TrainingCost:
    """Return what training takes here, timed with a model that is thrown away."""
    chosen = pixel_options(options, mixer, 1)
    images = load_images(chosen.data, chosen.data_folder, half_size=chosen.half_size)
    task = pixel_task(chosen, images)
    step = seconds_per_step(task, train_config(chosen))
    start = time.perf_counter()
    task.evaluate(full=False)
    evaluation = time.perf_counter() - start
    return TrainingCost(step=step, evaluation=evaluation, eval_every=chosen.train.eval_every)


def steps_within(seconds: float, costs: Sequence[TrainingCost]) -> int:
    """Return how many steps of every model fit together into ``seconds``, at least 1."""
    a_step = sum(cost.step + cost.evaluation / cost.eval_every for cost in costs)
    ends = 2 * sum(cost.evaluation for cost in costs)
    return max(1, int((seconds - ends) / a_step))


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
