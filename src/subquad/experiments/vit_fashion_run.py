"""One run of vit-fashion: train, test, and keep the model as a classifier that has class names."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from subquad.data.image_set import ImageSet
from subquad.experiments.options import train_config
from subquad.experiments.rows import write_figure
from subquad.experiments.spec import Json, Say
from subquad.experiments.train import training_results
from subquad.experiments.vit_options import ViTFashionOptions
from subquad.experiments.vit_rows import (
    CLASS_NAMES,
    black_pictures,
    costs,
    picture_task,
    pictures,
    vision_transformer,
)
from subquad.experiments.vit_tables import BY_PRETRAINING
from subquad.plots import learning_curves, read_curve
from subquad.plots.vit import confusion_figure
from subquad.tasks.classification import ClassificationTask
from subquad.tasks.classifier import save_classifier
from subquad.tasks.estimate import estimate
from subquad.tasks.training import fit


def run_fashion(options: ViTFashionOptions, folder: Path, say: Say) -> Json:
    """Train (or go on training) in ``folder``, and return what was measured.

    Raises:
        ValueError: if options, data and folder do not fit together.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    images = pictures(options)
    task, train = fashion_task(options, images), train_config(options)
    fitted = fit(task, train, folder)
    if fitted.interrupted:
        raise KeyboardInterrupt
    names = CLASS_NAMES[options.data]
    save_classifier(
        task.model, folder / "model", classes=names, image_size=images.train.shape[1:3],
        mean=task.mean, std=task.std,
    )  # fmt: skip
    say(f"testing on {len(images.test):,} images")
    measured = task.evaluate(full=True)
    counts = confusion(task, images, len(names))
    return {
        "unit": task.unit,
        "test": measured["loss"],
        "test_accuracy": measured["accuracy"],
        "test_images": len(images.test),
        **training_results(fitted, "images", task.model),
        "epochs": fitted.samples / len(images.train),
        "train_images": len(images.train),
        **costs(task, train),
        "data": images.source,
        "input_shape": list(images.train.shape[1:]),
        "model": dict(cast("Json", task.model.config)),
        "class_names": list(names),
        "confusion": counts.tolist(),
        "device": fitted.device,
        "paper": BY_PRETRAINING,
        "figures": _draw(folder, options.mixer, counts, names),
    }


def estimate_fashion(options: ViTFashionOptions) -> Json:
    """Return what training would cost here; it needs no data."""
    task = fashion_task(options, black_pictures(options))
    return dataclasses.asdict(estimate(task, train_config(options)))


def fashion_task(options: ViTFashionOptions, images: ImageSet) -> ClassificationTask:
    """Return the task with a new model, whose weights the seed fixes."""
    model = vision_transformer(options.model, images, options.mixer, seed=options.seed)
    return picture_task(options, model, images)


@torch.no_grad()
def confusion(
    task: ClassificationTask, images: ImageSet, num_classes: int, *, batch_size: int = 250
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many test images of each class (rows) were taken for each (columns)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    device = next(task.model.parameters()).device
    for start in range(0, len(images.test), batch_size):
        part = slice(start, start + batch_size)
        found = task.model(task.prepared(images.test[part]).to(device)).argmax(1).cpu().numpy()
        np.add.at(counts, (images.test_labels[part], found), 1)
    return counts


def _draw(
    folder: Path,
    mixer: str,
    counts: np.ndarray[Any, np.dtype[np.int64]],
    names: tuple[str, ...],
) -> dict[str, str]:
    curve = read_curve(folder / "metrics.csv", mixer)
    figures = {
        "figures/curve.png": (
            learning_curves([curve], unit="nats"),
            "Loss while training; that on training images has smoothed labels and varied images",
        ),
        "figures/confusion.png": (
            confusion_figure(counts.tolist(), names),
            "What the test images of each class were taken for",
        ),
    }
    for file, (figure, _) in figures.items():
        write_figure(folder, file, figure)
    return {file: words for file, (_, words) in figures.items()}
