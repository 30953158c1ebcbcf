"""How LSH attention groups tokens: unit keys, buckets, chunks."""

import torch

from cases.lsh import B, H, R, T, make_inputs
from helpers import assert_near
from subquad.ops.lsh_grouping import hash_buckets, sort_into_chunks, unit_keys


def test_keys_have_length_1_and_zero_stays_zero():
    x = torch.randn(1, 1, 4, 3)
    x[..., 1, :], x[..., 2, :] = 0, 1e30 * x[..., 2, :]
    x.requires_grad_()
    keys = unit_keys(x)
    assert_near(keys.norm(dim=-1), torch.tensor([[[1.0, 0, 1, 1]]]), 1e-6)
    (grad,) = torch.autograd.grad((keys * torch.randn(3)).sum(), x)
    assert grad.isfinite().all()
    assert (grad[..., 1, :] == 0).all()


def test_buckets_follow_the_direction_and_opposites_part():
    keys, _, rotations = make_inputs()
    buckets = hash_buckets(keys, rotations)
    assert buckets.shape == (B, H, R, T)
    assert len(buckets.unique()) == 6
    assert torch.equal(hash_buckets(0.1 * keys, rotations), buckets)
    assert torch.equal(hash_buckets(-keys, rotations), (buckets + 3) % 6)


def test_chunks_hold_each_token_once_and_hidden_ones_last():
    buckets = torch.tensor([2, 0, 1, 0, 2, 1, 0])[None, None, None]
    mask = torch.tensor([[True, True, False, True, True, True, True]])
    chunks = sort_into_chunks(buckets, mask, chunk_size=3)
    assert chunks.position[0, 0, 0].flatten()[:7].tolist() == [1, 3, 6, 5, 0, 4, 2]
    assert chunks.valid[0, 0, 0].tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert chunks.slot[0, 0, 0].tolist() == [4, 0, 6, 1, 5, 3, 2]
