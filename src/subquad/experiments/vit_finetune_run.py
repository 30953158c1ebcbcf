"""The rows of vit-finetune: two kinds of pre-training, and what is learned behind each of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from subquad.data.image_set import Bytes, ImageSet
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.image_data import load_images
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, as_file_name, combined, run_rows
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_rows import CLASSES, pictures, vision_transformer
from subquad.experiments.vit_transfer_options import ViTFinetuneOptions
from subquad.experiments.vit_transfer_tables import BY_MASKED_PATCHES
from subquad.models.saving import load_model, save_model
from subquad.models.vision_transformer import VisionTransformer
from subquad.tasks.classification import Augmentation, ClassificationTask
from subquad.tasks.config import TrainConfig
from subquad.tasks.few_shot import few_of_each
from subquad.tasks.masked_patches import (
    MaskedPatchModel,
    MaskedPatchTask,
    PatchTarget,
)
from subquad.tasks.patch_colours import unseen_colours

PRETRAINING, LABELS, MASKED = "pre-training", "labels", "masked patches"
SCRATCH = "from scratch"
MEAN_COLOUR, SMALL_PATCH, PIXELS = "mean colour", "4 x 4 colours", "all pixels"
TARGETS: dict[str, PatchTarget] = {
    MEAN_COLOUR: "mean-colour", SMALL_PATCH: "small-patch", PIXELS: "pixels"
}  # fmt: skip
CHUNK = 1000  # images enlarged at once


def run_vit_finetune(options: ViTFinetuneOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options, or the data sets do not fit.
        FileNotFoundError: if data is missing, or the weights of a finished pre-training.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    others = load_images(
        options.finetune_data, options.finetune_folder, half_size=options.half_size
    )
    if images.train.shape[1:] != others.train.shape[1:]:
        raise ValueError(
            f"finetune_data must have images of the shape {images.train.shape[1:]}, "
            f"as data has, got {others.train.shape[1:]}"
        )
    made = finetune_rows(options, images, others, folder)
    rows = run_rows("vit-finetune", made, options, folder, say)
    unseen = unseen_colours(images, options.masked_patch_size)
    side = images.train.shape[1]
    notes = [
        f"Pre-trained on {images.source}. Fine-tuned larger on {others.source}, their sides "
        f"enlarged from {side} to {side * options.enlarge} pixels.",
        "Masked patches: the share right is that of the colours of hidden patches. Guessing the "
        f"mean colour by how often each occurs gets {unseen['accuracy']:.1%}, at "
        f"{unseen['loss']:.3f} nats.",
        *gain_notes(rows),
        ONE_SEED,
    ]
    sources = f"{images.source}; {others.source}"
    more = {"data": sources, "notes": notes, "unseen": unseen, "paper": BY_MASKED_PATCHES}
    return combined(rows, folder, {}) | more


def finetune_rows(
    options: ViTFinetuneOptions, images: ImageSet, others: ImageSet, folder: Path | None
) -> list[Row]:
    """Return the rows; those that begin pre-trained find the weights in ``folder``.

    Without a folder they begin with new weights, which costs the same.
    """
    patch_size = options.masked_patch_size
    masked = replace(options, model=replace(options.model, patch_size=patch_size))
    return [
        *_pretraining(options, masked, images),
        *_larger(options, others, folder),
        *_few_labels(masked, images, folder, options.small_share, (MEAN_COLOUR,)),
        *_few_labels(masked, images, folder, options.large_share, tuple(TARGETS)),
    ]


def _pretraining(
    options: ViTFinetuneOptions, masked: ViTFinetuneOptions, images: ImageSet
) -> list[Row]:
    train = train_config(options)
    supervised = Row(
        group=PRETRAINING,
        label=LABELS,
        build=partial(_classification, options, _new_model, images),
        train=train,
        measure=partial(_save, LABELS),
    )
    steps = replace(train, max_steps=options.masked_steps, minutes=None, lr=options.masked_lr)
    return [supervised] + [
        Row(
            group=MASKED,
            label=label,
            build=partial(_masked_task, masked, images, target),
            train=steps,
            measure=partial(_save, label),
        )
        for label, target in TARGETS.items()
    ]


def _larger(options: ViTFinetuneOptions, others: ImageSet, folder: Path | None) -> list[Row]:
    """Return the rows of the second data set: larger, and once as it is."""
    side = others.train.shape[1]
    large = enlarged(others, options.enlarge)
    steps = options.finetune_steps
    pretrained = partial(_pretrained, folder, LABELS)
    tuned, second = (
        _finetuning(options, lr, steps) for lr in (options.finetune_lr, options.second_lr)
    )
    scratch = replace(train_config(options), max_steps=steps, minutes=None)
    rows: list[tuple[str, ImageSet, Any, TrainConfig]] = [
        (f"fine-tuned, rate {tuned.lr:g}", large, pretrained, tuned),
        (f"fine-tuned, rate {second.lr:g}", large, pretrained, second),
        (f"fine-tuned at {side} x {side}, rate {tuned.lr:g}", others, pretrained, tuned),
        (SCRATCH, large, _new_model, scratch),
        (f"{SCRATCH}, as fine-tuned, rate {tuned.lr:g}", large, _new_model, tuned),
    ]
    return [
        Row(
            group=f"{side * options.enlarge} x {side * options.enlarge}",
            label=label,
            build=partial(_classification, options, start, found),
            train=train,
        )
        for label, found, start, train in rows
    ]


def _few_labels(
    options: ViTFinetuneOptions,
    images: ImageSet,
    folder: Path | None,
    share: float,
    targets: Sequence[str],
) -> list[Row]:
    """Return the rows of so large a share of the labels: from scratch, and behind each target.

    All by one recipe, so that only the weights they begin with differ; and the first target by the
    published procedure besides.
    """
    few, steps = some_labels(images, share), options.label_steps
    same = replace(train_config(options), max_steps=steps, minutes=None)
    rows: list[tuple[str, Any, TrainConfig]] = [(SCRATCH, _new_model, same)]
    rows += [(label, partial(_pretrained, folder, label), same) for label in targets]
    tuned = _finetuning(options, options.finetune_lr, steps)
    label = f"{targets[0]}, fine-tuned by SGD"
    rows.append((label, partial(_pretrained, folder, targets[0]), tuned))
    return [
        Row(
            group=f"{100 * share:g} % of the labels",
            label=label,
            build=partial(_classification, options, start, few),
            train=train,
            facts={"labels": len(few.train)},
        )
        for label, start, train in rows
    ]


def _finetuning(options: ViTFinetuneOptions, lr: float, steps: int) -> TrainConfig:
    """Return the published procedure: SGD, cosine to 0, clipped, no weight decay."""
    return replace(
        train_config(options),
        minutes=None,
        max_steps=steps,
        optimizer="sgd",
        lr=lr,
        momentum=0.9,
        schedule="cosine",
        min_lr_ratio=0.0,
        warmup_steps=options.finetune_warmup,
        weight_decay=0.0,
        clip_norm=1.0,
    )


def _new_model(options: ViTFinetuneOptions, images: ImageSet) -> VisionTransformer:
    return vision_transformer(options.model, images, "softmax", seed=options.seed)


def _pretrained(
    folder: Path | None, start: str, options: ViTFinetuneOptions, images: ImageSet
) -> VisionTransformer:
    """Return a pre-trained model for images of this size, with a new head of zeros."""
    if folder is None:
        return _new_model(options, images)
    model = load_model(folder / "pretrained" / as_file_name(start))
    assert isinstance(model, VisionTransformer)
    model.reset_head(CLASSES)
    model.resample(images.train.shape[1:3])
    return model


def _save(start: str, task: Any, folder: Path) -> Json:
    """Keep a trained model for the rows behind it."""
    model = task.model
    if isinstance(model, MaskedPatchModel):
        model = model.released()
    save_model(model, folder / "pretrained" / as_file_name(start))
    return {}


def _classification(
    options: ViTFinetuneOptions, start: Any, images: ImageSet
) -> ClassificationTask:
    return ClassificationTask(
        start(options, images),
        images,
        batch_size=options.train.batch_size,
        seed=options.seed,
        augmentation=Augmentation(shift=options.shift, mirror=options.mirror),
        label_smoothing=options.label_smoothing,
        normalization="half",  # the same for all data sets, as published
    )


def _masked_task(
    options: ViTFinetuneOptions, images: ImageSet, target: PatchTarget
) -> MaskedPatchTask:
    return MaskedPatchTask(
        MaskedPatchModel(_new_model(options, images), target=target),
        images,
        batch_size=options.train.batch_size,
        seed=options.seed,
        augmentation=Augmentation(shift=options.shift, mirror=options.mirror),
        normalization="half",
    )


def gain_notes(rows: Sequence[Json]) -> list[str]:
    """Return what pre-training adds to training from scratch, a sentence for each group."""
    found = []
    for group in dict.fromkeys(row["group"] for row in rows):
        right = {
            row["label"]: 100 * row["test_accuracy"]
            for row in rows
            if row["group"] == group and "test_accuracy" in row
        }
        if SCRATCH not in right:
            continue
        gains = [
            f"{label} {value - right[SCRATCH]:+.1f} points"
            for label, value in right.items()
            if not label.startswith(SCRATCH)
        ]
        found.append(f"{group}, against training from scratch: {', '.join(gains)}.")
    return found


def some_labels(images: ImageSet, share: float) -> ImageSet:
    """Return the training images whose labels are known: as many of each class, at least one."""
    classes = len(np.unique(images.train_labels))
    least = int(np.bincount(images.train_labels)[np.unique(images.train_labels)].min())
    count = min(least, max(1, round(share * len(images.train) / classes)))
    places = few_of_each(images.train_labels, count, seed=0)
    return replace(
        images,
        train=images.train[places],
        train_labels=images.train_labels[places],
        source=f"{images.source}; {len(places):,} of the labels",
    )


def enlarged(images: ImageSet, times: int) -> ImageSet:
    """Return images of sides so many times larger, between pixels by bilinear weights."""
    return replace(images, train=_enlarged(images.train, times), test=_enlarged(images.test, times))


def _enlarged(images: Bytes, times: int) -> Bytes:
    parts = []
    for start in range(0, len(images), CHUNK):
        x = torch.from_numpy(images[start : start + CHUNK]).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)
        parts.append(x.round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    found: Bytes = np.concatenate(parts)
    return found
