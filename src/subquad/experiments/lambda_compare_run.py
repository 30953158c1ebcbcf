"""The rows of lambda-compare: each layer in all stages, then convolutions and lambdas mixed."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from subquad.bench.image_job import training_peak
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.lambda_options import LAYERS, LambdaCompareOptions
from subquad.experiments.lambda_rows import (
    Pictures,
    class_task,
    costs,
    load_sets,
    margin,
    points,
    small_resnet,
)
from subquad.experiments.lambda_tables import COMPARED, beside_layer
from subquad.experiments.language_options import listed
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.experiments.vit_rows import image_job
from subquad.plots import Point, tradeoff_figure
from subquad.tasks.classification import ClassificationTask

CONVOLUTION = "convolution"
LAMBDAS = ("lambda", "lambda u4 r7")
FIGURES = {
    "multiply_adds": ("multiply-adds of an image, millions", 1e-6),
    "minutes": ("minutes of training and tests", 1.0),
}


def run_lambda_compare(options: LambdaCompareOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    sets = load_sets(options, options.drawings)
    rows = run_rows("lambda-compare", compare_rows(options, sets), options, folder, say)
    figures = {}
    for key, (xlabel, factor) in FIGURES.items():
        file = f"figures/accuracy-{key.replace('_', '-')}.png"
        write_figure(folder, file, _figure(rows, key, xlabel, factor))
        figures[file] = f"Accuracy against {xlabel}"
    sources = "; ".join(f"{found.group}: {found.images.source}" for found in sets)
    notes = [
        f"Data: {sources}. All rows of a set see the same images in the same order, equally many; "
        "minutes hold what is measured besides.",
        *(line for found in sets for line in verdict(rows, found.group, len(found.images.test))),
        "Peak memory is that of one training step beyond weights and images.",
        ONE_SEED,
    ]
    paper = {"paper": COMPARED}
    return combined(rows, folder, figures) | {"data": sources, "notes": notes} | paper


def compare_rows(options: LambdaCompareOptions, sets: Sequence[Pictures]) -> list[Row]:
    """Return the rows of each set: the layers, then the placements."""
    layers = [(name, 3 * LAYERS[name][0], LAYERS[name][1]) for name in listed(options.layers)]
    words: list[tuple[str, str, Json]] = [(word, word, {}) for word in listed(options.placements)]
    return [
        Row(
            group=found.group,
            label=label,
            build=partial(_task, options, found, word, changed),
            train=train_config(options),
            facts=beside_layer(label),
            measure=partial(_measures, options, found),
        )
        for found in sets
        for label, word, changed in layers + words
    ]


def verdict(rows: Sequence[Json], group: str, test_images: int) -> list[str]:
    """Return a sentence for each network of lambda layers: accuracy and size beside convolution's.

    A difference within two standard errors of the test images counts as a tie.
    """
    own = {row["label"]: row for row in rows if row["group"] == group and "failed" not in row}
    said = []
    for label in LAMBDAS:
        if label not in own or CONVOLUTION not in own:
            continue
        row, base = own[label], own[CONVOLUTION]
        more, tie = row["test_accuracy"] - base["test_accuracy"], margin((row, base), test_images)
        judged = "a tie" if abs(more) <= tie else "better" if more > 0 else "worse"
        share = row["parameters"] / base["parameters"]
        fewer = share < 1
        holds = "holds" if fewer and judged != "worse" else "does not hold"
        said.append(
            f"{group}: {label} in all stages has {row['parameters']:,} parameters, {share:.2f} "
            f"times those of convolutions, and {points(more)} points of accuracy ({judged}: two "
            f"standard errors of the {test_images:,} test images are {100 * tie:.2f}). That it is "
            f"at least as good with fewer parameters {holds} here."
        )
    return said


def _task(
    options: LambdaCompareOptions, found: Pictures, word: str, changed: Json
) -> ClassificationTask:
    return class_task(options, found, small_resnet(options, found, word, changed))


def _measures(
    options: LambdaCompareOptions, found: Pictures, task: ClassificationTask, folder: Path
) -> Json:
    measured = costs(options, found, task, folder)
    if not options.has_memory:
        return measured
    shape = tuple(task.batch(0)[0].shape)
    peak = training_peak(image_job(task.model, shape, train_config(options)))
    return measured if peak is None else {**measured, "peak_bytes": peak}


def _figure(rows: Sequence[Json], key: str, xlabel: str, factor: float) -> Figure:
    panels = {
        group: [
            Point(label=row["label"], x=factor * row[key], y=100 * row["test_accuracy"])
            for row in rows
            if row["group"] == group and "failed" not in row
        ]
        for group in dict.fromkeys(row["group"] for row in rows)
    }
    return tradeoff_figure(
        panels, xlabel=xlabel, ylabels=dict.fromkeys(panels, "test images right, %")
    )
