"""The tables in the report of ``subquad train-images``."""

import numpy as np
from numpy.typing import NDArray

from subquad.data.image_folder import FolderImages
from subquad.experiments.report import number
from subquad.experiments.spec import Json

TOP = 5  # accuracy among so many classes, where there are more
LISTED = 100  # classes in the table


def summary(results: Json) -> Json:
    """Return the table of what was measured."""
    lines = [
        ("test images", "test_images"),
        ("share of them told right", "test_accuracy"),
        (f"share with the class among {TOP}", f"test_accuracy_top{TOP}"),
        ("test nats", "test"),
        ("parameters", "parameters"),
        ("training steps", "steps"),
        ("passes over the training images", "epochs"),
        ("training minutes", "minutes"),
        ("training images a second", "train_images_per_second"),
    ]
    return {
        "title": "Measured in this run",
        "head": ["", results["model"]],
        "lines": [[words, number(results[key])] for words, key in lines if key in results],
        "note": f"{results['data']}. Recipe {results['recipe']} ({results['recipe_source']}).",
    }


def by_class(read: FolderImages, right: NDArray[np.bool_]) -> Json:
    """Return the table of classes, those that are told worst first."""
    images, rows = read.images, []
    for label, name in enumerate(read.classes):
        of_class = images.test_labels == label
        share = float(right[of_class].mean()) if of_class.any() else None
        trained = int((images.train_labels == label).sum())
        rows.append((1.0 if share is None else share, name, trained, int(of_class.sum()), share))
    rows.sort(key=lambda row: (row[0], row[1]))
    note = f"The {LISTED} worst of {len(rows)}." if len(rows) > LISTED else ""
    return {
        "title": "Class by class",
        "head": ["class", "training images", "test images", "share told right"],
        "lines": [
            [name, f"{trained:,}", f"{tested:,}", "" if share is None else number(share)]
            for _, name, trained, tested, share in rows[:LISTED]
        ],
        "note": note,
    }
