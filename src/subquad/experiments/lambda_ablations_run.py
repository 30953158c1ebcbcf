"""The rows of lambda-ablations: the network of all lambda layers, one thing changed in each."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.lambda_options import ABLATIONS, LambdaAblationsOptions
from subquad.experiments.lambda_rows import (
    Pictures,
    class_task,
    costs,
    load_sets,
    margin,
    points,
    small_resnet,
)
from subquad.experiments.lambda_tables import beside_ablation
from subquad.experiments.lambda_variants import ablate
from subquad.experiments.language_options import listed
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, run_rows
from subquad.experiments.spec import Json, Say
from subquad.tasks.classification import ClassificationTask

DEFAULT = "default"


def run_lambda_ablations(options: LambdaAblationsOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    found = load_sets(options)[0]
    rows = run_rows("lambda-ablations", ablation_rows(options, found), options, folder, say)
    sizes = options.network
    notes = [
        f"Data: {found.images.source}. All rows see the same images in the same order, equally "
        f"many. Default: k = {sizes.head_dim}, h = {sizes.num_heads}, u = 1, a scope of "
        f"{sizes.window} x {sizes.window}, softmax on keys, batch-norm on queries and values.",
        "The paper's column is ResNet-50's on ImageNet; but for the default's, k 8's and u 4's the "
        "numbers were not read in the paper itself.",
        *differences(rows, len(found.images.test)),
        ONE_SEED,
    ]
    return combined(rows, folder, {}) | {"data": found.images.source, "notes": notes}


def ablation_rows(options: LambdaAblationsOptions, found: Pictures) -> list[Row]:
    """Return the rows, in the order that the options name them."""
    return [
        Row(
            group=found.group,
            label=name,
            build=partial(_task, options, found, ABLATIONS[name]),
            train=train_config(options),
            facts=beside_ablation(name),
            measure=partial(costs, options, found),
        )
        for name in listed(options.ablations)
    ]


def differences(rows: Sequence[Json], test_images: int) -> list[str]:
    """Return a sentence on which rows are apart from the default, if it is there."""
    own = {row["label"]: row for row in rows if "failed" not in row}
    if DEFAULT not in own or len(own) < 2:
        return []
    base, said, ties = own[DEFAULT], [], []
    for label, row in own.items():
        more = row["test_accuracy"] - base["test_accuracy"]
        if abs(more) > margin((row, base), test_images):
            said.append(f"{label} {points(more)}")
        elif label != DEFAULT:
            ties.append(label)
    apart = f"points of accuracy over the default: {', '.join(said)}. " if said else ""
    tied = f"Ties: {', '.join(ties)}." if ties else ""
    return [f"Beyond two standard errors of the test images, {apart or 'none. '}{tied}".rstrip()]


def _task(options: LambdaAblationsOptions, found: Pictures, changed: Json) -> ClassificationTask:
    model = small_resnet(options, found, "LLL", {})
    ablate(model, **changed)
    return class_task(options, found, model)
