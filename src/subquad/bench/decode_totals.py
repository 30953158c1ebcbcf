"""From steps at sampled positions to whole generations."""

from itertools import pairwise


def positions(seq_len: int, count: int) -> list[int]:
    """Return ``count`` positions from 1 to ``seq_len`` - 1, evenly spread, ends included."""
    last = max(1, seq_len - 1)
    return sorted({1 + round(i * (last - 1) / (count - 1)) for i in range(count)})


def integrate(points: list[tuple[int, float]], seq_len: int) -> float:
    """Return the sum over positions 1 .. ``seq_len`` - 1, by the trapezoid rule."""
    inner = sum((p1 - p0) * (s0 + s1) / 2 for (p0, s0), (p1, s1) in pairwise(points))
    # The trapezoids run from the middle of the first position to the middle of the last.
    return inner + (points[0][1] + points[-1][1]) / 2
