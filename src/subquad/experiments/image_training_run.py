"""Train a classifier on a folder of images: what ``subquad train-images`` does."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from subquad.data.augment import Augmentation
from subquad.data.image_folder import (
    NAMED,
    FolderImages,
    Listing,
    Progress,
    list_folder,
    read_folder,
)
from subquad.data.image_set import ImageSet
from subquad.environment import environment
from subquad.experiments.image_models import (
    Network,
    new_network,
    set_batch_norm_momentum,
    trained_network,
)
from subquad.experiments.image_training import (
    NAME,
    ImageTrainingOptions,
    Plan,
    chosen_recipe,
    make_plan,
    stored_side,
)
from subquad.experiments.image_training_tables import TOP, by_class, summary
from subquad.experiments.run_folder import (
    ENVIRONMENT,
    OPTIONS,
    RESULTS,
    as_json,
    open_folder,
    read_json,
)
from subquad.experiments.runner import hardware
from subquad.experiments.spec import Json, Say
from subquad.experiments.tables_report import write_tables_report
from subquad.experiments.train import training_results
from subquad.files import atomic_write_bytes, atomic_write_json
from subquad.plots import learning_curves, png_bytes, read_curve
from subquad.tasks.classification import ClassificationTask
from subquad.tasks.classifier import LABELS, save_classifier
from subquad.tasks.estimate import estimate
from subquad.tasks.training import FitResult, fit

BATCH = 250
MANY = 2000  # images whose reading takes long enough to be told of


def train_images(
    options: ImageTrainingOptions, folder: Path, *, command: Sequence[str], say: Say
) -> Json:
    """Train, or go on training, in ``folder``; a finished run's results are read from there.

    Raises:
        ValueError: if options, images and folder do not fit together, or images cannot be read.
        ModuleNotFoundError: if a package is missing.
        OSError: if a folder is missing or cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    listing = list_folder(options.folder, test_share=options.test_share, seed=options.seed)
    build_task(options, _black(options), len(listing.classes), len(listing.train))
    found = open_folder(folder, NAME, options)
    if found is not None:
        return found
    stamp = environment(command)
    atomic_write_json(folder / ENVIRONMENT, stamp)
    read = _read(options, listing, say)
    task, plan = build_task(options, read.images, len(read.classes), len(read.images.train))
    for remark in plan.remarks:
        say(f"note: {remark}")
    fitted = fit(task, plan.train, folder)
    if fitted.interrupted:
        raise KeyboardInterrupt
    _save(task, plan, read, folder)
    say(f"testing on {len(read.images.test):,} images")
    results = _results(options, task, plan, read, fitted)
    results |= {"hardware": hardware(stamp, fitted.device), "figures": _figures(folder, options)}
    _write_report(folder, options, results, stamp)
    atomic_write_json(folder / RESULTS, results)
    return results


def estimate_training(options: ImageTrainingOptions) -> Json:
    """Return what the training would cost here; the images are counted and not read.

    Raises:
        ValueError: if options and images do not fit together.
        OSError: if the folder is missing or cannot be read.
    """
    listing = list_folder(options.folder, test_share=options.test_share, seed=options.seed)
    black = _black(options)
    task, plan = build_task(options, black, len(listing.classes), len(listing.train))
    return dataclasses.asdict(estimate(task, plan.train))


def build_task(
    options: ImageTrainingOptions, images: ImageSet, classes: int, count: int
) -> tuple[ClassificationTask, Plan]:
    """Return the task with its network, and the plan, for ``count`` training images.

    Raises:
        ValueError: if they do not fit together.
        ModuleNotFoundError: if a package is missing.
    """
    plan = make_plan(options, count)
    recipe = plan.recipe
    torch.manual_seed(options.seed)
    wanted = Network(
        classes=classes,
        channels=options.channels,
        image_size=recipe.image_size,
        mixer=options.mixer,
        dropout=recipe.dropout,
        drop_path=recipe.drop_path,
        checkpointing=options.checkpointing,
    )
    make = new_network if options.start_from is None else trained_network
    model = make(options.network, wanted)
    if recipe.batch_norm_momentum is not None:
        set_batch_norm_momentum(model, recipe.batch_norm_momentum)
    task = ClassificationTask(
        model,
        images,
        batch_size=plan.train.batch_size,
        seed=options.seed,
        augmentation=Augmentation(
            shift=plan.shift,
            mirror=recipe.mirror,
            crop=plan.crop,
            crop_area=recipe.crop_area or (0.08, 1.0),
            rand_augment=recipe.rand_augment,
        ),
        label_smoothing=recipe.label_smoothing,
        normalization=recipe.normalization,
        channels_last=options.channels_last,
        top_k=(1, TOP) if classes > TOP else (1,),
    )
    return task, plan


def _black(options: ImageTrainingOptions) -> ImageSet:
    """Return a few black images, to see whether all fits together before any is read."""
    side = stored_side(chosen_recipe(options))
    black = np.zeros((2, side, side, options.channels), np.uint8)
    labels = np.zeros(2, np.uint8)
    return ImageSet(
        train=black, train_labels=labels, test=black, test_labels=labels, source="black images"
    )


def _read(options: ImageTrainingOptions, listing: Listing, say: Say) -> FolderImages:
    count = len(listing.train) + len(listing.test)
    say(f"reading {count:,} images of {len(listing.classes)} classes")
    if listing.others:
        named = ", ".join(path.name for path in listing.others[:NAMED])
        say(f"{len(listing.others):,} files are no images by their names: {named}")
    if listing.unused:
        say(f"left alone: the folders {', '.join(listing.unused)}")
    read = read_folder(
        listing,
        side=stored_side(chosen_recipe(options)),
        channels=options.channels,
        unreadable=options.unreadable,
        memory_gb=options.memory_gb,
        progress=tenths(say),
    )
    for sentence in read.skipped:
        say(f"left out: {sentence}")
    say(read.images.source)
    return read


def tenths(say: Say) -> Progress:
    """Return what tells each tenth of many images that has been read."""
    told = [0]

    def progress(done: int, total: int) -> None:
        tenth = 10 * done // total
        if total >= MANY and tenth > told[-1]:
            told.append(tenth)
            say(f"read {done:,} of {total:,}")

    return progress


def _save(task: ClassificationTask, plan: Plan, read: FolderImages, folder: Path) -> None:
    """Write the classifier, and what its numbers mean into the run's config.json too."""
    save_classifier(
        task.model,
        folder / "model",
        classes=read.classes,
        image_size=plan.recipe.image_size,
        mean=task.mean.tolist(),
        std=task.std.tolist(),
        fit="resize",
        resize=plan.side,
    )
    labels = read_json(folder / "model" / LABELS)
    atomic_write_json(folder / OPTIONS, {**read_json(folder / OPTIONS), "classifier": labels})


def _results(
    options: ImageTrainingOptions,
    task: ClassificationTask,
    plan: Plan,
    read: FolderImages,
    fitted: FitResult,
) -> Json:
    images, model = read.images, task.model
    measured = task.evaluate(full=True)
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    right = _right(task, images)
    results: Json = {
        "experiment": NAME,
        "model": options.network,
        "recipe": options.recipe,
        "recipe_source": plan.recipe.source,
        "seed": options.seed,
        "unit": task.unit,
        "test": measured["loss"],
        **{f"test_{name}": value for name, value in measured.items() if name != "loss"},
        "test_images": len(images.test),
        **training_results(fitted, "images", model),
        "epochs": fitted.samples / len(images.train),
        "train_images": len(images.train),
        "data": images.source,
        "left_out": list(read.skipped),
        "classes": list(read.classes),
        "image_shape": [plan.recipe.image_size, plan.recipe.image_size, options.channels],
        "network": dict(config),
        "device": fitted.device,
        "notes": list(plan.remarks),
    }
    results["tables"] = [summary(results), by_class(read, right)]
    return results


def _right(task: ClassificationTask, images: ImageSet) -> NDArray[np.bool_]:
    """Return which test images were told right."""
    device = next(task.model.parameters()).device
    found = []
    with torch.no_grad():
        for start in range(0, len(images.test), BATCH):
            x = task.prepared(images.test[start : start + BATCH])
            found.append(task.model(x.to(device)).argmax(1).cpu().numpy())
    right: NDArray[np.bool_] = np.concatenate(found) == images.test_labels
    return right


def _figures(folder: Path, options: ImageTrainingOptions) -> dict[str, str]:
    (folder / "figures").mkdir(exist_ok=True)
    file = "figures/curve.png"
    curve = read_curve(folder / "metrics.csv", options.network)
    figure = learning_curves([curve], unit="nats")
    atomic_write_bytes(folder / file, png_bytes(figure))
    return {file: "Cross-entropy while training"}


def _write_report(folder: Path, options: ImageTrainingOptions, results: Json, stamp: Json) -> None:
    title = f"{results['model']} on {options.folder.resolve().name}"
    write_tables_report(
        folder / "report.html",
        title=title,
        lead=f"An image classifier of {len(results['classes'])} classes.",
        results=results,
        figures=[(folder / name, words) for name, words in results["figures"].items()],
        environment=stamp,
        config=as_json(options),
    )
