"""One row of an image experiment: train a pixel model, test it, draw with it, complete with it."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from subquad.data.images import ImageSet
from subquad.experiments.image_data import load_images
from subquad.experiments.options import ImageOptions, train_config
from subquad.experiments.sampling import (
    Images,
    complete,
    given_rows,
    state_bytes,
    timed_draw,
)
from subquad.experiments.spec import Json, Say
from subquad.experiments.train import training_results
from subquad.files import atomic_write_bytes
from subquad.models.pixel_model import PixelModel
from subquad.models.saving import save_model
from subquad.plots import (
    completion_figure,
    learning_curves,
    png_bytes,
    read_curve,
    sample_figure,
)
from subquad.tasks.estimate import estimate
from subquad.tasks.pixels import PixelTask
from subquad.tasks.training import fit

SHOWN = 100  # of the images drawn
CLASSES = 10  # of all data sets here
CIFAR10_SHAPE, MNIST_SHAPE = (32, 32, 3), (28, 28, 1)


def run_pixels(options: ImageOptions, folder: Path, say: Say) -> Json:
    """Train (or go on training) in ``folder``, and return what was measured.

    Raises:
        ValueError: if options, data and folder do not fit together.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = load_images(options.data, options.data_folder, half_size=options.half_size)
    task = pixel_task(options, images)
    fitted = fit(task, train_config(options), folder)
    if fitted.interrupted:
        raise KeyboardInterrupt
    model = task.model
    model.eval()  # on the device where it was trained
    save_model(model, folder / "model")
    say(f"testing on {len(images.test):,} images")
    test = task.evaluate(full=True)["loss"]
    drawing: Json = {}
    drawn = None
    if can_generate(model):
        say(f"drawing 1 and {options.samples:,} images")
        rates, drawn = drawing_speed(model, options)
        drawing = {"generation": rates, "state_bytes_per_image": state_bytes(model)}
    else:
        say(f"no images are drawn: {options.mixer} has no state to generate from")
    results = {
        "unit": task.unit,
        "test": test,
        "test_images": len(images.test),
        **training_results(fitted, "images", model),
        "epochs": fitted.samples / len(images.train),
        "train_images": len(images.train),
        "data": images.source,
        "image_shape": list(images.test.shape[1:]),
        "model": dict(model.config),
        **drawing,
        "device": next(model.parameters()).device.type,
    }
    results["figures"] = draw_figures(folder, options, model, images, drawn)
    return results


def estimate_pixels(options: ImageOptions) -> Json:
    """Return what training would cost here; black images serve as well, so no data is needed."""
    height, width, channels = CIFAR10_SHAPE if options.data == "cifar10" else MNIST_SHAPE
    if options.half_size:
        height, width = height // 2, width // 2
    black = np.zeros((options.train.batch_size, height, width, channels), np.uint8)
    labels = np.zeros(len(black), np.uint8)
    images = ImageSet(
        train=black,
        train_labels=labels,
        test=black,
        test_labels=labels,
        source="black images",
    )
    return dataclasses.asdict(estimate(pixel_task(options, images), train_config(options)))


def pixel_task(options: ImageOptions, images: ImageSet) -> PixelTask:
    """Return the task: a new model, and the images as rows of bytes."""
    return PixelTask(
        pixel_model(options, images.train[0].size),
        images.train.reshape(len(images.train), -1),
        images.test.reshape(len(images.test), -1),
        train_labels=images.train_labels,
        test_labels=images.test_labels,
        batch_size=options.train.batch_size,
        seed=options.seed,
    )


def pixel_model(options: ImageOptions, seq_len: int) -> PixelModel:
    """Return a new model for images of ``seq_len`` bytes; the seed fixes its weights."""
    torch.manual_seed(options.seed)
    return PixelModel(
        seq_len,
        mixer=options.mixer,
        num_mixtures=options.num_mixtures,
        num_classes=CLASSES if options.class_conditional else None,
        **dataclasses.asdict(options.model),
    )


def can_generate(model: PixelModel) -> bool:
    """Return whether every mixer has a state; LSH attention sorts all tokens and has none."""
    return all(getattr(block.mixer, "has_state", True) for block in model.decoder.stack.blocks)


def drawing_speed(model: PixelModel, options: ImageOptions) -> tuple[dict[str, float], Images]:
    """Return {batch size: images/s}, for one image and for all the samples, and the samples."""
    _, alone = timed_draw(model, 1, seed=options.seed)
    drawn, together = timed_draw(model, options.samples, seed=options.seed)
    return {"1": 1 / alone, str(options.samples): options.samples / together}, drawn


def draw_figures(
    folder: Path, options: ImageOptions, model: PixelModel, images: ImageSet, drawn: Images | None
) -> dict[str, str]:
    """Write the figures; return {file below the folder: what it shows}.

    Without ``drawn`` images there are no completions either, only the curve.
    """
    (folder / "figures").mkdir(exist_ok=True)
    name = f"{options.mixer} attention"
    count = min(options.completions, len(images.test))
    figures = {}
    if drawn is not None:
        figures["figures/samples.png"] = (
            sample_figure(drawn[:SHOWN]),
            f"{min(SHOWN, len(drawn))} images drawn from nothing, {name}",
        )
    figures["figures/curve.png"] = (
        learning_curves([read_curve(folder / "metrics.csv", options.mixer)], unit="bits/dim"),
        "Bits per dimension while training",
    )
    if drawn is not None and count:
        originals = images.test[:count]
        labels = images.test_labels[:count]
        completed = complete(model, originals, seed=options.seed, labels=labels)
        figures["figures/completions.png"] = (
            completion_figure(originals, completed, given_rows=given_rows(originals)),
            f"{count} test images completed from their upper half, {name}",
        )
    for file, (figure, _) in figures.items():
        atomic_write_bytes(folder / file, png_bytes(figure))
    return {file: words for file, (_, words) in figures.items()}
