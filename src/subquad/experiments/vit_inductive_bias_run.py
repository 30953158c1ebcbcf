"""The rows of vit-inductive-bias: networks, numbers of images, pixels in order and scrambled."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from subquad.data.image_set import Bytes, ImageSet
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import listed
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, estimate_rows, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_options import NETWORKS, InductiveBiasOptions
from subquad.experiments.vit_rows import (
    CLASSES,
    black_pictures,
    picture_task,
    pictures,
    vision_transformer,
)
from subquad.experiments.vit_tables import BY_PRETRAINING
from subquad.models.image_baselines import BasicResNet, MLPMixer, PixelMLP, RowLSTM
from subquad.plots.vit import data_size_figure
from subquad.tasks.classification import ClassificationTask

ORDER, SCRAMBLED = "pixels in order", "pixels scrambled"
SUBSET_SEED, SCRAMBLE_SEED = 0, 1  # the same images and the same permutation with any --seed


def run_inductive_bias(options: InductiveBiasOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options, or there are not as many images.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    rows = run_rows("vit-inductive-bias", bias_rows(options, images), options, folder, say)
    file = "figures/data-size.png"
    write_figure(folder, file, data_size_figure(rows, NETWORKS))
    notes = [
        f"Data: {images.source}. {accuracy_words(rows)}",
        "Equal updates in all rows, so a row on more images sees each of them less often: this "
        "shows what more data buys at the same cost, not where a network ends.",
        ONE_SEED,
    ]
    found = combined(rows, folder, {file: "Share right against training images"})
    return found | {
        "data": images.source,
        "accuracy": accuracy_table(rows),
        "notes": notes,
        "paper": _paper(rows),
    }


def estimate_inductive_bias(options: InductiveBiasOptions) -> Json:
    """Return what all rows would cost: each network is timed once, its rows cost alike."""
    images = black_pictures(options)
    once = [
        row
        for row in bias_rows(dataclasses.replace(options, train_images=(1,)), images)
        if not row.facts["scrambled"]
    ]
    found = estimate_rows(once)
    times = 2 * len(options.train_images)
    for name in ("steps", "flops", "minutes", "rows", "disk_gb"):
        found[name] = times * found[name]
    return found


def bias_rows(options: InductiveBiasOptions, images: ImageSet) -> list[Row]:
    """Return the rows: pixels in order, then scrambled; each network on ever more images.

    Raises:
        ValueError: if more images are asked for than there are.
    """
    most = max(options.train_images)
    if most > len(images.train):
        raise ValueError(f"train_images must be at most {len(images.train):,}, got {most:,}")
    return [
        Row(
            group=SCRAMBLED if mixed else ORDER,
            label=f"{NETWORKS[name]}, {count:,} images",
            build=partial(_task, options, name, images, count, mixed),
            train=train_config(options),
            facts={"network": name, "train_images": count, "scrambled": mixed},
        )
        for mixed in (False, True)
        for name in listed(options.networks)
        for count in options.train_images
    ]


def subset(images: ImageSet, count: int) -> ImageSet:
    """Return the set with ``count`` of its training images: always the same, smaller in larger."""
    chosen = np.random.default_rng(SUBSET_SEED).permutation(len(images.train))[:count]
    return dataclasses.replace(
        images, train=images.train[chosen], train_labels=images.train_labels[chosen]
    )


def scrambled(images: Bytes) -> Bytes:
    """Return images (N, H, W, C) with their pixels in another order, one order for all."""
    count, height, width, channels = images.shape
    order = np.random.default_rng(SCRAMBLE_SEED).permutation(height * width)
    return images.reshape(count, -1, channels)[:, order].reshape(images.shape)


def network(options: InductiveBiasOptions, name: str, images: ImageSet) -> nn.Module:
    """Return a new network, whose weights the seed fixes."""
    height, width, channels = images.train.shape[1:]
    sizes = options.model
    common = {"in_channels": channels, "num_classes": CLASSES}
    of_images = {**common, "image_size": (height, width)}
    builders: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: vision_transformer(sizes, images, "softmax", seed=options.seed),
        "hybrid": lambda: vision_transformer(
            dataclasses.replace(sizes, stem="conv"), images, "softmax", seed=options.seed
        ),
        "resnet": lambda: BasicResNet(**common, width=16, blocks=2),
        "mlp": lambda: PixelMLP(**of_images, width=256, num_layers=2),
        "mixer": lambda: MLPMixer(
            **of_images, patch_size=sizes.patch_size, d_model=sizes.d_model,
            num_layers=sizes.num_layers,
        ),
        "lstm": lambda: RowLSTM(**of_images, hidden_size=128, num_layers=2),
    }  # fmt: skip
    torch.manual_seed(options.seed)
    return builders[name]()


def accuracy_table(rows: list[Json]) -> Json:
    """Return {group: {network: {images: share right}}} of the rows that ended."""
    table: Json = {}
    for row in rows:
        if "test_accuracy" in row:
            line = table.setdefault(row["group"], {}).setdefault(row["network"], {})
            line[str(row["train_images"])] = row["test_accuracy"]
    return table


def accuracy_words(rows: list[Json]) -> str:
    """Say how far apart the plain layers' rows are, which no order of pixels can help."""
    pairs: dict[int, dict[bool, float]] = {}
    for row in rows:
        if row["network"] == "mlp" and "test_accuracy" in row:
            pairs.setdefault(row["train_images"], {})[row["scrambled"]] = row["test_accuracy"]
    gaps = [abs(pair[True] - pair[False]) for pair in pairs.values() if len(pair) == 2]
    if not gaps:
        return "Plain layers have no rows to tell the noise by."
    return (
        "To plain layers over all pixels a permutation is nothing but other first weights: their "
        f"rows in order and scrambled differ by up to {100 * max(gaps):.2f} points, which is how "
        "far apart two rows may be by chance."
    )


def _task(
    options: InductiveBiasOptions, name: str, images: ImageSet, count: int, mixed: bool
) -> ClassificationTask:
    chosen = subset(images, count)
    if mixed:
        chosen = dataclasses.replace(
            chosen, train=scrambled(chosen.train), test=scrambled(chosen.test)
        )
    return picture_task(options, network(options, name, chosen), chosen)


def _paper(rows: list[Json]) -> Json:
    """Return the paper's table, and before it ours: a line a network, a column a number."""
    counts = list(dict.fromkeys(row["train_images"] for row in rows))
    ours = [
        {
            "title": f"Ours: test images right, %, {group}",
            "head": ["trained on", *(f"{count:,}" for count in counts)],
            "lines": [
                [
                    NETWORKS[name],
                    *(f"{100 * line[str(n)]:.2f}" if str(n) in line else "" for n in counts),
                ]
                for name, line in lines.items()
            ],
        }
        for group, lines in accuracy_table(rows).items()
    ]
    return BY_PRETRAINING | {"tables": [*ours, *BY_PRETRAINING["tables"]]}
