"""How the kernels cut their work: chunks, segments of the time axis, and blocks of features.

No import of triton, so that what is chosen can be read and tested anywhere. Two limits decide: a
program's state (features x values, float32) stays in registers, and the tiles of one chunk stay in
shared memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Numbers of a state that one program holds: 32 registers a thread at 8 warps.
_STATE = 8192
# A tile from this size on is worked on by 8 warps, a smaller one by 4: compiled for compute
# capability 9.0, bfloat16 walks at K = V = 64 spill registers with 4 warps and not with 8.
_LARGE_TILE = 64 * 64


class Plan(NamedTuple):
    """Sizes for one call; a segment is a multiple of a chunk."""

    chunk: int  # tokens done at once
    segment: int  # tokens that one program walks over
    num_segments: int


class Blocks(NamedTuple):
    """Sizes for one kernel."""

    features: int
    values: int
    num_warps: int
    num_stages: int


def power_of_two(x: int) -> int:
    """Return the smallest power of two from ``x`` up, at least the 16 that a product needs."""
    return max(16, 1 << (x - 1).bit_length())


def plan(
    num_rows: int, seq_len: int, num_features: int, value_dim: int, *, narrow: bool, num_units: int
) -> Plan:
    """Cut the time axis so that every processor of the GPU has work, and no finer.

    Fewer, longer segments cost less: each has its state written and read once, and with a single
    one the pass that sums segments is not run at all.

    Args:
        num_rows: batch times heads.
        seq_len: T.
        num_features: K.
        value_dim: V.
        narrow: products in bfloat16 (tiles are half as large).
        num_units: how many multiprocessors the GPU has.
    """
    chunk = _chunk(seq_len, num_features, value_dim, narrow)
    wanted = 1 if num_rows >= num_units else -(-2 * num_units // num_rows)
    chunks = -(-seq_len // chunk)
    segment = -(-chunks // min(wanted, chunks)) * chunk
    return Plan(chunk, segment, -(-seq_len // segment))


def plan_packed(
    lengths: Sequence[int],
    num_heads: int,
    num_features: int,
    value_dim: int,
    *,
    narrow: bool,
    num_units: int,
) -> Plan:
    """Cut packed sequences: none, if the longest is no more than a processor's share of the work.

    Otherwise segments are short enough for two a processor, and sequences that are shorter still
    stay whole. ``num_segments`` is that of the longest sequence.

    Args:
        lengths: tokens of each sequence, some of them 0.
        num_heads: H.
        num_features: K.
        value_dim: V.
        narrow: products in bfloat16.
        num_units: how many multiprocessors the GPU has.
    """
    longest = max(lengths)
    chunk = _chunk(longest, num_features, value_dim, narrow)
    share = sum(lengths) * num_heads // num_units
    tokens = longest if longest <= share else max(1, share // 2)
    segment = -(-tokens // chunk) * chunk
    return Plan(chunk, segment, -(-longest // segment))


def _chunk(seq_len: int, num_features: int, value_dim: int, narrow: bool) -> int:
    widest = power_of_two(max(num_features, value_dim))
    chunk = 64 if narrow and widest <= 128 else 32 if narrow or widest <= 128 else 16
    return min(chunk, power_of_two(seq_len))


def blocks(plan: Plan, num_features: int, value_dim: int, *, narrow: bool, whole: str) -> Blocks:
    """Return the tile of the state that one program holds.

    Args:
        plan: the sizes of the call.
        num_features: K.
        value_dim: V.
        narrow: products in bfloat16.
        whole: "features", "values" or "neither": the axis that must not be cut.
    """
    k, v = power_of_two(num_features), power_of_two(value_dim)
    budget = _STATE if narrow else _STATE // 2
    if whole == "features":
        v = min(v, max(16, budget // k))
    elif whole == "values":
        k = min(k, max(16, budget // v))
    else:
        k, v = min(k, 64), min(v, 64)
    large = max(k * v, plan.chunk * max(k, v)) >= _LARGE_TILE
    return Blocks(k, v, 8 if large else 4, 2 if narrow and k * v <= _LARGE_TILE else 1)


def fits_whole(num_features: int, value_dim: int, *, narrow: bool) -> bool:
    """Say whether one program can hold the whole state, so that nothing is computed twice."""
    size = power_of_two(num_features) * power_of_two(value_dim)
    return size <= (_STATE if narrow else _STATE // 2)
