"""vit-resolution: models of ever smaller patches, timed in turn, and trained for equal updates."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from subquad.bench.image_job import training_peak, training_step
from subquad.bench.results import spread
from subquad.bench.tables import seconds, size
from subquad.bench.timing import interleave
from subquad.data.image_set import ImageSet
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import listed
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, estimate_rows, run_rows, write_figure
from subquad.experiments.run_folder import read_json
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_options import ViTResolutionOptions
from subquad.experiments.vit_rows import (
    black_pictures,
    grid_of,
    image_job,
    mixer_settings,
    picture_task,
    pictures,
    suited_mixer,
    vision_transformer,
)
from subquad.files import atomic_write_json
from subquad.plots.vit import resolution_figure
from subquad.tasks.classification import ClassificationTask
from subquad.tasks.run import build_fabric

TIMES = "times.json"
TRAINING, INFERENCE = "training", "inference"
SOFTMAX, LINEAR = "softmax", "linear"
FEW = 64  # images that are timed and not trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Images and the side of their patches."""

    images: ImageSet
    patch_size: int
    patches: int


def run_resolution(options: ViTResolutionOptions, folder: Path, say: Say) -> Json:
    """Time all sizes, train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options, or patches do not fit the images.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    chosen = sizes(options, images)
    times = _times(options, chosen, folder, say)
    rows = run_rows("vit-resolution", resolution_rows(options, images), options, folder, say)
    file = "figures/resolution.png"
    write_figure(folder, file, resolution_figure(times, rows))
    found = combined(rows, folder, {})
    return found | {
        "figures": {file: "Time, memory and accuracy against patches", **found["figures"]},
        "times": times,
        "overtakes": {which: overtaking(times, which) for which in (TRAINING, INFERENCE)},
        "data": images.source,
        "tables": [
            *(_time_table(times, which) for which in (TRAINING, INFERENCE)),
            _memory_table(times),
            _accuracy_table(rows),
        ],
        "notes": [*_words(times), f"Data: {images.source}.", ONE_SEED],
    }


def estimate_resolution(options: ViTResolutionOptions) -> Json:
    """Return what the rows would cost, and the most that timing could take."""
    images = black_pictures(options)
    found = estimate_rows(resolution_rows(options, images))
    found["minutes"] += len(sizes(options, images)) * options.seconds / 60
    return found


def sizes(options: ViTResolutionOptions, images: ImageSet) -> list[Size]:
    """Return what is timed, from few patches to many.

    Raises:
        ValueError: if patches do not fit the images.
    """
    found = [_size(options, images, patch) for patch in options.patch_sizes]
    if options.timed_upsampled:
        found.append(_size(options, upsampled(images), 1))
    return sorted(found, key=lambda each: each.patches)


def upsampled(images: ImageSet) -> ImageSet:
    """Return a few of the images with each pixel become 2 x 2."""
    train, test = (
        np.repeat(np.repeat(part[:FEW], 2, axis=1), 2, axis=2)
        for part in (images.train, images.test)
    )
    return dataclasses.replace(
        images,
        train=train,
        train_labels=images.train_labels[:FEW],
        test=test,
        test_labels=images.test_labels[:FEW],
    )


def resolution_rows(options: ViTResolutionOptions, images: ImageSet) -> list[Row]:
    """Return the rows that are trained: each mixer on each size of patches."""
    rows = []
    for patch in options.patch_sizes:
        chosen = _size(options, images, patch)
        for name in listed(options.mixers):
            facts = {"mixer": name, "patches": chosen.patches, "patch_size": patch}
            rows.append(
                Row(
                    group=f"{chosen.patches} patches",
                    label=name,
                    build=partial(_task, options, chosen, name),
                    train=train_config(options),
                    facts=facts,
                )
            )
    return rows


def measure_size(options: ViTResolutionOptions, chosen: Size) -> list[Json]:
    """Time a step of training and of inference with all mixers in turn; return a row for each."""
    config = train_config(options)
    device = build_fabric(config).device.type
    count = min(options.timed_batch, len(chosen.images.train))
    x = torch.zeros(0)
    runs: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int | None] = {}
    for name in listed(options.mixers):
        task = _task(options, chosen, name, batch_size=count)
        model = task.model.to(device)
        x, labels = (t.to(device) for t in task.batch(0))
        runs[f"{name}|{TRAINING}"] = partial(_train, model, x, labels, config.precision)
        runs[f"{name}|{INFERENCE}"] = partial(_infer, model, x, config.precision)
        settings = mixer_settings(name, _grid(options, chosen))
        job = image_job(model, tuple(x.shape), config, mixer=name, mixer_settings=settings)
        peaks[name] = training_peak(job)
    samples: dict[str, list[float]] = {}
    interleave(
        runs, samples, device=device, repetitions=options.repetitions, seconds=options.seconds
    )
    rows = []
    for name in listed(options.mixers):
        row: Json = {"mixer": name, "patches": chosen.patches, "images": len(x)}
        for which in (TRAINING, INFERENCE):
            found = spread(samples[f"{name}|{which}"])
            row[which] = dataclasses.asdict(found)
        row["seconds_per_image"] = row[TRAINING]["median"] / len(x)
        peak = peaks[name]
        if peak is not None:
            row["peak_bytes"], row["peak_bytes_per_image"] = peak, peak / len(x)
        rows.append(row)
    return rows


def overtaking(times: Sequence[Json], which: str) -> int | None:
    """Return the patches from which on linear is faster than softmax wherever both were timed."""
    by_patches: dict[int, dict[str, float]] = {}
    for row in times:
        by_patches.setdefault(row["patches"], {})[row["mixer"]] = row[which]["median"]
    first = None
    for patches, found in sorted(by_patches.items()):
        if SOFTMAX in found and LINEAR in found:
            first = (first or patches) if found[LINEAR] < found[SOFTMAX] else None
    return first


def _size(options: ViTResolutionOptions, images: ImageSet, patch_size: int) -> Size:
    down, across = grid_of(dataclasses.replace(options.model, patch_size=patch_size), images)
    return Size(images=images, patch_size=patch_size, patches=down * across)


def _grid(options: ViTResolutionOptions, chosen: Size) -> tuple[int, int]:
    patched = dataclasses.replace(options.model, patch_size=chosen.patch_size)
    return grid_of(patched, chosen.images)


def _task(
    options: ViTResolutionOptions, chosen: Size, name: str, *, batch_size: int | None = None
) -> ClassificationTask:
    patched = dataclasses.replace(options.model, patch_size=chosen.patch_size)
    mixer = suited_mixer(name, _grid(options, chosen))
    model = vision_transformer(patched, chosen.images, mixer, seed=options.seed)
    return picture_task(options, model, chosen.images, batch_size=batch_size)


def _times(
    options: ViTResolutionOptions, chosen: Sequence[Size], folder: Path, say: Say
) -> list[Json]:
    """Measure all sizes, or read what an earlier session of this run has measured."""
    path = folder / TIMES
    if path.is_file():
        found: list[Json] = read_json(path)["times"]
        return found
    times = []
    for each in chosen:
        say(f"timing {each.patches:,} patches")
        times += measure_size(options, each)
    atomic_write_json(path, {"times": times})
    return times


def _train(model: nn.Module, x: Tensor, labels: Tensor, precision: str) -> None:
    model.train()
    training_step(model, x, labels, precision)
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def _infer(model: nn.Module, x: Tensor, precision: str) -> None:
    model.eval()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        model(x)


def _time_table(times: Sequence[Json], which: str) -> Json:
    mixers = list(dict.fromkeys(row["mixer"] for row in times))
    lines = []
    for patches in dict.fromkeys(row["patches"] for row in times):
        found = {r["mixer"]: r[which]["median"] for r in times if r["patches"] == patches}
        both = SOFTMAX in found and LINEAR in found
        ratio = f"{found[SOFTMAX] / found[LINEAR]:.2f}" if both else ""
        lines.append([f"{patches:,}", *(seconds(found[name]) for name in mixers), ratio])
    count = times[0]["images"]
    return {
        "title": f"Time of a step of {which}, {count} images",
        "head": ["patches", *mixers, "softmax / linear"],
        "lines": lines,
        "note": "Medians of rounds in which all of them take turns."
        + (" Without the optimiser's step." if which == TRAINING else ""),
    }


def _memory_table(times: Sequence[Json]) -> Json:
    mixers = list(dict.fromkeys(row["mixer"] for row in times))
    lines = []
    for patches in dict.fromkeys(row["patches"] for row in times):
        found = {
            r["mixer"]: r.get("peak_bytes_per_image") for r in times if r["patches"] == patches
        }
        cells = [found[name] for name in mixers]
        lines.append([f"{patches:,}", *("" if peak is None else size(peak) for peak in cells)])
    return {
        "title": "Peak memory of a step of training, an image",
        "head": ["patches", *mixers],
        "lines": lines,
        "note": "Beyond weights and images, gradients included, in a process of its own.",
    }


def _accuracy_table(rows: Sequence[Json]) -> Json:
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    lines = []
    for patches in dict.fromkeys(row["patches"] for row in rows):
        found = {
            row["mixer"]: 100 * row["test_accuracy"]
            for row in rows
            if row["patches"] == patches and "test_accuracy" in row
        }
        both = SOFTMAX in found and LINEAR in found
        lines.append(
            [
                f"{patches:,}",
                *(f"{found[name]:.2f}" if name in found else "" for name in mixers),
                f"{found[LINEAR] - found[SOFTMAX]:+.2f}" if both else "",
            ]
        )
    steps = max((row["steps"] for row in rows if "steps" in row), default=0)
    return {
        "title": f"Test images right, %, after {steps:,} updates",
        "head": ["patches", *mixers, "linear - softmax"],
        "lines": lines,
        "note": "All rows have seen the same images in the same order.",
    }


def _words(times: Sequence[Json]) -> list[str]:
    said = []
    for which in (TRAINING, INFERENCE):
        first = overtaking(times, which)
        where = f"from {first:,} patches on" if first else "at no number of patches timed"
        said.append(f"Linear is faster than softmax {where} ({which}).")
    return [" ".join(said)]
