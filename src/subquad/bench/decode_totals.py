"""From steps at sampled positions to whole generations, and from these to speed-ups."""

from itertools import pairwise

from subquad.bench.results import Json, Report


def positions(seq_len: int, count: int) -> list[int]:
    """Return ``count`` positions from 1 to ``seq_len`` - 1, evenly spread, ends included."""
    last = max(1, seq_len - 1)
    return sorted({1 + round(i * (last - 1) / (count - 1)) for i in range(count)})


def integrate(points: list[tuple[int, float]], seq_len: int) -> float:
    """Return the sum over positions 1 .. ``seq_len`` - 1, by the trapezoid rule."""
    inner = sum((p1 - p0) * (s0 + s1) / 2 for (p0, s0), (p1, s1) in pairwise(points))
    # The trapezoids run from the middle of the first position to the middle of the last.
    return inner + (points[0][1] + points[-1][1]) / 2


def speedups(report: Report) -> list[Json]:
    """Return images/s of linear over those of the others, for each model and batch."""
    rates = {
        (x["model"], x["batch"], x["mixer"]): x["images_per_second"]
        for x in report.summary
        if "images_per_second" in x
    }
    return [
        {"model": model, "batch": batch, "over": mixer, "times": rates[model, batch, "linear"] / r}
        for (model, batch, mixer), r in rates.items()
        if not mixer.startswith("linear") and (model, batch, "linear") in rates
    ]
