"""What ``subquad approx`` found, as tables; and how many features a wanted error takes."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from subquad.bench.tables import Table

Json = dict[str, Any]
NOTE = (
    "Shares of the norm of what is approximated. Kernel: the estimate before it is divided by its "
    "own sum over keys; weights: after. Bias and spread (the root of the variance) are over draws "
    "of the directions, the error is the median draw's. Lemma 2: the kernel's spread for iid "
    "directions."
)


class Need(NamedTuple):
    """How many features a kind needs for an error; ``how`` says where the number comes from."""

    kind: str
    num_features: int | None
    how: Literal["measured", "extrapolated", "not reached"]


def target(rows: Sequence[Json]) -> str:
    """Return what the error is of: the output, or the weights where there were no values."""
    return "output" if any("output" in row for row in rows) else "weights"


def features_needed(rows: Sequence[Json], error: float) -> list[Need]:
    """Return the number of features with which each kind's error is at most ``error``.

    Between two numbers that were measured, a straight line on logarithmic axes; beyond the last,
    the error is taken to fall with the square root. Regularised features, whose error need not go
    to 0, are not extrapolated.
    """
    which, found = target(rows), []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        points = [
            (row["num_features"], row[which]["error"])
            for row in rows
            if row["kind"] == kind and row[which]["error"] is not None
        ]
        found.append(_need(kind, points, error))
    return found


def _need(kind: str, points: Sequence[tuple[int, float]], error: float) -> Need:
    for i, (count, value) in enumerate(points):
        if value > error:
            continue
        if i == 0 or value == error or value == 0:
            return Need(kind, count, "measured")
        before, worse = points[i - 1]
        share = math.log(worse / error) / math.log(worse / value)
        between = before * (count / before) ** share
        return Need(kind, min(count, math.ceil(between - 1e-9)), "measured")
    if not points or kind.startswith("regularized"):
        return Need(kind, None, "not reached")
    last, value = points[-1]
    return Need(kind, math.ceil(last * (value / error) ** 2), "extrapolated")


def approximation_tables(result: Json, error: float) -> list[Table]:
    """Return the tables of a result as its file holds it; at least one row is needed."""
    rows, which = result["rows"], target(result["rows"])
    has_output = which == "output"
    header: tuple[str, ...] = (
        "features", "kind", "bias", "spread", "Lemma 2", "weights: error",
    )  # fmt: skip
    lines = [
        (
            f"{row['num_features']:,}", row["kind"], _root(row["kernel"]["bias_squared"]),
            _root(row["kernel"]["variance"]), _root(row["kernel"]["iid_variance"]),
            _share(row["weights"]["error"]),
            *((_root(row["output"]["bias_squared"]), _root(row["output"]["variance"]),
               _share(row["output"]["error"])) if has_output else ()),
        )
        for row in rows
    ]  # fmt: skip
    if has_output:
        header = (*header, "output: bias", "spread", "error")
    needs = [
        (need.kind, "" if need.num_features is None else f"{need.num_features:,}", need.how)
        for need in features_needed(rows, error)
    ]
    found = [
        Table(title=_title(result), header=header, rows=lines, note=NOTE),
        Table(
            title=f"features for an error of {error:g} in the {which}",
            header=("kind", "features", "how"),
            rows=needs,
        ),
    ]
    if result["left_out"]:
        left = [(x["directions"], x["reason"]) for x in result["left_out"]]
        found.append(Table(title="left out", header=("what", "reason"), rows=left))
    return found


def _title(result: Json) -> str:
    facts = result["inputs"]
    squares = (facts["mean_squared_query"], facts["mean_squared_key"])
    lengths = " and ".join("infinite" if x is None else f"{x:.3g}" for x in squares)
    return (
        f"{facts['source']}: q {tuple(facts['q'])}, k {tuple(facts['k'])}; after the scale their "
        f"mean squared lengths are {lengths}"
    )


def _root(value: float | None) -> str:
    """Write the root of a squared share; what chance made negative is 0."""
    return "too large" if value is None else _share(math.sqrt(max(value, 0.0)))


def _share(value: float | None) -> str:
    if value is None:
        return "too large"
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
