"""The rows of vit-fashion-mixers: one small Vision Transformer with each mixer, and a ResNet."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from subquad.data.image_set import ImageSet
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import listed
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_options import ViTMixersOptions
from subquad.experiments.vit_rows import (
    CLASSES,
    costs,
    grid_of,
    mixer_settings,
    picture_task,
    pictures,
    suited_mixer,
    vision_transformer,
)
from subquad.experiments.vit_tables import BY_PRETRAINING
from subquad.models.image_baselines import BasicResNet
from subquad.plots import Point, tradeoff_figure
from subquad.tasks.classification import ClassificationTask
from subquad.tasks.config import TrainConfig

GROUP = "mixers"
RESNET = "ResNet"
RESNET_BLOCKS = 2  # a stage


def run_mixers(options: ViTMixersOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    rows = run_rows("vit-fashion-mixers", mixer_rows(options, images), options, folder, say)
    file = "figures/speed.png"
    points = [
        Point(label=row["label"], x=row["inference_images_per_second"], y=row["test_accuracy"])
        for row in rows
        if "test_accuracy" in row
    ]
    figure = tradeoff_figure(
        {GROUP: points},
        xlabel="images classified a second",
        ylabels={GROUP: "share of test images right"},
    )
    write_figure(folder, file, figure)
    notes = [
        f"Data: {images.source}. Equal updates on the same images in the same order; a row's time "
        "holds for this machine. Memory: the peak of a training step beyond weights and images, in "
        "a process of its own.",
        ONE_SEED,
    ]
    found = combined(rows, folder, {file: "Accuracy against speed"})
    return found | {"data": images.source, "notes": notes, "paper": BY_PRETRAINING}


def mixer_rows(options: ViTMixersOptions, images: ImageSet) -> list[Row]:
    """Return a row for each mixer, and one for the convolutional network."""
    config = train_config(options)
    grid = grid_of(options.model, images)
    rows = [
        Row(
            group=GROUP,
            label=name,
            build=partial(_transformer, options, images, name, grid),
            train=config,
            measure=partial(_measure, config, name, mixer_settings(name, grid)),
        )
        for name in listed(options.mixers)
    ]
    if options.resnet_width:
        rows.append(
            Row(
                group=GROUP,
                label=RESNET,
                build=partial(_resnet, options, images),
                train=config,
                measure=partial(_measure, config, None, {}),
            )
        )
    return rows


def _transformer(
    options: ViTMixersOptions, images: ImageSet, name: str, grid: tuple[int, int]
) -> ClassificationTask:
    mixer = suited_mixer(name, grid)
    model = vision_transformer(options.model, images, mixer, seed=options.seed)
    return picture_task(options, model, images)


def _resnet(options: ViTMixersOptions, images: ImageSet) -> ClassificationTask:
    return picture_task(options, small_resnet(options.resnet_width, images, options.seed), images)


def small_resnet(width: int, images: ImageSet, seed: int) -> nn.Module:
    """Return a new ResNet of convolutions, whose weights the seed fixes."""
    torch.manual_seed(seed)
    return BasicResNet(
        in_channels=images.train.shape[3], num_classes=CLASSES, width=width, blocks=RESNET_BLOCKS
    )


def _measure(
    train: TrainConfig, mixer: str | None, settings: Json, task: ClassificationTask, folder: Path
) -> Json:
    return costs(task, train, mixer=mixer, mixer_settings=settings)
