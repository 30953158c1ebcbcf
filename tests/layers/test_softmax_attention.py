import math

import pytest
import torch

from helpers import assert_near
from subquad.layers import SoftmaxAttention, SoftmaxCrossAttention
from subquad.layers.positions import Rotary


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_the_layer_is_the_definition_between_its_projections(is_causal, rotary):
    layer = SoftmaxAttention(8, 2, is_causal=is_causal, rotary=rotary).double()
    torch.nn.init.normal_(layer.heads.qkv_proj.bias)
    x = torch.randn(2, 11, 8).double()
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in layer.heads.qkv_proj(x).chunk(3, dim=-1)
    )
    if rotary:
        rotation = Rotary(4)(torch.arange(11)[None], torch.float64)
        q, k = rotation(q), rotation(k)
    scores = q @ k.mT / math.sqrt(4)
    if is_causal:
        scores = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf)
    y = scores.softmax(-1) @ v
    assert_near(layer(x), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


def test_cross_attention_is_the_definition():
    layer = SoftmaxCrossAttention(8, 2, context_dim=5, head_dim=3, value_dim=6).double()
    x, context = torch.randn(2, 4, 8).double(), torch.randn(2, 9, 5).double()
    q = layer.heads.q_proj(x).unflatten(-1, (2, 3)).transpose(1, 2)
    k, v = layer.heads.kv_proj(context).split([6, 12], dim=-1)
    k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (k, v))
    y = (q @ k.mT / math.sqrt(3)).softmax(-1) @ v
    assert_near(layer(x, context), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
def test_autocast_stays_near_float32(is_causal):
    layer, x = SoftmaxAttention(32, 2, is_causal=is_causal, rotary=True), torch.randn(2, 40, 32)
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    expected, whole = layer(x, key_mask=mask), layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x, key_mask=mask)[mask], expected[mask], 3e-2)
        if is_causal:
            y, state = layer.prefill(x[:, :30], layer.init_state(2))
            more, state = layer.prefill(x[:, 30:39], state)
            step, state = layer.step(x[:, 39], state)
            assert_near(torch.cat([y, more, step[:, None]], 1), whole, 3e-2)


def test_attention_dropout_works_in_training_only():
    layer, x = SoftmaxAttention(8, 2, is_causal=True, attention_dropout=0.5), torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_cache_grows_in_place_by_doubling_and_keeps_what_is_in_it():
    layer, x = SoftmaxAttention(8, 2, is_causal=True).eval(), torch.randn(1, 9, 8)
    with torch.inference_mode():
        state, rooms = layer.init_state(1), []
        for t in range(9):
            _, state = layer.step_(x[:, t], state)
            rooms.append(state.k.shape[2])
        _, expected = layer.prefill(x, layer.init_state(1))
    assert rooms == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    torch.testing.assert_close(state.k[:, :, :9], expected.k)
    torch.testing.assert_close(state.v[:, :, :9], expected.v)
