"""FAVOR+ at any magnitude and in any precision, and the past under any future."""

import functools

import pytest
import torch

from helpers import assert_near
from performer_cases import (
    V,
    by_token,
    draw,
    make_qkv,
    native,
    with_gradients,
)
from subquad import performer_attention
from subquad.kernels.dispatch import Impl
from subquad.ops.performer_attention import performer_attention_quadratic
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_state import performer_state, tiny_to_zero
from subquad.ops.performer_step import (
    performer_attention_step_,
)
from subquad.ops.random_features import Estimator


@pytest.mark.parametrize("estimator", [Estimator.POSITIVE, Estimator.HYPERBOLIC])
@pytest.mark.parametrize("factor", [5e3, 1e12])
def test_both_directions_are_the_definition_at_any_magnitude(factor, estimator):
    """Of norm 1e4 and above; and what divides is at least 1, so a constant value comes back."""
    features = draw(estimator)
    q, k, v = make_qkv(factor=factor)
    expected = performer_attention_quadratic(q, k, v, features=features)
    assert expected.isfinite().all()
    assert_near(performer_attention(q, k, v, features=features), expected, 1e-9)
    ones = torch.ones_like(v)
    assert_near(performer_attention(q, k, ones, features=features), ones, 1e-12)
    causal = performer_attention(
        q, k, ones, features=features, is_causal=True, max_per_feature=True
    )
    assert_near(causal, ones, 1e-12)


@pytest.mark.parametrize("factor", [1e4, 1e12])
def test_no_causal_feature_passes_1_however_large_the_keys(factor):
    """Where the size of a key swallows its products by rounding: outputs are still means."""
    features = draw(width=16, count=40)
    q, k, v = make_qkv(factor=factor, dtype=torch.float32, width=16)
    forms = [
        performer_attention(q, k, v, features=features, is_causal=True),
        by_token(q, k, v, features),
    ]
    for y in forms:
        assert y.isfinite().all()
        assert (y.abs() <= v.abs().amax(2, keepdim=True) * 1.0001).all()


def test_scale_30_in_float32():
    features = draw(width=32, count=110)
    qkv = make_qkv(factor=30.0, width=32, dtype=torch.float32, shape=(1, 2, 64))
    wide = [x.double() for x in qkv]
    for is_causal in (False, True):
        options = {"features": features, "is_causal": is_causal, "max_per_feature": is_causal}
        expected = performer_attention_quadratic(*wide, **options)
        assert_near(performer_attention(*qkv, **options), expected, 1e-4)


@pytest.mark.parametrize("impl", [Impl.TORCH, native])
def test_where_one_maximum_is_too_little_every_form_gives_0_and_no_gradient(impl):
    features = draw(width=32, count=40)
    qkv = make_qkv(factor=30.0, width=32, shape=(1, 2, 40))
    narrow = [x.float() for x in qkv]

    def definition(q, k, v):
        return performer_attention_quadratic(q, k, v, features=features, is_causal=True)

    def parallel(q, k, v):
        return performer_attention(q, k, v, features=features, is_causal=True, impl=impl)

    expected = with_gradients(definition, qkv)
    zero = (expected[0] == 0).all(-1)
    assert 0 < zero.sum() < zero.numel()
    assert (expected[1][zero] == 0).all()
    forms = [with_gradients(parallel, narrow)]
    if impl is Impl.TORCH:
        forms.append(with_gradients(lambda q, k, v: by_token(q, k, v, features), narrow))
    for y, grad_q, grad_k, grad_v in forms:
        assert torch.equal((y == 0).all(-1), zero)
        assert_near(y, expected[0], 1e-4)
        assert (grad_q[zero] == 0).all()
        assert_near(grad_v, expected[3], 1e-4)
        assert grad_k.isfinite().all()
    with torch.no_grad():
        steps = by_token(
            *narrow, features, take=functools.partial(performer_attention_step_, impl=impl)
        )
    assert torch.equal((steps == 0).all(-1), zero)


def test_the_bound_of_a_denominator_is_1e_minus_30_of_either_sign():
    denominators = torch.tensor([0.9e-30, 1.1e-30, -0.9e-30, -1.1e-30, 0.0, torch.nan])
    y = tiny_to_zero(torch.full((6, 1), 1e-30), denominators)[:, 0]
    assert_near(y[:5], torch.tensor([0, 1 / 1.1, 0, -1 / 1.1, 0]), 1e-6)
    assert y[5].isnan()


@pytest.mark.parametrize("impl", [Impl.TORCH, native])
@pytest.mark.parametrize("estimator", Estimator, ids=str)
def test_the_future_does_not_change_the_past_by_a_bit(estimator, impl):
    features = draw(estimator, width=16, count=20)
    q, k, v = make_qkv(dtype=torch.float32, shape=(2, 2, 100), width=16)
    runs = [False] if estimator is Estimator.TRIGONOMETRIC or impl is Impl.CPU else [False, True]
    for per_feature in runs:
        state = performer_state(2, 2, 16, V, features, q, max_per_feature=per_feature)
        start = [x[:, :, :7].clone() for x in (q, k, v)]
        options = {"features": features, "max_per_feature": per_feature, "impl": impl}
        _, state = performer_attention_chunked(*start, state, **options)

        def run(q, k, v, state=state, options=options):
            return performer_attention_chunked(q, k, v, state, **options)[0]

        before = run(q, k, v)
        for j in (99, 64, 33, 1):
            for value in (1e4, 1e30, -3e38):
                changed = [x.clone() for x in (q, k, v)]
                for x in changed:
                    x[:, :, j] = x[:, :, j] * value if value == 1e4 else value
                after = run(*changed)
                assert torch.equal(before[:, :, :j], after[:, :, :j])
                assert not torch.equal(before[:, :, j:], after[:, :, j:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 30.0])
@pytest.mark.parametrize("is_causal", [False, True])
def test_half_precision_is_finite_and_near(is_causal, factor, dtype):
    features = draw(width=16, count=44)
    qkv = make_qkv(factor=factor, dtype=dtype, width=16)
    wide = [x.double() for x in qkv]
    attend = functools.partial(performer_attention, features=features, is_causal=is_causal)
    expected = attend(*wide)
    with torch.autocast("cpu", dtype):
        y, *gradients = with_gradients(attend, qkv)
    assert y.dtype == dtype
    assert_near(y, expected, 1e-2)
    assert all(x.isfinite().all() for x in gradients)
