"""The copy task: a sequence of symbols is to be repeated after a separator.

Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 4.1, with what the paper leaves
open (lengths, mask) as in the released experiment.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

SEPARATOR = 0  # padding too


class CopyBatch(NamedTuple):
    """Sequences, what is to be predicted at each place, and which places count."""

    tokens: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]


def copy_batch(
    batch_size: int, *, seed: int, step: int, max_len: int = 128, num_symbols: int = 10
) -> CopyBatch:
    """Return the batch of a step: the same for the same arguments, whatever was drawn before.

    A sequence is n symbols of 1..num_symbols, the separator 0, the same n symbols, then zeros up
    to ``max_len``, where n is uniform over max_len//4 <= n < (max_len-1)//2 (32 to 62 at 128).
    ``targets`` is the sequence shifted left by one; ``loss_mask`` covers its places n-1 to 2n-1:
    the separator and the n copied symbols. Where the separator will come cannot be known, but of
    the first n places only the one before it counts: who predicts it all along is never wrong
    where it counts, so the loss can fall to 0.

    Args:
        batch_size: number of sequences.
        seed: which stream of batches, at least 0.
        step: which batch of the stream, at least 0.
        max_len: length of the sequences, at least 5.
        num_symbols: number of symbols besides the separator; the vocabulary has one more.

    Raises:
        ValueError: if an argument is below its least value.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("step", step, 0),
        ("max_len", max_len, 5),
        ("num_symbols", num_symbols, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    rng = np.random.default_rng((seed, step))
    n = rng.integers(max_len // 4, (max_len - 1) // 2, size=(batch_size, 1))
    symbols = rng.integers(1, num_symbols + 1, size=(batch_size, max_len))
    place = np.arange(max_len)
    copied = np.take_along_axis(symbols, np.clip(place - n - 1, 0, None), axis=1)
    tokens = np.where(place < n, symbols, np.where((n < place) & (place <= 2 * n), copied, 0))
    targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
    loss_mask = (n - 1 <= place) & (place < 2 * n)
    return CopyBatch(*(torch.from_numpy(array) for array in (tokens, targets, loss_mask)))
