from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.layers.linformer import LinformerAttention
from subquad.testing import check_mixer

build = partial(LinformerAttention, 8, 2, is_causal=False)


@pytest.mark.parametrize("sharing", ["none", "heads", "keys-values"])
def test_the_layer_is_the_definition_between_its_projections(sharing):
    layer = build(max_len=13, num_slots=5, sharing=sharing).double()
    torch.nn.init.normal_(layer.heads.qkv_proj.bias)
    x = torch.randn(2, 11, 8).double()
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in layer.heads.qkv_proj(x).chunk(3, dim=-1)
    )
    mix_v = layer.mix_k if layer.mix_v is None else layer.mix_v
    assert (layer.mix_v is None) == (sharing == "keys-values")
    assert layer.mix_k.shape == mix_v.shape == (2 if sharing == "none" else 1, 5, 13)
    y = (q @ (layer.mix_k[..., :11] @ k).mT / 2).softmax(-1) @ (mix_v[..., :11] @ v)
    assert_near(layer(x), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


VARIANTS = {
    "few slots": {"num_slots": 3},
    "more slots than tokens": {"num_slots": 140, "sharing": "none"},
    "one projection": {"num_slots": 7, "sharing": "keys-values"},
    "widths": {"num_slots": 7, "head_dim": 5, "value_dim": 3, "bias": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant):
    check_mixer(partial(build, max_len=140, **VARIANTS[variant]), d_model=8, is_causal=False)


def test_the_mixtures_start_with_the_variance_of_the_paper():
    layer = build(max_len=400, num_slots=25)
    for mixing in (layer.mix_k, layer.mix_v):
        assert abs(mixing.std().item() - 0.2) < 0.01


def test_autocast_stays_near_float32():
    layer, x = build(max_len=40, num_slots=9), torch.randn(2, 40, 8)
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    expected = layer(x, key_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x, key_mask=mask)[mask], expected[mask], 3e-2)


def test_options_that_do_not_fit_are_refused(unhooked):
    with pytest.raises(ValueError, match="is_causal must be False for Linformer"):
        LinformerAttention(8, 2, is_causal=True)
    with pytest.raises(ValueError, match="rotary must be False for Linformer"):
        build(rotary=True)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        build(max_len=0)
    with pytest.raises(ValueError, match="num_slots must be at least 1, got 0"):
        build(num_slots=0)
    with pytest.raises(ValueError, match="sharing must be one of none, heads, keys-values"):
        build(sharing="x")
    with pytest.raises(ValueError, match=r"at most 4 tokens, .* \(max_len\), got 5"):
        build(max_len=4)(torch.randn(1, 5, 8))
