"""What lambda-compare and lambda-ablations share: sets of images, networks, what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from subquad.data.clipart import CLASSES as DRAWING_CLASSES
from subquad.data.clipart import load_clipart, made_up_drawings
from subquad.data.image_set import ImageSet, downsample2x2
from subquad.experiments.lambda_options import Drawings, LambdaRowsOptions
from subquad.experiments.spec import Json
from subquad.experiments.vit_rows import (
    CLASSES,
    black_pictures,
    images_per_second,
    pictures,
)
from subquad.models.multiply_adds import multiply_adds
from subquad.models.small_resnet import SmallResNet
from subquad.tasks.classification import Augmentation, ClassificationTask

DRAWING_SIDE, MADE_UP_SIDE = 32, 16


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A set of images, which is a group of rows.

    Args:
        group: its name.
        images: the images.
        classes: how many they may be of.
        augmentation: how they are varied.
    """

    group: str
    images: ImageSet
    classes: int
    augmentation: Augmentation


def load_sets(options: LambdaRowsOptions, drawings: Drawings = "none") -> list[Pictures]:
    """Return the images that the options name, and the drawings if there are to be any.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if one is not what it should be.
    """
    found = [_images(options, pictures(options))]
    if drawings == "clipart":
        large = load_clipart()
        small = replace(
            large,
            train=downsample2x2(large.train),
            test=downsample2x2(large.test),
            source=f"{large.source}; shrunk to {DRAWING_SIDE} x {DRAWING_SIDE} by 2 x 2 means",
        )
        found.append(_drawings(options, small))
    elif drawings == "made-up":
        found.append(_drawings(options, made_up_drawings(side=MADE_UP_SIDE)))
    return found


def blank_sets(options: LambdaRowsOptions, drawings: Drawings = "none") -> list[Pictures]:
    """Return black images for an estimate, which needs no data."""
    found = [_images(options, black_pictures(options))]
    if drawings != "none":
        side = DRAWING_SIDE if drawings == "clipart" else MADE_UP_SIDE
        black = np.zeros((options.train.batch_size, side, side, 3), np.uint8)
        labels = np.zeros(len(black), np.uint8)
        images = ImageSet(
            train=black, train_labels=labels, test=black, test_labels=labels, source="black images"
        )
        found.append(_drawings(options, images))
    return found


def small_resnet(
    options: LambdaRowsOptions, found: Pictures, word: str, changed: Json
) -> SmallResNet:
    """Return a new network for images of this set; the seed fixes its weights.

    Args:
        options: sizes and seed.
        found: the set.
        word: a letter a stage.
        changed: arguments of the network that differ from the options'.
    """
    height, width, channels = found.images.train.shape[1:]
    torch.manual_seed(options.seed)
    return SmallResNet(
        [letter * options.network.blocks for letter in word],
        num_classes=found.classes,
        in_channels=channels,
        image_size=(height, width),
        **{**options.network.arguments(), **changed},
    )


def class_task(
    options: LambdaRowsOptions, found: Pictures, model: SmallResNet
) -> ClassificationTask:
    """Return the task of telling the classes of the set's images."""
    return ClassificationTask(
        model,
        found.images,
        batch_size=options.train.batch_size,
        seed=options.seed,
        augmentation=found.augmentation,
        label_smoothing=options.label_smoothing,
        channels_last=True,  # faster on a CPU, for all kinds of layers
    )


def costs(
    options: LambdaRowsOptions, found: Pictures, task: ClassificationTask, folder: Path
) -> Json:
    """Return a trained network's multiply-adds, and how many images it classifies in a second."""
    model = task.model
    height, width, channels = found.images.train.shape[1:]
    x = task.batch(0)[0].to(next(model.parameters()).device)
    return {
        "multiply_adds": multiply_adds(model, channels, height, width),
        "inference_images_per_second": images_per_second(model, x, options.train.precision),
    }


def points(share: float) -> str:
    """Return a difference of shares as points of per cent."""
    return f"{100 * share:+.2f}"


def margin(rows: Sequence[Json], test_images: int) -> float:
    """Return two standard errors of the difference of two rows' shares right, from the test images.

    The rows see the same test images, so it is rather too large than too small; what another seed
    would change is not in it.
    """
    variances = [row["test_accuracy"] * (1 - row["test_accuracy"]) / test_images for row in rows]
    return float(2 * sum(variances) ** 0.5)


def _images(options: LambdaRowsOptions, images: ImageSet) -> Pictures:
    augmentation = Augmentation(shift=options.shift, mirror=options.mirror)
    return Pictures(group=options.data, images=images, classes=CLASSES, augmentation=augmentation)


def _drawings(options: LambdaRowsOptions, images: ImageSet) -> Pictures:
    # No shifts: what they bring in is black, and drawings stand on white.
    return Pictures(
        group="drawings",
        images=images,
        classes=len(DRAWING_CLASSES),
        augmentation=Augmentation(mirror=options.mirror),
    )
