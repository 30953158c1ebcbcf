"""The rows of performer-pixels: attentions that predict the next byte of a picture."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import torch

from subquad.data.clipart import SIDE, load_clipart, made_up_drawings
from subquad.data.image_set import Bytes
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.image_data import load_images
from subquad.experiments.language_options import PerformerPixelsOptions, listed
from subquad.experiments.language_rows import attention
from subquad.experiments.options import train_config
from subquad.experiments.pixel_run import CIFAR10_SHAPE, MNIST_SHAPE
from subquad.experiments.rows import Row, combined, run_rows
from subquad.experiments.sampling import state_bytes
from subquad.experiments.spec import Json, Say
from subquad.models.pixel_model import PixelModel
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import seconds_per_step
from subquad.tasks.pixels import PixelTask

DRAWING_WARMUP = 10  # steps: exact softmax makes few
MADE_UP_SIDE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """One data set as rows of bytes (N, L), and how the models on it are trained."""

    group: str
    train: Bytes
    test: Bytes
    config: TrainConfig
    source: str
    evaluation_batch: int


def run_performer_pixels(options: PerformerPixelsOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    pictures = load_pictures(options)
    rows = run_rows("performer-pixels", pixel_rows(options, pictures), options, folder, say)
    sources = [f"{found.group}: {found.source}" for found in pictures]
    notes = [
        f"Data: {'; '.join(sources)}. Each byte is predicted from those before it, row by row, "
        "colours one after another.",
        ONE_SEED,
    ]
    return combined(rows, folder, {}) | {"data": "; ".join(sources), "notes": notes}


def load_pictures(options: PerformerPixelsOptions) -> list[Pictures]:
    """Return the images, and the drawings if there are to be any.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if one is not what it should be.
    """
    images = load_images(options.data, options.data_folder, half_size=options.half_size)
    test = _some(images.test, options.image_tests)
    source = f"{images.source}; tested on {len(test):,} of these"
    found = [_images(options, images.train, test, source)]
    if options.drawings != "none":
        made_up = options.drawings == "made-up"
        drawings = made_up_drawings(side=MADE_UP_SIDE) if made_up else load_clipart()
        test = _some(drawings.test, options.drawing_tests)
        source = f"{drawings.source}; tested on {len(test):,} of these"
        found.append(_drawings(options, drawings.train, test, source))
    return found


def blank_pictures(options: PerformerPixelsOptions) -> list[Pictures]:
    """Return black pictures for an estimate, which needs no data."""
    height, width, channels = CIFAR10_SHAPE if options.data == "cifar10" else MNIST_SHAPE
    if options.half_size:
        height, width = height // 2, width // 2
    count = options.train.batch_size
    black = np.zeros((count, height, width, channels), np.uint8)
    found = [_images(options, black, black, "none")]
    if options.drawings != "none":
        side = MADE_UP_SIDE if options.drawings == "made-up" else SIDE
        black = np.zeros((1, side, side, 3), np.uint8)
        found.append(_drawings(options, black, black, "none"))
    return found


def pixel_rows(options: PerformerPixelsOptions, pictures: list[Pictures]) -> list[Row]:
    """Return the rows of each data set, in the order of ``options.attentions``."""
    return [
        Row(
            group=found.group,
            label=name,
            build=partial(_task, options, name, found),
            train=found.config,
            measure=partial(_measures, found.config),
        )
        for found in pictures
        for name in listed(options.attentions)
    ]


def _some(pictures: Bytes, count: int) -> Bytes:
    """Return ``count`` of the pictures, or all: always the same ones, and not only the first."""
    chosen = np.random.default_rng(0).permutation(len(pictures))[:count]
    return pictures[np.sort(chosen)]


def _images(options: PerformerPixelsOptions, train: Bytes, test: Bytes, source: str) -> Pictures:
    return Pictures(
        group="images",
        train=train.reshape(len(train), -1),
        test=test.reshape(len(test), -1),
        config=train_config(options),
        source=source,
        evaluation_batch=32,
    )


def _drawings(options: PerformerPixelsOptions, train: Bytes, test: Bytes, source: str) -> Pictures:
    config = train_config(options)
    minutes = None if config.minutes is None else options.drawing_minutes
    return Pictures(
        group="drawings",
        train=train.reshape(len(train), -1),
        test=test.reshape(len(test), -1),
        config=dataclasses.replace(
            config,
            minutes=minutes,
            batch_size=1,
            warmup_steps=min(config.warmup_steps, DRAWING_WARMUP),
            log_every=min(config.log_every, 10),  # one picture says little: means of ten
        ),
        source=source,
        evaluation_batch=1,
    )


def _task(options: PerformerPixelsOptions, name: str, pictures: Pictures) -> PixelTask:
    torch.manual_seed(options.seed)
    seq_len = pictures.train.shape[1]
    model = PixelModel(
        seq_len, mixer=attention(name, options, seq_len), **dataclasses.asdict(options.model)
    )
    return PixelTask(
        model,
        pictures.train,
        pictures.test,
        batch_size=pictures.config.batch_size,
        seed=options.seed,
        evaluation_batch=pictures.evaluation_batch,
    )


def _measures(train: TrainConfig, task: PixelTask, folder: Path) -> Json:
    return {
        "seconds_per_step": seconds_per_step(task, train),
        "state_bytes": state_bytes(task.model),
    }
