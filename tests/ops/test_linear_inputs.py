"""Queries whose features are not finite, under a mask: values, gradients and cost."""

import pytest
import torch

import subquad
from helpers import FEATURE_MAPS, assert_near, draw_qkv, leaves
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_inputs import clear_broken_queries, map_queries

B, H, T, D, V = 2, 2, 5, 4, 3
MASK = torch.tensor([[True, True, False, True, True], [False, True, True, True, True]])


class Counting:
    """exp, which is infinite from 710 on, and how often it was called."""

    nonnegative = True

    def __init__(self):
        self.calls = 0

    def num_features(self, head_dim):
        return head_dim

    def __call__(self, x):
        self.calls += 1
        return x.exp()


def make_qkv():
    return draw_qkv((B, H, T), D, V)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("has_gradient", [False, True])
def test_queries_and_keys_are_mapped_once(is_causal, mask, has_gradient):
    feature_map = Counting()
    with torch.set_grad_enabled(has_gradient):
        subquad.linear_attention(
            *leaves(*make_qkv()), is_causal=is_causal, key_mask=mask, feature_map=feature_map
        )
    assert feature_map.calls == 2


@pytest.mark.parametrize(("has_gradient", "calls"), [(False, 2), (True, 3)])
def test_a_broken_query_costs_one_map_more_with_gradients_alone(has_gradient, calls):
    feature_map, (q, k, v) = Counting(), make_qkv()
    q[0, 0, 1] = 1e4
    with torch.set_grad_enabled(has_gradient):
        y = subquad.linear_attention(q, k, v, key_mask=MASK, feature_map=feature_map)
    assert feature_map.calls == calls
    assert y.isnan().sum() == V
    assert y[0, 0, 1].isnan().all()


def test_a_broken_query_leaves_the_other_gradients_as_they_are():
    q, k, v = make_qkv()
    broken = q.clone()
    broken[0, 0, 1] = 1e4
    results = []
    for query in (q, broken):
        inputs = leaves(query, k, v)
        y = subquad.linear_attention(*inputs, key_mask=MASK, feature_map=Counting())
        upstream = torch.ones_like(y)
        upstream[0, 0, 1] = 0
        results.append(torch.autograd.grad(y, inputs, upstream))
    assert_near(*results, 1e-14)
    assert results[1][0][0, 0, 1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_elu_plus_one_breaks_where_its_features_say_so(dtype):
    most = torch.finfo(dtype).max
    values = [0.0, -1e4, most, -most, -torch.inf, torch.inf, torch.nan]
    q = torch.zeros(1, 1, len(values), D, dtype=dtype)
    q[0, 0, :, 1] = torch.tensor(values, dtype=torch.float64).to(dtype)
    cleared, broken = clear_broken_queries(q, torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(broken, ~elu_plus_one(q).isfinite().all(-1, keepdim=True))
    assert broken.flatten().tolist() == [False] * 5 + [True] * 2
    assert torch.equal(cleared[0, 0, :5], q[0, 0, :5])
    assert cleared[0, 0, 5:].eq(0).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("has_gradient", [False, True])
def test_what_is_not_broken_is_mapped_as_it_is(name, has_gradient):
    feature_map, (q, _, _) = FEATURE_MAPS[name](H, D), make_qkv()
    with torch.set_grad_enabled(has_gradient):
        expected = feature_map(q)
        q[1, 1, 2, 3] = torch.nan
        phi_q, broken = map_queries(q, feature_map, MASK)
    assert broken.nonzero().tolist() == [[1, 1, 2, 0]]
    assert torch.equal(phi_q.masked_fill(broken, 0), expected.masked_fill(broken, 0))
    assert phi_q.isfinite().all()
    assert phi_q.requires_grad == (has_gradient and expected.requires_grad)


def test_without_a_mask_no_query_is_looked_at():
    q, _, _ = make_qkv()
    q[0, 0, 0, 0] = torch.nan
    for found, broken in (clear_broken_queries(q, None), map_queries(q, Counting(), None)):
        assert broken is None
        assert found[0, 0, 0, 0].isnan()
