"""The contract on FAVOR+: what stands in padded positions, packing, queries that are broken."""

import pytest
import torch

from helpers import assert_near, leaves
from subquad import performer_attention
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_state import performer_state
from subquad.ops.random_features import Estimator, SoftmaxKernel

B, H, T, K, V = 3, 2, 12, 4, 5
CASES = [
    (Estimator.POSITIVE, False, False),
    (Estimator.POSITIVE, True, False),
    (Estimator.POSITIVE, True, True),
    (Estimator.TRIGONOMETRIC, False, False),
    (Estimator.TRIGONOMETRIC, True, False),
]
cases = pytest.mark.parametrize(("estimator", "is_causal", "per_feature"), CASES)


def make_qkv(dtype=torch.float64, shape=(B, H, T)):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*shape, n, generator=generator, dtype=torch.float64).to(dtype)
        for n in (K, K, V)
    ]


def draw(estimator):
    kernel = SoftmaxKernel(estimator=estimator)
    return kernel.draw(K, 30, generator=torch.Generator().manual_seed(0))


def make_mask():
    """Return one row with holes, one padded on the left, one with no valid key at all."""
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, [2, 3, 7, 11]] = False
    mask[1, :5] = False
    mask[2] = False
    return mask


@pytest.mark.parametrize("garbage", [torch.nan, 1e30, -3e38, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@cases
def test_garbage_in_padded_positions_changes_nothing(
    estimator, is_causal, per_feature, dtype, garbage
):
    """Not a bit of a valid output, and not a bit of any gradient."""
    mask = make_mask()
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        inputs = leaves(*(torch.where(at, x, value) for x in make_qkv(dtype)))
        y = performer_attention(
            *inputs, is_causal=is_causal, key_mask=mask, features=draw(estimator),
            max_per_feature=per_feature,
        )  # fmt: skip
        assert y[2].eq(0).all()
        y = y.masked_fill(~at, 0)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for clean, planted in zip(*results, strict=True):
        assert torch.equal(clean, planted)
        assert planted.isfinite().all()


@cases
def test_left_padding_is_right_padding_is_packing_is_one_by_one(estimator, is_causal, per_feature):
    lengths = [3, 1, 70, 8]
    features = draw(estimator)
    options = {"is_causal": is_causal, "features": features, "max_per_feature": per_feature}
    inputs = leaves(*make_qkv(shape=(1, H, sum(lengths))))

    def alone():
        parts = zip(*(x.split(lengths, 2) for x in inputs), strict=True)
        return torch.cat([performer_attention(*part, **options) for part in parts], 2)

    def packed():
        borders = torch.tensor([0, 3, 3, 4, 74, 82])
        return performer_attention(*inputs, cu_seqlens=borders, **options)

    def padded(left):
        place = torch.arange(75)
        mask = torch.stack([place >= 75 - n if left else place < n for n in lengths])

        def lay(x):
            rows = x.new_full((4, 75, H, x.shape[3]), torch.nan)
            return rows.index_put(mask.nonzero(as_tuple=True), x[0].transpose(0, 1)).transpose(1, 2)

        y = performer_attention(*map(lay, inputs), key_mask=mask, **options)
        return y.transpose(1, 2)[mask].transpose(0, 1).unsqueeze(0)

    results = []
    for y in (alone(), packed(), padded(True), padded(False)):
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for result in results[1:]:
        assert_near(result, results[0], 1e-9)


@pytest.mark.parametrize(("estimator", "per_feature"), [c[::2] for c in CASES if c[1]])
def test_a_hidden_key_neither_adds_to_the_state_nor_raises_its_maximum(estimator, per_feature):
    features, mask = draw(estimator), make_mask()
    q, k, v = make_qkv()
    options = {"features": features, "max_per_feature": per_feature}

    def after(row, keep):
        part = [x[row : row + 1, :, keep] for x in (q, k, v)]
        past = performer_state(1, H, K, V, features, q, max_per_feature=per_feature)
        return performer_attention_chunked(*part, past, **options)[1]

    past = performer_state(B, H, K, V, features, q, max_per_feature=per_feature)
    _, state = performer_attention_chunked(q, k, v, past, key_mask=mask, **options)
    for row in range(2):
        for padded, alone in zip(state, after(row, mask[row]), strict=True):
            assert_near(padded[row : row + 1], alone, 1e-12)
    assert all(torch.equal(x[2], y[2]) for x, y in zip(state, past, strict=True))


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_broken_query_that_is_not_padded_is_not_hidden(is_causal):
    q, k, v = make_qkv()
    q[0, 0, 4, 1], q[1, 1, 6, 0] = torch.nan, torch.inf
    features = draw(Estimator.POSITIVE)
    y = performer_attention(q, k, v, key_mask=make_mask(), is_causal=is_causal, features=features)
    assert y[0, 0, 4].isnan().all()
    assert y[1, 1, 6].isnan().all()
    assert y.isnan().sum() == 2 * V


def test_a_key_that_is_not_finite_shows_from_there_on():
    q, k, v = make_qkv(torch.float32)
    k[0, 0, 4] = torch.nan
    for per_feature in (False, True):
        y = performer_attention(
            q, k, v, is_causal=True, features=draw(Estimator.POSITIVE), max_per_feature=per_feature
        )
        assert y[0, 0, 4:].isnan().all()
        assert y.isnan().sum() == V * (T - 4)
