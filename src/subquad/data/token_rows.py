"""Token sequences as rows of a batch: cut to a length, padded, in an order that a seed fixes.

Axes: N tokens of a whole part, R rows, B rows of a batch, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subquad.data.image_set import Bytes

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which ids there are: ``letters`` real ones from 0 on, and those with a meaning of their own.

    Args:
        letters: how many ids are tokens of the data.
        size: how many ids there are at all.
        boundary: before the first token of a sequence and behind its last one; None for none.
        mask: stands for a token to be guessed.
        padding: behind sequences that are shorter than others of their batch.
    """

    letters: int
    size: int
    boundary: int | None = None
    mask: int | None = None
    padding: int | None = None


class TokenRows(NamedTuple):
    """Rows of a part of a data set: where in ``tokens`` each begins, and how long it is."""

    tokens: Bytes
    starts: Ids
    lengths: Ids


def sequence_rows(sequences: Sequence[Bytes], boundary: int) -> TokenRows:
    """Return a row for each sequence, its boundaries included."""
    lengths = np.array([len(sequence) + 2 for sequence in sequences], np.int64)
    starts = np.cumsum(lengths) - lengths
    frame = np.array([boundary], np.uint8)
    tokens = np.concatenate([part for one in sequences for part in (frame, one, frame)])
    return TokenRows(tokens, starts, lengths)


def joined(sequences: Sequence[Bytes], boundary: int) -> Bytes:
    """Return all sequences one behind the other, a boundary behind each."""
    end = np.array([boundary], np.uint8)
    return np.concatenate([part for one in sequences for part in (one, end)])


def block_rows(tokens: Bytes, seq_len: int) -> TokenRows:
    """Return the non-overlapping blocks of ``seq_len`` tokens; what is left over is dropped.

    Raises:
        ValueError: if there is not one.
    """
    count = len(tokens) // seq_len
    if count < 1:
        raise ValueError(f"tokens must be at least seq_len = {seq_len}, got {len(tokens)}")
    return TokenRows(
        tokens, np.arange(count, dtype=np.int64) * seq_len, np.full(count, seq_len, np.int64)
    )


def take_rows(
    rows: TokenRows,
    places: Sequence[int] | Ids,
    seq_len: int,
    *,
    padding: int | None,
    rng: np.random.Generator | None,
) -> Ids:
    """Return a batch (B, T), T the longest row of it and at most ``seq_len``.

    Args:
        rows: what to take from.
        places: which rows.
        seq_len: longer rows are cut to it: at a random place, or behind their beginning.
        padding: what is put behind shorter rows; None where none is shorter.
        rng: draws the places to cut; None cuts behind the beginning.

    Raises:
        ValueError: if a row is shorter and there is no padding.
    """
    starts, lengths = rows.starts[places], rows.lengths[places]
    if rng is not None:
        starts = starts + rng.integers(0, np.maximum(lengths - seq_len, 0) + 1)
    lengths = np.minimum(lengths, seq_len)
    longest = int(lengths.max())
    offsets = np.arange(longest)
    inside = offsets < lengths[:, None]
    if padding is None and not inside.all():
        raise ValueError("padding must be given for rows of several lengths, got None")
    found = rows.tokens[np.where(inside, starts[:, None] + offsets, 0)].astype(np.int64)
    return np.where(inside, found, 0 if padding is None else padding)


def shuffled(count: int, seed: int, epoch: int) -> Ids:
    """Return the order of ``count`` rows in pass number ``epoch``."""
    return np.random.default_rng((seed, epoch)).permutation(count)
