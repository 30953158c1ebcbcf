from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.layers.positions import Rotary
from subquad.layers.strided_attention import StridedAttention
from subquad.ops.state import state_size_bytes
from subquad.ops.strided_attention import strided_attention_quadratic
from subquad.testing import check_mixer

VARIANTS = {
    "stride 1": {"stride": 1},
    "stride 4": {"stride": 4},
    "short window": {"stride": 5, "window": 2},
    "wide window": {"stride": 2, "window": 5},
    "rotary, widths": {"stride": 4, "rotary": True, "head_dim": 6, "value_dim": 3, "bias": False},
}
NARROW = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant, is_causal):
    build = partial(StridedAttention, 8, 2, is_causal=is_causal, **VARIANTS[variant])
    check_mixer(build, d_model=8, is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.usefixtures("unhooked")
def test_a_small_stride_keeps_it_in_narrower_dtypes(dtype, is_causal):
    options = {"window": 3, "stride": 4, "rotary": True}
    build = partial(StridedAttention, 8, 2, is_causal=is_causal, **options)
    check_mixer(build, d_model=8, is_causal=is_causal, dtype=dtype)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_the_layer_is_the_definition_between_its_projections(is_causal, rotary):
    options = {"is_causal": is_causal, "window": 2, "stride": 3}
    layer = StridedAttention(8, 2, rotary=rotary, **options).double()
    torch.nn.init.normal_(layer.heads.qkv_proj.bias)
    x = torch.randn(2, 11, 8).double()
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in layer.heads.qkv_proj(x).chunk(3, dim=-1)
    )
    if rotary:
        rotation = Rotary(4)(torch.arange(11)[None], torch.float64)
        q, k = rotation(q), rotation(k)
    y = strided_attention_quadratic(q, k, v, **options)
    assert_near(layer(x), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
def test_autocast_stays_near_float32(is_causal):
    layer = StridedAttention(32, 2, is_causal=is_causal, rotary=True, window=7, stride=4)
    x, mask = torch.randn(2, 40, 32), torch.arange(40) < torch.tensor([[40], [17]])
    expected, whole = layer(x, key_mask=mask), layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x, key_mask=mask)[mask], expected[mask], 3e-2)
        if is_causal:
            y, state = layer.prefill(x[:, :30], layer.init_state(2))
            more, state = layer.prefill(x[:, 30:39], state)
            step, state = layer.step(x[:, 39], state)
            assert_near(torch.cat([y, more, step[:, None]], 1), whole, 3e-2)


def test_the_state_holds_the_window_and_a_column_a_stride():
    layer = StridedAttention(8, 2, is_causal=True, window=5, stride=4).eval()
    state = layer.init_state(1)
    for read in (0, 10, 20, 30):
        assert state_size_bytes(state) == (5 + read // 4) * (8 + 8) * 4 + 8
        _, state = layer.prefill(torch.randn(1, 9, 8), state)
        _, state = layer.step(torch.randn(1, 8), state)


def test_the_window_is_as_wide_as_the_stride_unless_told():
    assert StridedAttention(8, 2, is_causal=True, stride=7).window == 7
    assert StridedAttention(8, 2, is_causal=True, stride=7, window=3).window == 3


def test_options_that_do_not_fit_are_refused(unhooked):
    build = partial(StridedAttention, 8, 2, is_causal=True)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        build(window=0)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        build(stride=0)
    layer, x = StridedAttention(8, 2, is_causal=False), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="init_state needs a mixer built with is_causal=True"):
        layer.init_state(1)
    with pytest.raises(ValueError, match="prefill needs a mixer built with is_causal=True"):
        layer.prefill(x, None)
    with pytest.raises(ValueError, match="step needs a mixer built with is_causal=True"):
        layer.step(x[:, 0], None)
