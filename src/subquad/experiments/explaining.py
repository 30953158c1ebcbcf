"""What a trained Vision Transformer looks at, on given pictures: figures and numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from subquad.experiments.sampling import pick_device
from subquad.models.insight import Insight, check_implies_attention, look
from subquad.models.insight_tables import filter_components, position_similarity
from subquad.models.vision_transformer import VisionTransformer
from subquad.plots import png_bytes
from subquad.plots.insight import (
    distance_figure,
    filters_figure,
    heads_figure,
    positions_figure,
    rollout_figure,
)
from subquad.tasks.classifier import Classifier, load_classifier
from subquad.tasks.config import Device

Json = dict[str, Any]
Drawn = tuple[Json, tuple[str, ...], tuple[Figure, ...]]  # numbers; of each figure a line and it
Pictures = NDArray[np.uint8]

DIGITS = 6  # of the numbers that are written
ROUNDING = 1e-6  # a share of negative weights below it is none
MOST_PICTURES = 48  # that are drawn; the numbers are of all
DEFINITIONS = {
    "distance_pixels": "a list a layer, a number a head: mean over patches i and images of "
    "sum_j A_ij D_ij, D the pixels between centres of patches, the class token dropped and rows "
    "normalised anew",
    "class_share": "what patches give to the class token, mean over patches and images",
    "negative_share": "negative weights as a share of the sizes of all; where there are any, "
    "distance, class_share and rollout are of |A_ij| / sum_j |A_ij|",
    "rollout": "a grid an image: shares of the patches in what the head sees, by the product over "
    "layers of (mean_h A + I) / 2, without the class token",
    "weight_similarity": "cosine of two heads' weights of a query, mean over queries and images",
    "output_similarity": "linear CKA of two heads' outputs over all tokens of all images",
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Pictures by file name, each as PNG bytes with a line that reads it; all numbers; what is
    left out, by file name, and why.
    """

    pictures: dict[str, tuple[bytes, str]]
    numbers: Json
    omitted: dict[str, str]


def load_vision_transformer(folder: Path, device: Device) -> Classifier:
    """Return the trained classifier of ``folder``, on its device.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder holds another kind of model.
    """
    where = pick_device(device)
    classifier = load_classifier(folder)
    if not isinstance(classifier.model, VisionTransformer):
        raise ValueError(
            f"{folder} must hold a VisionTransformer to be explained, "
            f"got a {type(classifier.model).__name__}"
        )
    classifier.model.to(where)
    return classifier


def explain(classifier: Classifier, pictures: Pictures, names: Sequence[str]) -> Explanation:
    """Measure the classifier's model on pictures (N, H, W, C), and draw what was found.

    What a model has not is left out, with the reason: attention where a mixer implies none, filters
    of a stem of features, positions without tables.

    Args:
        classifier: of a ``VisionTransformer``.
        pictures: bytes of the size that the classifier takes.
        names: of the pictures.

    Raises:
        ValueError: if the pictures do not fit, nothing can be drawn, or the model gives no numbers
            (its weights are NaN).
    """
    model = classifier.model
    assert isinstance(model, VisionTransformer)
    sides = classifier.labels.image_size
    numbers: Json = {
        "images": _guesses(classifier, pictures, names),
        "image_size": list(sides),
        "patch_size": model.patch_size,
        "grid": [side // model.patch_size for side in sides],
        "mixers": [type(block.mixer).__name__ for block in model.blocks],
    }
    drawn: dict[str, tuple[bytes, str]] = {}
    omitted: dict[str, str] = {}
    for part, (check, draw, files) in PARTS.items():
        try:
            check(model)
        except (TypeError, ValueError) as error:
            omitted |= dict.fromkeys(files, str(error))
            continue
        numbers[part], lines, figures = draw(classifier, pictures, numbers["images"])
        for file, line, figure in zip(files, lines, figures, strict=True):
            drawn[file] = (png_bytes(figure), line)
    if not drawn:
        raise ValueError(f"nothing can be drawn of this model: {'; '.join({*omitted.values()})}")
    return Explanation(pictures=drawn, numbers={**numbers, "omitted": omitted}, omitted=omitted)


def _guesses(classifier: Classifier, pictures: Pictures, names: Sequence[str]) -> list[Json]:
    # One by one, as attention is looked at: many large pictures at once take much memory.
    shares = classifier.probabilities(pictures, batch_size=1)
    for name, row in zip(names, shares, strict=True):
        if not row.isfinite().all():
            raise ValueError(
                f"model must give each class a finite probability, got NaN for {name}: "
                "did its training go bad?"
            )
    best, classes = shares.argmax(1).tolist(), classifier.labels.classes
    return [
        {"file": name, "class": classes[k], "probability": _rounded(row[k])}
        for name, k, row in zip(names, best, shares, strict=True)
    ]


def _attention(classifier: Classifier, pictures: Pictures, images: list[Json]) -> Drawn:
    model: Any = classifier.model
    seen = look(model, classifier.prepared(pictures).to(next(model.parameters()).device))
    height, width = classifier.labels.image_size
    labels = [f"{Path(i['file']).name}\n{i['class']} {100 * i['probability']:.0f}%" for i in images]
    rollout = seen.rollout.double().cpu().numpy()
    figures = (
        distance_figure(
            _arrays(seen.distance), uniform=seen.uniform_distance,
            image_size=f"{height} x {width}",
        ),
        rollout_figure(pictures[:MOST_PICTURES], rollout[:MOST_PICTURES], labels[:MOST_PICTURES]),
        heads_figure(_arrays(seen.weight_similarity), _arrays(seen.output_similarity)),
    )  # fmt: skip
    numbers: Json = {
        "uniform_distance_pixels": _rounded(seen.uniform_distance),
        "distance_pixels": _rounded(seen.distance),
        **{name: _rounded(getattr(seen, name)) for name in DEFINITIONS if name in seen._fields},
        "definitions": DEFINITIONS,
    }
    return numbers, (_far(seen), _rolled(rollout), _alike(seen)), figures


def _far(seen: Insight) -> str:
    heads = torch.cat(seen.distance)
    heads = heads[~heads.isnan()]
    if not len(heads):
        return "no head looks at a patch"
    first, last = (float(seen.distance[layer].nanmean()) for layer in (0, -1))
    line = (
        f"heads look {float(heads.min()):.1f} to {float(heads.max()):.1f} pixels far, on average "
        f"{first:.1f} in the first layer and {last:.1f} in the last; one that weighs all patches "
        f"alike {seen.uniform_distance:.1f}"
    )
    negative = float(torch.cat(seen.negative_share).max())
    if negative > ROUNDING:
        line += f"; up to {100 * negative:.0f}% of a head's weights are negative, taken by size"
    return line


def _rolled(rollout: NDArray[np.float64]) -> str:
    flat = -np.sort(-rollout.reshape(len(rollout), -1), axis=1)
    count = max(1, round(flat.shape[1] / 10))
    share = 100 * float(flat[:, :count].sum(1).mean())
    more = f"; the first {MOST_PICTURES} of {len(flat)} pictures are drawn"
    return (
        f"the {count} strongest of {flat.shape[1]} patches hold {share:.0f}% of the rollout "
        f"({100 * count / flat.shape[1]:.0f}% if all were alike)"
        f"{more if len(flat) > MOST_PICTURES else ''}"
    )


def _alike(seen: Insight) -> str:
    means = []
    for matrices in (seen.weight_similarity, seen.output_similarity):
        pairs = [m[~torch.eye(len(m), dtype=torch.bool, device=m.device)] for m in matrices]
        means.append(torch.cat(pairs))
    if not len(means[0]):
        return "one head a layer has none to be compared with"
    return (
        f"two heads of a layer are alike by {float(means[0].mean()):.2f} in where they look "
        f"(cosine) and {float(means[1].mean()):.2f} in what they put out (CKA), on average; "
        "1 is the same"
    )


def _filters(classifier: Classifier, pictures: Pictures, images: list[Json]) -> Drawn:
    model: Any = classifier.model
    found = filter_components(model)
    shares = found.shares.double().cpu().numpy()
    figure = filters_figure(found.filters.double().cpu().numpy(), shares)
    most = min(3, len(shares))
    line = (
        f"{most} of the {len(shares)} components drawn hold {100 * shares[:most].sum():.0f}% of "
        f"the filters' variance, all of them {100 * shares.sum():.0f}%"
    )
    return {"variance_shares": _rounded(found.shares)}, (line,), (figure,)


def _positions(classifier: Classifier, pictures: Pictures, images: list[Json]) -> Drawn:
    model: Any = classifier.model
    similarity = position_similarity(model).double().cpu().numpy()
    places: Any = np.indices(similarity.shape, np.int32, sparse=True)
    i, j, k, m = places
    groups = {
        "neighbours": np.abs(i - k) + np.abs(j - m) == 1,
        "same row": (i == k) & (j != m),
        "same column": (i != k) & (j == m),
        "elsewhere": (i != k) & (j != m),
    }
    means = {name: similarity[group].mean() for name, group in groups.items() if group.any()}
    said = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
    line = f"mean cosine with other patches: {said}" if said else "there is but one patch"
    means = {name: _rounded(float(value)) for name, value in means.items()}
    return {"mean_cosine": means}, (line,), (positions_figure(similarity),)


def _arrays(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    return [tensor.double().cpu().numpy() for tensor in tensors]


def _rounded(value: Any) -> Any:
    """Return numbers, tensors and sequences of them as JSON takes them; NaN becomes null."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return None if value != value else float(f"{value:.{DIGITS}g}")


# Of each part: what refuses a model that has it not, what draws it, and its files.
PARTS: dict[str, tuple[Callable[[Any], Any], Callable[..., Drawn], tuple[str, ...]]] = {
    "attention": (
        check_implies_attention, _attention, ("attention-distance.png", "rollout.png", "heads.png")
    ),
    "filters": (filter_components, _filters, ("filters.png",)),
    "positions": (position_similarity, _positions, ("positions.png",)),
}  # fmt: skip
