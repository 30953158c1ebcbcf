"""FAVOR+ against its definition: values and gradients in every form."""

import functools

import pytest
import torch

from helpers import assert_near, leaves
from performer_cases import (
    CASES,
    B,
    H,
    K,
    T,
    V,
    by_token,
    cases,
    draw,
    float64,
    make_qkv,
    native,
    with_gradients,
)
from subquad import performer_attention, softmax_attention
from subquad.kernels.dispatch import Impl
from subquad.ops import tiles
from subquad.ops.performer_attention import performer_attention_quadratic
from subquad.ops.performer_bidirectional import positive_attention
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_state import performer_state
from subquad.ops.performer_step import (
    performer_attention_step_,
    performer_token_taker,
)
from subquad.ops.random_features import Estimator, RandomFeatures, SoftmaxKernel


def test_the_definition_is_the_quotient_of_features():
    for estimator in Estimator:
        for is_causal in (False, True):
            features, (q, k, v) = draw(estimator), make_qkv()
            weights = features(q * K**-0.25) @ features(k * K**-0.25).mT
            weights = weights.tril() if is_causal else weights
            expected = weights @ v / weights.sum(-1, keepdim=True)
            y = performer_attention_quadratic(q, k, v, features=features, is_causal=is_causal)
            assert_near(y, expected, 1e-10)


def test_the_known_answer():
    """Section 7 of the fact sheet: FAVOR weights of one query on two keys; softmax's beside."""
    features = RandomFeatures(torch.tensor([[1, 0], [0, 1], [1, -1]], dtype=float64))
    x, y = torch.tensor([1, 0.5], dtype=float64), torch.tensor([-0.5, 1], dtype=float64)
    q, k, v = x.view(1, 1, 1, 2), torch.stack([y, x])[None, None], torch.eye(2, dtype=float64)
    v = v[None, None]
    expected = torch.tensor([0.3539021, 0.6460979], dtype=float64)
    weights = performer_attention(q, k, v, features=features).flatten()
    # The printed ones are of features with 1e-6 added to each, which these have not.
    torch.testing.assert_close(weights, expected, rtol=0, atol=2e-6)
    mapped = torch.tensor([0.3711139, 0.2437301, 0.2437301], dtype=float64)
    keys = torch.tensor([[0.1051269, 0.3711139, 0.0453441], [*mapped]], dtype=float64)
    printed = mapped @ keys.T
    torch.testing.assert_close(printed / printed.sum(), expected, rtol=0, atol=5e-8)
    own = features(x * 2**-0.25)
    torch.testing.assert_close(own / own[0], mapped / mapped[0], rtol=0, atol=4e-6)
    softmax = softmax_attention(q, k, v).flatten()
    near_softmax = torch.tensor([0.2923737, 0.7076263], dtype=float64)
    torch.testing.assert_close(softmax, near_softmax, rtol=0, atol=5e-8)


@cases
@pytest.mark.parametrize("masked", [False, True])
def test_every_form_is_the_definition(estimator, is_causal, per_feature, masked):
    features, mask = draw(estimator), None
    if masked:
        mask = torch.ones(B, T, dtype=torch.bool)
        mask[0, [0, 1, 7]], mask[1] = False, False
    options = {
        "is_causal": is_causal, "features": features, "max_per_feature": per_feature,
        "key_mask": mask,
    }  # fmt: skip
    expected = with_gradients(
        lambda q, k, v: performer_attention_quadratic(q, k, v, **options), make_qkv()
    )
    actual = with_gradients(lambda q, k, v: performer_attention(q, k, v, **options), make_qkv())
    assert_near(actual, expected, 1e-10)
    if masked:
        assert (actual[0][1] == 0).all()


@pytest.mark.parametrize(
    ("estimator", "per_feature"),
    [(estimator, per_feature) for estimator, causal, per_feature in CASES if causal],
)
def test_chunks_splits_and_steps_are_the_definition(estimator, per_feature):
    features, qkv = draw(estimator), make_qkv()
    options = {"features": features, "max_per_feature": per_feature}

    def split(q, k, v, sizes, chunk_size):
        state, outputs, start = None, [], 0
        for size in sizes:
            part = [x[:, :, start : start + size] for x in (q, k, v)]
            if state is None:
                state = performer_state(B, H, K, V, features, q, max_per_feature=per_feature)
            y, state = performer_attention_chunked(*part, state, chunk_size=chunk_size, **options)
            outputs.append(y)
            start += size
        return torch.cat(outputs, 2)

    expected = with_gradients(
        lambda q, k, v: performer_attention_quadratic(q, k, v, is_causal=True, **options), qkv
    )
    for sizes, chunk_size in (((T,), 1), ((T,), 5), ((1, 9, 13), 4), ((T - 1, 1), None)):
        run = functools.partial(split, sizes=sizes, chunk_size=chunk_size)
        assert_near(with_gradients(run, qkv), expected, 1e-10)
    steps = with_gradients(lambda q, k, v: by_token(q, k, v, features, per_feature), qkv)
    assert_near(steps, expected, 1e-10)
    with torch.no_grad():
        in_place = by_token(*qkv, features, per_feature, take=performer_attention_step_)
    assert_near(in_place, expected[0], 1e-10)


@pytest.mark.parametrize("impl", [Impl.TORCH, native])
def test_float32_forms_are_near_the_definition_and_prefill_and_step_are_parallel(impl):
    features, qkv = draw(width=16, count=44), make_qkv(factor=2.0, shape=(B, H, 70), width=16)
    narrow = [x.float() for x in qkv]
    expected = with_gradients(
        lambda q, k, v: performer_attention_quadratic(q, k, v, features=features, is_causal=True),
        qkv,
    )
    actual = with_gradients(
        lambda q, k, v: performer_attention(
            q, k, v, features=features, is_causal=True, impl=impl
        ), narrow,
    )  # fmt: skip
    assert_near(actual, expected, 1e-5)
    state = performer_state(B, H, 16, V, features, narrow[0])
    part = [x[:, :, :50] for x in narrow]
    y, state = performer_attention_chunked(*part, state, features=features, impl=impl)
    take = performer_token_taker(features=features, impl=impl)
    outputs = [y]
    with torch.no_grad():
        for t in range(50, 70):
            y, state = take(*(x[:, :, t] for x in narrow), state)
            outputs.append(y.unsqueeze(2))
    assert_near(torch.cat(outputs, 2), actual[0], 1e-5)


@pytest.mark.parametrize("size", [16, 100, 2**26])
def test_the_size_of_a_tile_changes_nothing_but_rounding(monkeypatch, size):
    for is_causal in (False, True):
        features, qkv = draw(), make_qkv(shape=(B, H, 50))
        mask = torch.arange(50) < torch.tensor([[50], [31]])
        attend = functools.partial(
            performer_attention, features=features, is_causal=is_causal, key_mask=mask
        )
        expected = with_gradients(attend, qkv)
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "CPU_TILE", size)
            assert_near(with_gradients(attend, qkv), expected, 1e-10)
            by_layer = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
            assert_near(with_gradients(attend, by_layer), expected, 1e-10)


def test_cross_attention_and_scale():
    features = draw()
    q, k, v = make_qkv()
    y = performer_attention(q[:, :, :6], k, v, features=features, scale=0.3)
    expected = performer_attention_quadratic(q[:, :, :6], k, v, features=features, scale=0.3)
    assert_near(y, expected, 1e-10)
    causal = performer_attention(q, k, v, features=features, scale=0.3, is_causal=True)
    other = performer_attention_quadratic(
        q * (0.3 * 2) ** 0.5, k * (0.3 * 2) ** 0.5, v, features=features, is_causal=True
    )
    assert_near(causal, other, 1e-10)


def test_without_features_fresh_ones_are_drawn_and_approximate_softmax():
    q, k, v = make_qkv(factor=0.5, shape=(1, 2, 30), width=8)
    torch.manual_seed(0)
    first, second = performer_attention(q, k, v), performer_attention(q, k, v)
    torch.manual_seed(0)
    assert torch.equal(performer_attention(q, k, v), first)
    assert not torch.equal(first, second)
    many = SoftmaxKernel().draw(8, 40_000, generator=torch.Generator().manual_seed(0))
    for is_causal in (False, True):
        exact = softmax_attention(q, k, v, is_causal=is_causal)
        near = performer_attention(q, k, v, features=many, is_causal=is_causal)
        assert_near(near, exact, 0.02)


def test_gradients_by_finite_differences():
    qkv = leaves(*make_qkv(shape=(1, 2, 4)))
    for estimator, is_causal, per_feature in CASES:
        attend = functools.partial(
            performer_attention, features=draw(estimator), is_causal=is_causal,
            max_per_feature=per_feature,
        )  # fmt: skip
        torch.autograd.gradcheck(attend, qkv, fast_mode=True)


def test_the_directions_get_no_gradient():
    w = draw().projection.clone().requires_grad_()
    q, k, v = leaves(*make_qkv())
    y = performer_attention(q, k, v, features=RandomFeatures(w))
    (grad,) = torch.autograd.grad(y.sum(), w, allow_unused=True)
    assert grad is None
    assert positive_attention(q, k, v, w.detach(), 0.1).shape == y.shape
