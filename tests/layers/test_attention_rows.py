"""``attention_rows``: rows times values are the outputs, for every mixer that implies a matrix."""

import pytest
import torch

import subquad
from helpers import as_users_have_it, assert_near
from subquad.layers import MIXERS
from subquad.layers.attention_rows import HasParts, ImpliesAttention, attention_rows
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.ops.feature_maps import elu_plus_one

ROWS = [0, 3, 10, 11, 12, 4, 2, 5, 1, 6]  # more than a head has channels


def build(name, *, is_causal):
    torch.manual_seed(0)
    try:
        mixer = MIXERS[name](16, 2, is_causal=is_causal)
    except ValueError:
        pytest.skip(f"{name} is not offered with is_causal={is_causal}")
    if name == "lstm":
        pytest.skip("an LSTM implies no matrix")
    assert isinstance(mixer, ImpliesAttention | HasParts)
    return mixer.double().eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
def test_rows_times_values_are_the_outputs(name, is_causal, masked):
    mixer = build(name, is_causal=is_causal)
    x = torch.randn(2, 13, 16).double()
    mask = None
    if masked:
        mask = torch.ones(2, 13, dtype=torch.bool)
        mask[0, :2] = mask[1, 8:] = False
    weights, values = attention_rows(mixer, x, ROWS, key_mask=mask)
    parts = mixer.parts if isinstance(mixer, HasParts) else (mixer,)
    outputs = [part.attend(x, key_mask=mask).outputs for part in parts]
    assert_near(weights @ values, torch.cat(outputs, 1)[:, :, ROWS], 1e-12)
    merged = sum(
        getattr(part, "heads", part).merge(y) for part, y in zip(parts, outputs, strict=True)
    )
    assert_near(merged, mixer(x, key_mask=mask), 1e-12)
    if masked:
        assert (weights.transpose(1, 3)[~mask] == 0).all()
    if is_causal:
        later = torch.arange(13) > torch.tensor(ROWS)[:, None]
        assert (weights.masked_select(later) == 0).all()


def test_softmax_rows_are_the_softmax():
    mixer = SoftmaxAttention(16, 2, is_causal=True).double()
    x = torch.randn(1, 9, 16).double()
    q, k, _ = mixer.heads.split(x)
    scores = (q @ k.mT / 8**0.5).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf)
    assert_near(attention_rows(mixer, x, range(9)).weights, scores.softmax(-1), 1e-12)


def test_linear_rows_are_products_of_features():
    mixer = LinearAttention(16, 2, is_causal=False).double()
    x = torch.randn(1, 9, 16).double()
    q, k, _ = mixer.heads.split(x)
    products = elu_plus_one(q) @ elu_plus_one(k).mT
    want = products / products.sum(-1, keepdim=True)
    assert_near(attention_rows(mixer, x, torch.arange(9)).weights, want, 1e-12)


def test_the_native_form_and_frozen_weights():
    mixer = LinearAttention(16, 2, is_causal=True).requires_grad_(False)
    x = torch.randn(2, 70, 16)
    with torch.no_grad():
        weights, values = subquad.attention_rows(mixer, x, [69, 35])
    assert_near(weights @ values, mixer.attend(x).outputs[:, :, [69, 35]], 1e-5)
    assert_near(weights.sum(-1), torch.ones(2, 2, 2), 1e-5)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows must name at least one row"),
        ([0, 5], ValueError, "rows must lie from 0 to 4, got 5"),
        ([-1], ValueError, "rows must lie from 0 to 4, got -1"),
        ([True], TypeError, "rows must be ints, got bool"),
    ],
)
def test_rows_that_are_not_there(rows, error, message):
    mixer = SoftmaxAttention(16, 2, is_causal=True)
    with pytest.raises(error, match=message):
        as_users_have_it(attention_rows)(mixer, torch.randn(1, 5, 16), rows)


def test_a_mixer_without_such_a_matrix():
    with pytest.raises(TypeError, match=r"whose outputs are sums of values.*got Linear"):
        as_users_have_it(attention_rows)(torch.nn.Linear(4, 4), torch.randn(1, 5, 4), [0])
