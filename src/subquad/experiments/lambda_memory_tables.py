"""What lambda-memory says of its numbers: tables beside the paper's, exponents, verdicts."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import linear_regression

from subquad.bench import tables
from subquad.bench.image_layers import BOTH, FORWARD, LAYERS, STACKED, STACKS
from subquad.experiments.lambda_memory import PAPER, PAPER_BATCH, PAPER_LAYERS
from subquad.experiments.lambda_speed_tables import ratio_of
from subquad.experiments.report import NONE, number
from subquad.experiments.spec import Json

EINSUM, AUTO, AXIAL = "lambda, einsum", "lambda", "axial attention"
SHARED = "three lambdas, einsum, shared embeddings"
# Inference the faster, the paper says: the first over the second.
FASTER = (
    (AUTO, "local attention 7 x 7"), (AUTO, AXIAL), ("lambda, half of k", AUTO),
    ("lambda 7 x 7", "local attention 7 x 7"),
)  # fmt: skip
SLOPES = {"n^2": 2.0, "n sqrt(n)": 1.5, "n m": 1.0}


def find(rows: Sequence[Json], layer: str, side: int, which: str) -> Json | None:
    """Return the row of a layer at a side in a pass, or None."""
    wanted = (layer, side, which)
    return next((r for r in rows if (r["layer"], r["side"], r["pass"]) == wanted), None)


def memory_by_the_image(rows: Sequence[Json], layer: str, side: int, batch: int) -> Json | None:
    """Split a layer's peak, forward and backward, into what is fixed and what an image adds.

    ``of_paper_batch`` is what the paper's number of images would take in three layers; of a single
    layer it is three times that of one.
    """
    row = find(rows, layer, side, BOTH)
    if row is None or row.get("peak_bytes_of_half") is None:
        return None
    half = row["peak_bytes_of_half"]
    an_image = max(0.0, (row["peak_bytes"] - half) / (batch - batch // 2))
    fixed = max(0.0, row["peak_bytes"] - batch * an_image)
    layers = 1 if layer in STACKS else STACKED
    return {
        "fixed": fixed, "an_image": an_image,
        "of_paper_batch": layers * (fixed + PAPER_BATCH * an_image),
    }  # fmt: skip


def growth(rows: Sequence[Json], base_side: int) -> list[Json]:
    """Return the log-log slopes of time and memory against tokens, from the base side on."""
    found = []
    for layer in LAYERS:
        own = [
            row
            for row in rows
            if row["layer"] == layer and row["pass"] == BOTH and row["side"] >= base_side
        ]
        slopes = {
            key: _slope([(row["side"] ** 2, row[key]) for row in own if row.get(key)])
            for key in ("median", "peak_bytes")
        }
        if slopes["median"] is not None:
            found.append({"layer": layer, "points": len(own), **slopes})
    return found


def memory_tables(
    rows: Sequence[Json], by_image: Mapping[str, Json], growths: Sequence[Json], base_side: int
) -> list[Json]:
    """Return the table beside the paper's, one a side, and that of exponents."""
    found = [_beside_the_paper(rows, by_image, base_side)]
    for side in dict.fromkeys(row["side"] for row in rows):
        if side != base_side:
            lines = [_line(rows, layer, side) for layer in LAYERS]
            found.append(
                {"title": f"{side} x {side}", "head": _HEAD, "lines": [x for x in lines if x]}
            )
    if growths:
        lines = [
            [x["layer"], str(x["points"]), f"{x['median']:.2f}", _or_none(x["peak_bytes"]),
             _or_none(_paper_slope(x["layer"]))]
            for x in growths
        ]  # fmt: skip
        found.append(
            {"title": "Exponents of growth with tokens, forward and backward",
             "head": ["", "sides", "time", "memory", "the paper's space"], "lines": lines,
             "note": f"Slopes in log-log, from {base_side} x {base_side} on."}
        )  # fmt: skip
    return found


_HEAD = [
    "", "form", "forward, images/s", "both, images/s", "spread, %", "forward, peak", "both, peak",
]  # fmt: skip


def memory_verdicts(
    rows: Sequence[Json],
    by_image: Mapping[str, Json],
    growths: Sequence[Json],
    base_side: int,
    batch: int,
) -> list[str]:
    """Return what the numbers say of the paper's claims."""
    return [
        *_on_order(by_image),
        *_on_crossing(by_image),
        *_on_forms(rows, base_side),
        *_on_sharing(rows, base_side),
        *_on_rates(rows, base_side),
        *_on_growth(growths),
    ]


def _on_order(by_image: Mapping[str, Json]) -> Iterator[str]:
    order = [name for name in _by_paper() if name in by_image]
    if len(order) < 2:
        return
    needs = [by_image[name]["of_paper_batch"] for name in order]
    held = all(a > b for a, b in itertools.pairwise(needs))
    said = ", ".join(f"{name} {_size(need)}" for name, need in zip(order, needs, strict=True))
    yield (
        f"Memory of three layers and {PAPER_BATCH} images, extrapolated, in the paper's order: "
        f"{said}. The order is {'the same here' if held else 'another one here'}."
    )


def _on_crossing(by_image: Mapping[str, Json]) -> Iterator[str]:
    if EINSUM not in by_image or AXIAL not in by_image:
        return
    lambdas, axial = by_image[EINSUM], by_image[AXIAL]
    more = axial["an_image"] - lambdas["an_image"]
    start = lambdas["fixed"] - axial["fixed"]
    if more > 0 and start > 0:
        yield (
            f"Against axial attention the einsum form needs less memory from {start / more:,.0f} "
            "images on: its embeddings of all pairs do not grow with the images."
        )
    elif more > 0:
        yield "The einsum form needs less memory than axial attention at any number of images."
    else:
        yield "The einsum form needs more memory than axial attention at any number of images."


def _on_forms(rows: Sequence[Json], side: int) -> Iterator[str]:
    einsum, auto = find(rows, EINSUM, side, BOTH), find(rows, AUTO, side, BOTH)
    if einsum and auto:
        memory = ""
        if "peak_bytes" in einsum and "peak_bytes" in auto:
            share = auto["peak_bytes"] / einsum["peak_bytes"]
            memory = f"{share:.3f} of the memory and "
        yield (
            f"AUTO takes the form {auto['form']} at {side} x {side}: {memory}"
            f"{ratio_of(auto, einsum)} of the time of the einsum form."
        )


def _on_sharing(rows: Sequence[Json], side: int) -> Iterator[str]:
    """Say what sharing saves: of parameters in any form, of memory in the einsum form."""
    for own, shared, paper in (
        ("three lambdas, einsum", SHARED, f" (the paper {PAPER_LAYERS}, of embeddings alone)"),
        ("three lambdas", "three lambdas, shared embeddings", ""),
    ):
        first, second = find(rows, own, side, BOTH), find(rows, shared, side, BOTH)
        if first and second and "peak_bytes" in first and "peak_bytes" in second:
            tables = f"{_size(first['embedding_bytes'])} to {_size(second['embedding_bytes'])}"
            yield (
                f"Sharing, {own}: peak memory falls by a factor of "
                f"{first['peak_bytes'] / second['peak_bytes']:.2f}{paper}, from "
                f"{_size(first['peak_bytes'])} to {_size(second['peak_bytes'])}; parameters of "
                f"embeddings from {tables}."
            )


def _on_rates(rows: Sequence[Json], side: int) -> Iterator[str]:
    said = []
    for first, second in FASTER:
        a, b = find(rows, first, side, FORWARD), find(rows, second, side, FORWARD)
        papers = [_paper_rate(name) for name in (first, second)]
        if a and b and None not in papers:
            theirs = papers[0] / papers[1]  # type: ignore[operator]
            said.append(f"{first} over {second} {ratio_of(b, a)} (the paper {theirs:.2f})")
    if said:
        yield (
            f"Images a second at inference, {side} x {side}: {'; '.join(said)}. The paper's are of "
            "whole networks."
        )


def _on_growth(growths: Sequence[Json]) -> Iterator[str]:
    said = []
    for x in growths:
        claimed = _paper_slope(x["layer"])
        if claimed is not None and x["peak_bytes"] is not None:
            agrees = abs(x["peak_bytes"] - claimed) <= 0.2
            words = "as the paper says" if agrees else f"the paper {claimed:g}"
            said.append(f"{x['layer']} {x['peak_bytes']:.2f} ({words})")
    auto = next((x for x in growths if x["layer"] == AUTO), None)
    if auto is not None and auto["peak_bytes"] is not None:
        said.append(f"{AUTO} {auto['peak_bytes']:.2f}, in time {auto['median']:.2f}")
    if said:
        yield f"Exponent of peak memory in tokens: {'; '.join(said)}."


def _beside_the_paper(rows: Sequence[Json], by_image: Mapping[str, Json], side: int) -> Json:
    lines = []
    for layer in (*LAYERS, *STACKS):
        line, paper, needs = _line(rows, layer, side), PAPER.get(layer), by_image.get(layer)
        if line or paper:
            row = find(rows, layer, side, BOTH)
            own = [
                _size(row["embedding_bytes"]) if row and row["embedding_bytes"] else NONE,
                *(_size(needs[key]) if needs else NONE
                  for key in ("fixed", "an_image", "of_paper_batch")),
            ]  # fmt: skip
            theirs = [paper.gigabytes, paper.images_per_second, paper.accuracy] if paper else []
            lines.append(
                [*(line or [layer, *[NONE] * (len(_HEAD) - 1)]), *own,
                 paper.space if paper else NONE,
                 *(NONE if x is None else f"{x:,g}" for x in theirs or [None] * 3)]
            )  # fmt: skip
    return {
        "title": f"{side} x {side}, beside the paper's table",
        "head": [
            *_HEAD, "tables", "fixed", "an image", f"{PAPER_BATCH} images, three layers",
            "paper: space", "paper: GB", "paper: images/s", "paper: top-1, %",
        ],
        "lines": lines,
        "note": "Fixed and an image: of the peak forward and backward, from two numbers of images. "
        f"{PAPER_BATCH} images, three layers: extrapolated, of a single layer three times one. The "
        "paper's GB count attention maps or embeddings of the three layers at 56 x 56; its "
        "images/s and accuracies are of whole networks. Tables: parameters of embeddings.",
    }  # fmt: skip


def _line(rows: Sequence[Json], layer: str, side: int) -> list[str] | None:
    passes = [find(rows, layer, side, which) for which in (FORWARD, BOTH)]
    known = [row for row in passes if row]
    if not known:
        return None
    spreads = [100 * (row["q75"] - row["q25"]) / row["median"] for row in known]
    return [
        layer,
        known[0]["form"] or NONE,
        *(number(row["images_per_second"]) if row else NONE for row in passes),
        f"{max(spreads):.0f}",
        *(_size(row["peak_bytes"]) if row and "peak_bytes" in row else NONE for row in passes),
    ]


def _by_paper() -> list[str]:
    """Return the layers of which the paper has memory, from the most on."""
    known = {name: row.gigabytes for name, row in PAPER.items() if row.gigabytes is not None}
    return sorted(known, key=lambda name: -known[name])


def _paper_rate(layer: str) -> int | None:
    names = {AUTO: EINSUM, "lambda, half of k": "lambda, half of k, einsum"}
    return PAPER[names.get(layer, layer)].images_per_second


def _paper_slope(layer: str) -> float | None:
    if layer not in PAPER:
        return None
    space = PAPER[layer].space
    return next(slope for words, slope in SLOPES.items() if space.endswith(words))


def _slope(points: Sequence[tuple[int, float | int]]) -> float | None:
    if len(points) < 2:
        return None
    x, y = ([math.log(value) for value in axis] for axis in zip(*points, strict=True))
    return linear_regression(x, y).slope


def _size(count: float | int) -> str:
    return tables.size(float(count))


def _or_none(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
