"""Associative recall: keys with their values are shown once, then each key is asked for its value.

Source: Arora et al. 2023, "Zoology", section 3 (several questions a sequence); here every pair is
asked once, in random order and without gaps.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class RecallBatch(NamedTuple):
    """Sequences, what is to be predicted at each place, and which places count."""

    tokens: Int64[Tensor, "B T"]
    targets: Int64[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]


def recall_batch(
    batch_size: int,
    *,
    seed: int,
    step: int,
    num_pairs: int = 16,
    num_keys: int = 32,
    num_values: int = 32,
) -> RecallBatch:
    """Return the batch of a step: the same for the same arguments, whatever was drawn before.

    A sequence has 4 ``num_pairs`` tokens: key, value, key, value, ... with no key twice, then the
    same pairs in another order. Keys are 0 .. num_keys - 1, values the ``num_values`` ids above.
    ``targets`` is the sequence shifted left by one (0 at the end); ``loss_mask`` covers the keys of
    the second half, where the value to come is known. A value may belong to several keys, so the
    ones already named do not rule it out.

    Args:
        batch_size: number of sequences.
        seed: which stream of batches, at least 0.
        step: which batch of the stream, at least 0.
        num_pairs: pairs in a sequence.
        num_keys: keys to draw from, at least ``num_pairs``.
        num_values: values to draw from.

    Raises:
        ValueError: if an argument is below its least value.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("step", step, 0),
        ("num_pairs", num_pairs, 1),
        ("num_keys", num_keys, num_pairs),
        ("num_values", num_values, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    rng = np.random.default_rng((seed, step))
    every_key = np.broadcast_to(np.arange(num_keys), (batch_size, num_keys))
    keys = rng.permuted(every_key, axis=1)[:, :num_pairs]
    values = rng.integers(num_keys, num_keys + num_values, size=(batch_size, num_pairs))
    shown = np.stack([keys, values], axis=2)  # (B, pairs, 2)
    order = rng.permuted(
        np.broadcast_to(np.arange(num_pairs), (batch_size, num_pairs)), axis=1
    )  # of the questions
    asked = np.take_along_axis(shown, order[:, :, None], axis=1)
    tokens = np.concatenate([shown, asked], axis=1).reshape(batch_size, 4 * num_pairs)
    targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
    place = np.arange(4 * num_pairs)
    loss_mask = np.broadcast_to((place >= 2 * num_pairs) & (place % 2 == 0), tokens.shape).copy()
    return RecallBatch(*(torch.from_numpy(array) for array in (tokens, targets, loss_mask)))
