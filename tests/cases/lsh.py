"""Inputs of LSH attention, and what of it is compared."""

import pytest
import torch

from helpers import leaves

B, H, T, K, V, R = 2, 2, 23, 4, 5, 3
COMBINES = ("mean", "logsumexp")
combines = pytest.mark.parametrize("combine", COMBINES)
directions = pytest.mark.parametrize("is_causal", [False, True])


def make_inputs(seq_len=T, dtype=torch.float64, rounds=R, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, seq_len, K), (B, H, seq_len, V), (rounds, K, 3)]
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def make_mask(seq_len=T):
    """Return a row with holes, and one padded on the left."""
    mask = torch.ones(B, seq_len, dtype=torch.bool)
    mask[0, [1, 2, 5, 9, 21]] = False
    mask[1, :14] = False
    return mask


def value_and_gradients(form, qk, v, rotations, dtype=None, **options):
    inputs = leaves(*(x.to(dtype or x.dtype) for x in (qk, v)))
    y = form(*inputs, rotations.to(inputs[0].dtype), **options)
    weight = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().reshape(y.shape)
    return [y, *torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs)]
