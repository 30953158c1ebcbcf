"""What the rows of ``bench attention`` mean: ratios, slopes, and where softmax is overtaken."""

import math
from collections.abc import Sequence
from itertools import pairwise

from subquad.bench.mechanisms import SOFTMAX, TORCH_FORM
from subquad.bench.results import Json, Report, Row

SLOPE_POINTS = 4  # the longest lengths; overheads flatten the shorter ones


def summarize(report: Report) -> list[Json]:
    """Add ratios to the rows of ``report`` and return one summary for each mechanism and pass.

    The torch form's time is that of its best chunk size at that length.
    """
    for row in report.rows:
        which, seq_len = row.what["pass"], row.what["seq_len"]
        softmax = report.find(mechanism=SOFTMAX, seq_len=seq_len, **{"pass": which})
        torch_form = best_torch_form(report, str(which), int(seq_len))
        if softmax is not None:
            row.more["faster_than_softmax"] = softmax.seconds.median / row.seconds.median
        if torch_form is not None:
            row.more["faster_than_torch_form"] = torch_form.seconds.median / row.seconds.median
    pairs = list(dict.fromkeys((row.what["mechanism"], row.what["pass"]) for row in report.rows))
    return [_summary(report, str(name), str(which)) for name, which in pairs]


def best_torch_form(report: Report, which: str, seq_len: int) -> Row | None:
    """Return the row of the quickest chunk size, or None if none was measured."""
    rows = [
        row
        for row in report.rows
        if row.what["pass"] == which
        and row.what["seq_len"] == seq_len
        and str(row.what["mechanism"]).startswith(TORCH_FORM)
    ]
    return min(rows, key=lambda row: row.seconds.median, default=None)


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """Return the least-squares slope of log(seconds) against log(T) over the longest lengths."""
    last = [(math.log(t), math.log(s)) for t, s in sorted(points)[-SLOPE_POINTS:]]
    if len(last) < 2:
        return None
    mean_x = sum(x for x, _ in last) / len(last)
    mean_y = sum(y for _, y in last) / len(last)
    moment = sum((x - mean_x) * (y - mean_y) for x, y in last)
    return moment / sum((x - mean_x) ** 2 for x, _ in last)


def overtakes(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> Json:
    """Say from which T on ``ours`` takes less time at every length that both were measured at.

    Returns:
        {"from": T, "is_first": bool}: T lies between two measured lengths, where the lines cross in
        the log-log figure; ``is_first`` if it leads at the shortest length already, so that the
        crossing lies at or below T. {"from": None} if it does not lead at the longest.
    """
    other = dict(theirs)
    gaps = [(t, math.log(s / other[t])) for t, s in sorted(ours) if t in other]
    if not gaps or gaps[-1][1] >= 0:
        return {"from": None, "is_first": False}
    for (t0, gap0), (t1, gap1) in reversed(list(pairwise(gaps))):
        if gap0 >= 0:
            share = gap0 / (gap0 - gap1)
            crossing = math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
            return {"from": round(crossing), "is_first": False}
    return {"from": gaps[0][0], "is_first": True}


def points(report: Report, name: str, which: str) -> list[tuple[int, float]]:
    """Return (T, median seconds) of one mechanism and pass."""
    return [
        (int(row.what["seq_len"]), row.seconds.median)
        for row in report.rows
        if row.what["mechanism"] == name and row.what["pass"] == which
    ]


def _summary(report: Report, name: str, which: str) -> Json:
    own, softmax = points(report, name, which), points(report, SOFTMAX, which)
    per_token = [seconds / length for length, seconds in own if length >= 1024]
    return {
        "mechanism": name,
        "pass": which,
        "slope": slope(own),
        "overtakes_softmax": None if name == SOFTMAX or not softmax else overtakes(own, softmax),
        # Time per token over the lengths from 1,024 on: 0.15 means flat within 15%.
        "per_token_range": max(per_token) / min(per_token) - 1 if len(per_token) > 1 else None,
    }
