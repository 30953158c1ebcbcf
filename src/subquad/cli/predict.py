"""``subquad predict``: tell the classes of images with a trained classifier."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subquad.cli.console import complain, console, say
from subquad.cli.parsing import UsageError, near_miss, parse, separate
from subquad.experiments.checkpoints import find_model, packaged_models
from subquad.files import printable
from subquad.tasks.config import Device

if TYPE_CHECKING:
    from subquad.experiments.predicting import Guess

TOP = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of predict."""

    model: str
    """A run's folder, or the name of a model that comes with the package."""
    top: int | None = None
    """How many classes to name for an image (default: 5, or all if there are fewer)."""
    json: bool = False
    """Print JSON: a list of {image, classes: [{class, probability}]}."""
    resize: bool = False
    """Take images of other sizes and channels too, where the model was made for one size: the
    shorter side is resized, the middle kept, grey and colours converted."""
    invert: bool = False
    """Turn dark and light around, for a model of light things on black."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ValueError(f"top must be at least 1, got {self.top}")


def predict(words: list[str]) -> int:
    """Read all images, tell their classes, and print them; refused images end it before that."""
    named, rest = separate(words, PredictOptions)
    images = named[1:]
    options = parse(
        PredictOptions,
        [*named[:1], *rest],
        prog="subquad predict MODEL IMAGE...",
        description="Tell the classes of images with a trained classifier: a run's folder, or a "
        "packaged model. All images are read first; where one cannot be, each such image is named "
        "and none is told.",
        positional="model",
    )
    if not images:
        raise UsageError("IMAGE is missing: predict takes a model and one image or more")
    try:
        folder = find_model(options.model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{near_miss(options.model, packaged_models())}") from None
    from subquad.experiments.predicting import UnfitPictures, read_for
    from subquad.experiments.predicting import predict as tell
    from subquad.experiments.sampling import pick_device
    from subquad.tasks.classifier import load_classifier

    device = pick_device(options.device)
    classifier = load_classifier(folder)
    top = options.top or min(TOP, len(classifier.labels.classes))
    paths = [Path(image) for image in images]
    try:
        read = read_for(classifier.labels, paths, resize=options.resize, invert=options.invert)
    except UnfitPictures as error:
        for sentence in error.sentences:
            complain(sentence)
        return 1
    classifier.model.to(device)
    found = tell(classifier, read, top=top)
    if options.json:
        say(json.dumps(_as_json(images, found), indent=2))
    else:
        _show(images, found)
    return 0


def _as_json(images: Sequence[str], found: "Sequence[Sequence[Guess]]") -> list[dict[str, object]]:
    return [
        {
            "image": image,
            "classes": [{"class": g.label, "probability": g.probability} for g in guesses],
        }
        for image, guesses in zip(images, found, strict=True)
    ]


def _show(images: Sequence[str], found: "Sequence[Sequence[Guess]]") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("image")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for image, guesses in zip(images, found, strict=True):
        for i, guess in enumerate(guesses):
            name = escape(printable(image)) if i == 0 else ""
            table.add_row(name, escape(guess.label), f"{guess.probability:.1%}")
        table.add_section()
    console().print(table)
