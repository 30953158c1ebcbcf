"""``subquad sample``: draw images, or complete given ones, with a trained model."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from subquad.cli.console import say
from subquad.cli.parsing import near_miss, parse
from subquad.experiments.checkpoints import find_model, packaged_models
from subquad.tasks.config import Device

Progress = Callable[[int, int], None]
DEFAULT_COUNT = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of sample."""

    model: str
    """A run's folder, or the name of a model that comes with the package."""
    count: int | None = None
    """How many images to draw (default: 64)."""
    temperature: float = 1.0
    """Below 1 the images get smoother and more alike; 1 follows the model."""
    seed: int = 0
    """Another seed, other images."""
    out: Path = Path("samples.png")
    """The PNG file to write; an earlier one is replaced."""
    complete: int = 0
    """Complete the lower half of this many test images, instead of drawing; stands without --count
    and --label."""
    label: int | None = None
    """Draw this class only (models trained with classes)."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    max_batch: int | None = None
    """Most images to hold in memory at once (default: as many as fit)."""

    def __post_init__(self) -> None:
        for name in ("count", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.complete < 0:
            raise ValueError(f"complete must be at least 0, got {self.complete}")
        for name in ("count", "label"):
            if self.complete and getattr(self, name) is not None:
                raise ValueError(
                    "complete must stand without count and label, because the test images are "
                    f"given, got {name} {getattr(self, name)}"
                )


def sample(words: list[str]) -> int:
    """Draw or complete images, and write them as one PNG file."""
    options = parse(
        SampleOptions,
        words,
        prog="subquad sample",
        description="Draw or complete images with a trained model: a run's folder, or one of "
        + (", ".join(packaged_models()) or "the packaged ones (none in this installation)")
        + ".",
        positional="model",
    )
    try:
        folder = find_model(options.model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{near_miss(options.model, packaged_models())}") from None
    if not options.out.resolve().parent.is_dir():
        raise FileNotFoundError(f"--out must lie in a folder that exists, got {options.out}")
    from subquad.files import atomic_write_bytes
    from subquad.tasks.memory import keep_freed_memory

    keep_freed_memory()
    start = time.perf_counter()
    with progress_bar() as progress:
        count, png = (
            _complete(folder, options, progress)
            if options.complete
            else _draw(folder, options, progress)
        )
    replaced = " (the earlier file is replaced)" if options.out.exists() else ""
    atomic_write_bytes(options.out, png)
    seconds = time.perf_counter() - start
    images = "1 image" if count == 1 else f"{count} images"
    say(f"{options.out}{replaced}: {images}, {seconds:.1f} s in all")
    return 0


def _draw(folder: Path, options: SampleOptions, progress: Progress) -> tuple[int, bytes]:
    from subquad.experiments.sampling import draw, load_pixel_model
    from subquad.plots import png_bytes, sample_figure

    images = draw(
        load_pixel_model(folder, options.device),
        DEFAULT_COUNT if options.count is None else options.count,
        seed=options.seed,
        temperature=options.temperature,
        label=options.label,
        max_batch=options.max_batch,
        progress=progress,
    )
    return len(images), png_bytes(sample_figure(images))


def _complete(folder: Path, options: SampleOptions, progress: Progress) -> tuple[int, bytes]:
    from subquad.experiments.sampling import complete, given_rows, load_pixel_model, test_images
    from subquad.plots import completion_figure, png_bytes

    model = load_pixel_model(folder, options.device)
    images, labels, source = test_images(folder, model.seq_len)
    if options.complete > len(images):
        raise ValueError(f"--complete must be at most {len(images)}, got {options.complete}")
    chosen = slice(0, options.complete)
    done = complete(
        model,
        images[chosen],
        seed=options.seed,
        temperature=options.temperature,
        labels=labels[chosen],
        max_batch=options.max_batch,
        progress=progress,
    )
    say(source)
    figure = completion_figure(images[chosen], done, given_rows=given_rows(images))
    return len(done), png_bytes(figure)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a function that moves a bar on standard error to (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
