"""``subquad train-images``: train a classifier on a folder of images."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from subquad.cli.console import console
from subquad.cli.parsing import UsageError, choose, parse, peek
from subquad.experiments.image_training import DEFAULT_MODEL, NAME, ImageTrainingOptions
from subquad.experiments.recipes import RECIPES, RecipeName, in_words, recipe_for
from subquad.experiments.spec import Json
from subquad.files import printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainImagesFlags:
    """This command."""

    out: Path | None = None
    """Folder of the run; the same command goes on there (default: runs/images-FOLDER-MODEL)."""
    estimate: bool = False
    """Print what the training would cost, and stop."""


def train_images(words: list[str]) -> int:
    """Train, or go on with, a classifier, and print how good it is."""
    call = dataclasses.make_dataclass(
        "Call",
        [("command", TrainImagesFlags, TrainImagesFlags()), ("training", ImageTrainingOptions)],
        frozen=True,
        kw_only=True,
    )
    name = choose(peek(words, "--recipe") or "small", RECIPES, what="recipe")
    network = peek(words, "--model") or DEFAULT_MODEL
    recipe = in_words(recipe_for(cast(RecipeName, name), network))
    parsed: Any = parse(
        call,
        words,
        prog="subquad train-images",
        description="Train an image classifier on a folder of images, a folder a class. Images "
        "are brought to one size: the shorter side is resized, the middle kept. A run that was "
        f"stopped goes on by the same command. What the recipe {name} has, unless options say "
        f"otherwise: {recipe}.",
        positional="folder",
    )
    options: ImageTrainingOptions = parsed.training
    if not options.folder.is_dir():
        raise UsageError(f"FOLDER must be a folder of images, got {options.folder}")
    from subquad.experiments.image_training_run import estimate_training
    from subquad.experiments.image_training_run import train_images as run
    from subquad.tasks.memory import keep_freed_memory

    keep_freed_memory()
    if parsed.command.estimate:
        from subquad.cli.run import show_estimate

        show_estimate([(NAME, options.network, estimate_training(options))])
        return 0
    folder = parsed.command.out or default_folder(options)
    say = console().print
    results = run(options, folder, command=["subquad", "train-images", *words], say=_plainly(say))
    _show(results, folder)
    return 0


def default_folder(options: ImageTrainingOptions) -> Path:
    """Return runs/images-FOLDER-MODEL, without signs that folders cannot have."""
    from subquad.experiments.rows import as_file_name

    network = Path(options.network).name if options.start_from else options.network
    suffix = f"-seed{options.seed}" if options.seed else ""
    return Path("runs") / as_file_name(f"images-{options.folder.resolve().name}-{network}{suffix}")


def _plainly(say: Any) -> Any:
    return lambda text: say(printable(text), markup=False)


def _show(results: Json, folder: Path) -> None:
    from subquad.experiments.report import number

    shares = f"{results['test_accuracy']:.1%} of {results['test_images']:,} test images told right"
    if "test_accuracy_top5" in results:
        shares += f", {results['test_accuracy_top5']:.1%} among five guesses"
    say = _plainly(console().print)
    say(f"{results['model']}: {shares} ({number(results['test'])} {results['unit']})")
    say(f"  model: {folder / 'model'}; report: {folder / 'report.html'}")
    say(f"  try it: subquad predict {folder} IMAGE")
