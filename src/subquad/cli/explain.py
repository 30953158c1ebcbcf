"""``subquad explain``: what a trained Vision Transformer looks at."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from subquad.cli.console import complain, say
from subquad.cli.parsing import UsageError, near_miss, parse, separate
from subquad.experiments.checkpoints import find_model, packaged_models
from subquad.tasks.config import Device

if TYPE_CHECKING:
    from subquad.experiments.explaining import Explanation

NUMBERS = "explanation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Options of explain."""

    run: str
    """A run's folder, or the name of a model that comes with the package."""
    out: Path = Path("explanation")
    """The folder to write to, made if need be; earlier files of the same names are replaced."""
    resize: bool = False
    """Take images of other sizes and channels too, where the model was made for one size: the
    shorter side is resized, the middle kept, grey and colours converted."""
    invert: bool = False
    """Turn dark and light around, for a model of light things on black."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""


def explain(words: list[str]) -> int:
    """Draw what a model looks at on some pictures; write figures and numbers to a folder."""
    named, rest = separate(words, ExplainOptions)
    options = parse(
        ExplainOptions,
        [*named[:1], *rest],
        prog="subquad explain RUN IMAGE...",
        description="What a trained Vision Transformer looks at on pictures: how far its heads "
        "look, attention rollout over the pictures, its patch filters, its position vectors, and "
        "how alike heads are. RUN is a run's folder, or a packaged model. All pictures are read "
        "before anything is written.",
        positional="run",
    )
    if not named[1:]:
        raise UsageError("IMAGE is missing: explain takes a run and one image or more")
    folder = _find(options.run)
    _check_out(options.out)
    from subquad.experiments.explaining import explain as look
    from subquad.experiments.explaining import load_vision_transformer
    from subquad.experiments.predicting import UnfitPictures, read_for

    classifier = load_vision_transformer(folder, options.device)
    files = [Path(word) for word in named[1:]]
    try:
        pictures = read_for(classifier.labels, files, resize=options.resize, invert=options.invert)
    except UnfitPictures as error:
        for sentence in error.sentences:
            complain(sentence)
        return 1
    _write(options.out, folder, look(classifier, pictures, named[1:]))
    return 0


def _find(model: str) -> Path:
    try:
        return find_model(model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{near_miss(model, packaged_models())}") from None


def _check_out(out: Path) -> None:
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out must lie in a folder that exists, got {out}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out must be a folder, got the file {out}")


def _write(out: Path, folder: Path, found: "Explanation") -> None:
    from subquad.files import atomic_write_bytes, atomic_write_json

    out.mkdir(exist_ok=True)
    for name, (png, line) in found.pictures.items():
        path = out / name
        replaced = _replaced(path)
        atomic_write_bytes(path, png)
        say(f"{path}{replaced}: {line}")
    for reason in dict.fromkeys(found.omitted.values()):
        names = [name for name, why in found.omitted.items() if why == reason]
        say(f"left out {', '.join(names)}: {reason}")
    path = out / NUMBERS
    replaced = _replaced(path)
    atomic_write_json(path, {"model": str(folder), **found.numbers})
    say(f"{path}{replaced}: the numbers, and how each is defined")


def _replaced(path: Path) -> str:
    return " (the earlier file is replaced)" if path.exists() else ""
