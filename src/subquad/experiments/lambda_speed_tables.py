"""What lambda-speed says of its numbers: tables, ratios beside the paper's, and verdicts."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from subquad.bench.timing import FEWEST_ROUNDS
from subquad.experiments.report import NONE, number
from subquad.experiments.spec import Json

TRAINING, INFERENCE = "training", "inference"
PLACES = "where lambdas stand"
Judged = Literal["more", "less", "tie"]


class Ratio(NamedTuple):
    """One network's number over another's.

    A tie where the quartiles of both overlap, or are those of fewer than three rounds.
    """

    value: float
    judged: Judged

    def __str__(self) -> str:
        """Return two decimals, and whether it is a tie."""
        return f"{self.value:.2f}" + (" (tie)" if self.judged == "tie" else "")


class Claimed(NamedTuple):
    """Two networks that the paper compares; ``paper`` is its ratio of times in ``which`` pass."""

    claim: str
    first: Json
    second: Json
    which: str
    paper: float | None


def speed_tables(rows: Sequence[Json], batch_size: int) -> list[Json]:
    """Return a table for each comparison, and the one of ratios beside the paper's."""
    found = []
    for title in dict.fromkeys(row["comparison"] for row in rows):
        own = [row for row in rows if row["comparison"] == title]
        found.append(
            {
                "title": f"{title}: seconds for 1,000 images",
                "head": ["", "px", "parameters, M", "GMAC", "training, s", "inference, s",
                         "spread, %", "training, GMAC/s", "inference, GMAC/s",
                         f"peak of a step of {batch_size}, GB", "paper: top-1, %", "paper's speed"],
                "lines": [_line(row) for row in own],
                "note": "GMAC/s: those of one forward pass a second, in training too. Spread: the "
                "quartiles' distance over the median, the larger of both. Peak: beyond weights, "
                "momenta and images.",
            }
        )  # fmt: skip
    lines = [
        [c.claim, *(str(ratio(c, what) or NONE) for what in ("multiply_adds", TRAINING, INFERENCE)),
         NONE if c.paper is None else f"{c.paper:.2f} ({c.which})"]
        for c in claimed(rows)
    ]  # fmt: skip
    if lines:
        head = ["", "multiply-adds", "training time", "inference time", "the paper's time"]
        found.append({"title": "One over the other", "head": head, "lines": lines})
    return found


def claimed(rows: Sequence[Json]) -> Iterator[Claimed]:
    """Yield what the paper compares, of the networks that were measured."""
    by_label = {row["label"]: row for row in rows}
    base = by_label.get("resnet50-CCCC")
    for row in rows:
        if base and row["comparison"] == PLACES and row is not base:
            paper = _rate(base, row)
            yield Claimed(f"{row['label']} over CCCC", row, base, INFERENCE, paper)
    for row in rows:
        depth = row["comparison"].removeprefix("depth ")
        if row["label"] == f"LambdaResNet {depth}":
            for kind in ("ResNet", "ResNet + SE"):
                other = by_label[f"{kind} {depth}"]
                claim = f"{row['label']} over {kind}"
                yield Claimed(claim, row, other, INFERENCE, _rate(other, row))
    for row in rows:
        if row["kind"] == "EfficientNet":
            other = _partner(rows, row)
            paper = row["paper"]["training_seconds"] / other["paper"]["training_seconds"]
            claim = f"{row['label']} over {other['label']}"
            yield Claimed(claim, row, other, TRAINING, paper)


def ratio(claim: Claimed, what: str) -> Ratio | None:
    """Return the first's number over the second's; None where one was not measured."""
    first, second = claim.first, claim.second
    if what not in first or what not in second:
        return None
    a, b = first[what], second[what]
    if not isinstance(a, dict):
        return Ratio(a / b, "tie" if a == b else "more" if a > b else "less")
    return ratio_of(a, b)


def ratio_of(a: Json, b: Json) -> Ratio:
    """Return the ratio of two medians, of dicts with median, quartiles and count."""
    value = a["median"] / b["median"]
    is_within = a["q25"] <= b["q75"] and b["q25"] <= a["q75"]
    if is_within or min(a["count"], b["count"]) < FEWEST_ROUNDS:
        return Ratio(value, "tie")
    return Ratio(value, "more" if value > 1 else "less")


def verdicts(rows: Sequence[Json]) -> list[str]:
    """Return what the numbers say of the paper's claims, a sentence or two each."""
    claims = list(claimed(rows))
    return [
        *_on_pairs([c for c in claims if c.first["kind"] == "EfficientNet"]),
        *_on_depths([c for c in claims if c.first["comparison"].startswith("depth")]),
        *_on_placements([c for c in claims if c.first["comparison"] == PLACES]),
    ]


def _on_pairs(claims: Sequence[Claimed]) -> Iterator[str]:
    if not claims:
        return
    said = []
    for words, what in (
        ("multiply-adds", "multiply_adds"), ("training time", TRAINING),
        ("inference time", INFERENCE),
    ):  # fmt: skip
        found = [x for x in (ratio(c, what) for c in claims) if x is not None]
        if found:
            said.append(f"in {words} {_range(found)}: {_holds(found, 'more')}")
    paper = [Ratio(c.paper, "more") for c in claims if c.paper is not None]
    doubt = (
        " Which LambdaResNet a point of the paper's figure is, is probable only."
        if any(c.first["paper"]["is_probable"] for c in claims)
        else ""
    )
    yield (
        "Equal accuracy: the paper has EfficientNets slower to train than LambdaResNets of their "
        f"accuracy, {_range(paper)} times. Here, EfficientNet over LambdaResNet, "
        f"{'; '.join(said)}.{doubt}"
    )


def _on_depths(claims: Sequence[Claimed]) -> Iterator[str]:
    for kind in ("ResNet + SE", "ResNet"):
        own = [c for c in claims if c.second["kind"] == kind]
        said = []
        for what in (TRAINING, INFERENCE):
            found = [x for x in (ratio(c, what) for c in own) if x is not None]
            if found:
                count = sum(x.judged != "more" for x in found)
                held = f"no slower in {count} of {len(found)}"
                said.append(f"{what} takes {_range(found)} times as long ({held})")
        paper = [Ratio(c.paper, "more") for c in own if c.paper is not None]
        if said:
            known = f"; the paper's inference {_range(paper)}" if paper else ""
            yield f"Equal depth: LambdaResNet over {kind}, {', '.join(said)}{known}."


def _on_placements(claims: Sequence[Claimed]) -> Iterator[str]:
    said = [
        f"{c.first['label']} {found.value:.2f}"
        + ("" if c.paper is None else f" (the paper {c.paper:.2f})")
        for c in claims
        if (found := ratio(c, INFERENCE)) is not None
    ]
    if said:
        yield f"Placement: inference over that of resnet50-CCCC: {', '.join(said)}."


def _range(found: Sequence[Ratio]) -> str:
    low, high = min(x.value for x in found), max(x.value for x in found)
    return f"{low:.2f}" if len(found) == 1 else f"{low:.2f} to {high:.2f}"


def _holds(found: Sequence[Ratio], wanted: Judged) -> str:
    count = sum(x.judged == wanted for x in found)
    if count == len(found):
        return "the claim holds"
    return f"the claim holds in {count} of {len(found)}" if count else "the claim does not hold"


def _partner(rows: Sequence[Json], row: Json) -> Json:
    number = row["paper"]["pair"]
    return next(x for x in rows if x["kind"] == "LambdaResNet" and x["paper"].get("pair") == number)


def _rate(over: Json, under: Json) -> float | None:
    """Return the paper's ratio of inference times, from images a second."""
    rates = [x["paper"].get("images_per_second") for x in (over, under)]
    return None if None in rates else float(rates[0] / rates[1])


def _line(row: Json) -> list[str]:
    giga = row["multiply_adds"] / 1e9
    times = [row.get(which) for which in (TRAINING, INFERENCE)]
    spreads = [100 * (t["q75"] - t["q25"]) / t["median"] for t in times if t]
    paper, peak = row["paper"], row.get("peak_bytes")
    speed = NONE
    if "training_seconds" in paper:
        speed = f"{paper['training_seconds']:g} s a step of 1,024"
    elif "images_per_second" in paper:
        speed = f"{paper['images_per_second']:,} images/s, inference"
    return [
        row["label"],
        str(row["image_size"]),
        f"{row['parameters'] / 1e6:.2f}",
        f"{giga:.3f}",
        *(number(t["median"]) if t else NONE for t in times),
        f"{max(spreads):.0f}" if spreads else NONE,
        *(number(1000 * giga / t["median"]) if t else NONE for t in times),
        NONE if peak is None else f"{peak / 1e9:.2f}",
        f"{paper['accuracy']:g}" if "accuracy" in paper else NONE,
        speed,
    ]
