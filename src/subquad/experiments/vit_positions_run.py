"""The rows of vit-positions: eight published ways and one more, then what the head reads."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from subquad.data.image_set import Bytes, ImageSet
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.image_data import load_images
from subquad.experiments.options import TrainOptions, train_config
from subquad.experiments.rows import Row, combined, run_rows
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_options import (
    PatchPositions,
    Pooling,
    PositionPlace,
    ViTOptions,
)
from subquad.experiments.vit_rows import CLASSES, picture_task, pictures, vision_transformer
from subquad.experiments.vit_transfer_options import ViTPositionsOptions
from subquad.experiments.vit_transfer_tables import BY_POSITIONS
from subquad.models.vision_transformer import VisionTransformer
from subquad.tasks.classification import EVALUATION_BATCH, ClassificationTask
from subquad.tasks.few_shot import few_of_each, few_shot_accuracy

POSITIONS, POOLING = "positions", "pooling"
LEARNED = "1-D learned, at the stem"
SHOTS = {"five_shot": 5, "ten_shot": 10}

Way = tuple[str, PatchPositions, PositionPlace | None, float | None]

# Label, positions, where they enter, and the paper's 5-shot share right (Table 8).
WAYS: tuple[Way, ...] = (
    ("none", "none", "stem", 0.61382),
    (LEARNED, "learned", "stem", 0.64206),
    ("1-D learned, every layer", "learned", "layers", 0.63964),
    ("1-D learned, shared by all layers", "learned", "shared", 0.64292),
    ("2-D learned, at the stem", "learned-2d", "stem", 0.64001),
    ("2-D learned, every layer", "learned-2d", "layers", 0.64046),
    ("2-D learned, shared by all layers", "learned-2d", "shared", 0.64022),
    ("relative", "relative", None, 0.64032),
    ("coordinates, at the stem", "coordinates", "stem", None),
)


def run_vit_positions(options: ViTPositionsOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    few = load_images(options.few_shot_data, options.few_shot_folder, half_size=options.half_size)
    rows = run_rows("vit-positions", position_rows(options, images, few), options, folder, say)
    # The class token at the full rate was trained as one of the ways.
    learned = next(row for row in rows if row["label"] == LEARNED)
    label = pooling_label("class", options.train.lr)
    rows.append({**learned, "group": POOLING, "label": label, "paper_five_shot": None})
    notes = [
        f"Trained and tested on {images.source}. Few-shot: {few.source}; 5 and 10 images of each "
        f"class, mapped to -1 and 1 by regularised least squares from the frozen features; the "
        f"mean over {options.few_shot_draws} draws.",
        spread_note(rows),
        ONE_SEED,
    ]
    more = {"data": images.source, "notes": notes, "paper": BY_POSITIONS}
    return combined(rows, folder, {}) | more


def position_rows(options: ViTPositionsOptions, images: ImageSet, few: ImageSet) -> list[Row]:
    """Return the rows: each way, one of them with a second seed, then what the head reads."""
    ways = [
        (label, replace(options, model=_with(options, positions, place)), paper)
        for label, positions, place, paper in WAYS
    ]
    again = replace(ways[1][1], seed=options.seed + 1)
    ways.append((f"{LEARNED}, another seed", again, None))
    low = replace(options.train, lr=options.low_lr)
    pooled: list[tuple[Pooling, TrainOptions]] = [
        ("class", low),
        ("mean", options.train),
        ("mean", low),
    ]
    rows = [(POSITIONS, *way) for way in ways]
    for pooling, train in pooled:
        model = replace(_with(options, "learned", "stem"), pooling=pooling)
        changed = replace(options, model=model, train=train, low_lr=train.lr / 2)  # always lower
        rows.append((POOLING, pooling_label(pooling, train.lr), changed, None))
    return [
        Row(
            group=group,
            label=label,
            build=partial(_task, changed, images),
            train=train_config(changed),
            facts={} if paper is None else {"paper_five_shot": paper},
            measure=partial(_few_shot, options, few),
        )
        for group, label, changed, paper in rows
    ]


def pooling_label(pooling: str, lr: float) -> str:
    """Return the name of a row of the second group."""
    return f"{'class token' if pooling == 'class' else 'mean of all tokens'}, rate {lr:g}"


def spread_note(rows: Sequence[Json]) -> str:
    """Return what two seeds of one way say of differences between ways."""
    found = [row for row in rows if row["group"] == POSITIONS and row["label"].startswith(LEARNED)]
    if any("failed" in row for row in found):
        return "One of the two seeds of the learned 1-D positions went bad."
    apart = {
        name: 100 * abs(found[0][key] - found[1][key])
        for name, key in (("test images", "test_accuracy"), ("5-shot", "five_shot"))
    }
    words = ", ".join(f"{value:.2f} points ({name})" for name, value in apart.items())
    return (
        f"Two seeds of the learned 1-D positions are {words} apart: rows that differ by as little "
        "are ties."
    )


def _with(
    options: ViTPositionsOptions, positions: PatchPositions, place: PositionPlace | None
) -> ViTOptions:
    return replace(options.model, positions=positions, position_place=place)


def _task(options: ViTPositionsOptions, images: ImageSet) -> ClassificationTask:
    model = vision_transformer(options.model, images, "softmax", seed=options.seed)
    return picture_task(options, model, images)


def _few_shot(
    options: ViTPositionsOptions, few: ImageSet, task: ClassificationTask, _: Path
) -> Json:
    """Return the mean shares right from a few of each class."""
    test, wanted = features(task, few.test), torch.from_numpy(few.test_labels.astype(np.int64))
    right: dict[str, list[float]] = {key: [] for key in SHOTS}
    for seed in range(options.few_shot_draws):
        places = few_of_each(few.train_labels, max(SHOTS.values()), seed=seed)
        x, labels = features(task, few.train[places]), few.train_labels[places]
        for key, count in SHOTS.items():
            chosen = few_of_each(labels, count, seed=seed)
            right[key].append(
                few_shot_accuracy(
                    x[chosen],
                    torch.from_numpy(labels[chosen].astype(np.int64)),
                    test,
                    wanted,
                    num_classes=CLASSES,
                )
            )
    return {key: float(np.mean(found)) for key, found in right.items()}


@torch.no_grad()
def features(task: ClassificationTask, images: Bytes) -> torch.Tensor:
    """Return what the head of the task's model sees of images, (N, D) on the CPU."""
    model = task.model
    assert isinstance(model, VisionTransformer)
    device = next(model.parameters()).device
    model.eval()
    parts = [
        model.pool(
            model.forward_features(task.prepared(images[i : i + EVALUATION_BATCH]).to(device))
        )
        for i in range(0, len(images), EVALUATION_BATCH)
    ]
    return torch.cat(parts).float().cpu()
