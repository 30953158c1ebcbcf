"""What the Vision Transformer's experiments share: models, tasks, and what is timed of them."""

import math
import statistics
import time
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from subquad.bench.image_job import ImageJob, training_peak
from subquad.bench.timing import wait
from subquad.data.image_set import ImageSet
from subquad.experiments.image_data import load_images
from subquad.experiments.options import ImageData
from subquad.experiments.pixel_run import CIFAR10_SHAPE, MNIST_SHAPE
from subquad.experiments.spec import Json
from subquad.experiments.vit_options import PictureOptions, ViTOptions
from subquad.layers.registry import MIXERS, MixerFactory
from subquad.models.vision_transformer import VisionTransformer
from subquad.tasks.classification import Augmentation, ClassificationTask
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import seconds_per_step

CLASSES = 10  # of all data sets here
INFERENCE_SECONDS = 0.5  # of timing; at least one batch
DIGITS = tuple("0123456789")
CLASS_NAMES: dict[ImageData, tuple[str, ...]] = {
    "embedded-mnist": DIGITS,
    "mnist": DIGITS,
    "fashion-mnist": (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
        "ankle boot",
    ),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
}  # fmt: skip


def pictures(options: PictureOptions) -> ImageSet:
    """Return the images that the options name.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if one is not what it should be.
    """
    return load_images(options.data, options.data_folder, half_size=options.half_size)


def black_pictures(options: PictureOptions) -> ImageSet:
    """Return black images for an estimate, which needs no data."""
    height, width, channels = CIFAR10_SHAPE if options.data == "cifar10" else MNIST_SHAPE
    if options.half_size:
        height, width = height // 2, width // 2
    black = np.zeros((options.train.batch_size, height, width, channels), np.uint8)
    labels = np.zeros(len(black), np.uint8)
    return ImageSet(
        train=black, train_labels=labels, test=black, test_labels=labels, source="black images"
    )


def mixer_settings(name: str, grid: tuple[int, int]) -> Json:
    """Return the options that suit a mixer to an image of few patches, read row by row.

    What has a window sees the patches above, below and between; the defaults, made for long
    sequences, would see all of them.
    """
    down, across = grid
    patches = down * across
    settings: dict[str, Json] = {
        "local": {"window": across + 2},
        "strided": {"stride": across, "window": across},
        "linformer": {"max_len": patches + 1, "num_slots": max(1, math.ceil(patches / 4))},
        "lambda": {"window": across + 2},
    }
    for rounds in (1, 4, 8):
        buckets = max(2, 2 * round(patches / (2 * across)))
        settings[f"lsh-{rounds}"] = {"chunk_size": across, "num_buckets": buckets}
    return settings.get(name, {})


def suited_mixer(name: str, grid: tuple[int, int]) -> str | MixerFactory:
    """Return a mixer with those options; by name where it needs none, so that it can be saved."""
    settings = mixer_settings(name, grid)
    return partial(MIXERS[name], **settings) if settings else name


def vision_transformer(
    sizes: ViTOptions, images: ImageSet, mixer: str | MixerFactory, *, seed: int
) -> VisionTransformer:
    """Return a new model for images of this shape; the seed fixes its weights."""
    height, width, channels = images.train.shape[1:]
    torch.manual_seed(seed)
    return VisionTransformer(
        image_size=(height, width),
        in_channels=channels,
        num_classes=CLASSES,
        mixer=mixer,
        **sizes.arguments(),
    )


def picture_task(
    options: PictureOptions, model: nn.Module, images: ImageSet, *, batch_size: int | None = None
) -> ClassificationTask:
    """Return the task of telling the images' classes."""
    return ClassificationTask(
        model,
        images,
        batch_size=batch_size or options.train.batch_size,
        seed=options.seed,
        augmentation=Augmentation(shift=options.shift, mirror=options.mirror),
        label_smoothing=options.label_smoothing,
        channels_last=True,  # a stem's convolutions and maxima are several times faster so on a CPU
    )


def image_job(
    model: nn.Module,
    shape: tuple[int, ...],
    train: TrainConfig,
    *,
    mixer: str | None = None,
    mixer_settings: Json | None = None,
) -> ImageJob:
    """Return the job that measures a step of such a model on images ``shape`` = (B, C, H, W).

    A mixer that is a factory stands among the model's arguments, which JSON cannot say: it is named
    apart, with its settings.
    """
    arguments = {**cast("Json", model.config), "mixer": "softmax"} if mixer else model.config
    return ImageJob(
        model=type(model).__name__,
        arguments=dict(cast("Json", arguments)),
        shape=shape,
        mixer=mixer,
        mixer_settings=mixer_settings or {},
        device=next(model.parameters()).device.type,
        precision=train.precision,
        threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def images_per_second(model: nn.Module, x: Tensor, precision: str) -> float:
    """Return how many of the images (B, C, H, W) the model classifies in a second."""
    was_training = model.training
    model.eval()
    times: list[float] = []
    narrow = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16")
    with narrow:
        model(x[:2])
        while not times or sum(times) < INFERENCE_SECONDS:
            start = time.perf_counter()
            model(x)
            wait(x.device.type)
            times.append(time.perf_counter() - start)
    model.train(was_training)
    return len(x) / statistics.median(times)


def costs(
    task: ClassificationTask,
    train: TrainConfig,
    *,
    mixer: str | None = None,
    mixer_settings: Json | None = None,
) -> Json:
    """Return seconds of a training step, images a second without training, and peak memory."""
    x = task.batch(0)[0].to(next(task.model.parameters()).device)
    job = image_job(task.model, tuple(x.shape), train, mixer=mixer, mixer_settings=mixer_settings)
    peak = training_peak(job)
    return {
        "seconds_per_step": seconds_per_step(task, train),
        "inference_images_per_second": images_per_second(task.model, x, train.precision),
        **({} if peak is None else {"peak_bytes": peak}),
    }


def grid_of(sizes: ViTOptions, images: ImageSet) -> tuple[int, int]:
    """Return how many patches images of this shape have, down and across.

    Raises:
        ValueError: if patches do not fit them.
    """
    height, width = images.train.shape[1:3]
    if height % sizes.patch_size or width % sizes.patch_size:
        raise ValueError(
            f"patch_size must divide the images' sides, {height} x {width}, got {sizes.patch_size}"
        )
    return height // sizes.patch_size, width // sizes.patch_size
