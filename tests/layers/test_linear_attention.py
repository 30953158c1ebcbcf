import pytest
import torch

from helpers import assert_near
from subquad.layers import LearnedFeatureMap, LinearAttention, LinearCrossAttention
from subquad.layers.positions import Rotary
from subquad.ops.feature_maps import elu_plus_one, identity


def by_head(heads, x):
    """Project by the rows of the fused matrix: q, k, v, and by head within each."""
    weight, bias = heads.qkv_proj.weight, heads.qkv_proj.bias
    q, k, v = (x @ weight.T + bias).chunk(3, dim=-1)
    return [part.unflatten(-1, (heads.num_heads, -1)).transpose(1, 2) for part in (q, k, v)]


def weighted_mean(weights, total, v, is_causal):
    if is_causal:
        weights, total = weights.tril(), total.tril()
    return weights @ v / total.sum(-1, keepdim=True)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_the_layer_is_the_definition_between_its_projections(is_causal, rotary):
    layer = LinearAttention(8, 2, is_causal=is_causal, rotary=rotary).double()
    torch.nn.init.normal_(layer.heads.qkv_proj.bias)
    x = torch.randn(2, 70, 8, dtype=torch.float64)
    q, k, v = by_head(layer.heads, x)
    phi_q, phi_k = elu_plus_one(q), elu_plus_one(k)
    total = phi_q @ phi_k.mT
    if rotary:
        rotation = Rotary(4)(torch.arange(70)[None], torch.float64)
        phi_q, phi_k = rotation(phi_q), rotation(phi_k)
    y = weighted_mean(phi_q @ phi_k.mT, total, v, is_causal)
    expected = layer.heads.out_proj(y.transpose(1, 2).flatten(2))
    assert_near(layer(x), expected, 1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_rotary_divides_in_float32_and_does_not_overflow_in_half(is_causal, dtype, tolerance):
    layer = LinearAttention(64, 2, is_causal=is_causal, rotary=True)
    with torch.no_grad():
        layer.heads.qkv_proj.bias.fill_(3.0)  # values of one sign: their sum passes 65504
    x = torch.randn(1, 2000, 64)
    expected, packed = layer(x), {"cu_seqlens": torch.tensor([0, 1990, 2000])}
    expected_packed = layer(x, **packed)
    half, narrow = layer.to(dtype), x.to(dtype)
    assert_near(half(narrow), expected, tolerance)
    assert_near(half(narrow, **packed), expected_packed, tolerance)
    if is_causal:
        y, state = half.prefill(narrow[:, :-1], half.init_state(1))
        assert_near(y, expected[:, :-1], tolerance)
        assert state.inner.kv.dtype == torch.float32
        y_t, _ = half.step(narrow[:, -1], state)
        assert_near(y_t, expected[:, -1], tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_a_long_sequence_do_not_overflow_in_half_precision(dtype):
    layer, x = LinearAttention(32, 2, is_causal=False), 3 * torch.randn(1, 20_000, 32)
    assert_near(layer.to(dtype)(x.to(dtype)), layer.float()(x), 3e-2)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_autocast_stays_near_float32_and_keeps_a_float32_state(is_causal, rotary):
    layer = LinearAttention(
        32, 2, is_causal=is_causal, rotary=rotary, feature_map=LearnedFeatureMap(2, 16, 16)
    )
    x = torch.randn(2, 90, 32)
    mask = torch.arange(90) < torch.tensor([[90], [40]])
    expected = layer(x, key_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x, key_mask=mask)[mask], expected[mask], 3e-2)
        if is_causal:
            y, state = layer.prefill(x[:, :50], layer.init_state(2))
            step, state = layer.step(x[:, 50], state)
            y = torch.cat([y, step[:, None]], 1)
            assert_near(y, layer.float()(x)[:, :51], 3e-2)
            kv = (state.inner if rotary else state).kv
            assert kv.dtype == torch.float32


def test_autocast_does_not_reach_into_the_feature_map():
    layer = LinearAttention(8, 2, is_causal=True, feature_map=LearnedFeatureMap(2, 4, 6))
    cross = LinearCrossAttention(8, 2, feature_map=layer.feature_map)
    x, mapped = torch.randn(2, 5, 8), []
    layer.feature_map.register_forward_hook(lambda module, args, y: mapped.append((args[0], y)))
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        cross(x, x)
    pairs = list(mapped)
    assert len(pairs) == 4
    for q, phi in pairs:
        assert q.dtype == torch.bfloat16
        assert torch.equal(phi, layer.feature_map(q))


def test_a_learned_map_is_trained_with_the_layer():
    layer = LinearAttention(8, 2, is_causal=True, feature_map=LearnedFeatureMap(2, 4, 6))
    assert "feature_map.weight" in dict(layer.named_parameters())
    layer(torch.randn(1, 5, 8)).square().sum().backward()
    assert layer.feature_map.weight.grad.abs().min() > 0
    assert layer.init_state(1).kv.shape == (1, 2, 6, 4)


def test_a_shared_state_does_not_grow():
    layer = LinearAttention(8, 2, is_causal=True)
    state = layer.init_state(3)
    shapes = [x.shape for x in state]
    _, state = layer.prefill(torch.randn(3, 100, 8), state)
    assert [x.shape for x in state] == shapes


@pytest.mark.parametrize("normalize", [True, False])
def test_cross_attention_is_the_definition(normalize):
    layer = LinearCrossAttention(8, 2, context_dim=5, head_dim=3, value_dim=6, normalize=normalize)
    layer = layer.double()
    torch.nn.init.normal_(layer.heads.kv_proj.bias)
    x, context = torch.randn(2, 4, 8).double(), torch.randn(2, 9, 5).double()
    q = layer.heads.q_proj(x).unflatten(-1, (2, 3)).transpose(1, 2)
    k, v = layer.heads.kv_proj(context).split([6, 12], dim=-1)
    k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (k, v))
    weights = elu_plus_one(q) @ elu_plus_one(k).mT
    y = weights @ v / (weights.sum(-1, keepdim=True) if normalize else 1)
    assert_near(layer(x, context), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


def test_map_and_normaliser_must_fit():
    message = "normalize must be False for a feature map whose kernel can be negative"
    with pytest.raises(ValueError, match=message):
        LinearAttention(8, 2, is_causal=True, feature_map=identity)
    with pytest.raises(ValueError, match=message):
        LinearCrossAttention(8, 2, feature_map=identity)
    with pytest.raises(ValueError, match="head_dim must be 3 for this map, got 4"):
        LinearAttention(8, 2, is_causal=True, feature_map=LearnedFeatureMap(2, 3, 6))
