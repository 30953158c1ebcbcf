"""The LSTM mixer against its equations, written out token by token, and all that it refuses."""

import copy
from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.layers import MIXERS
from subquad.layers.lstm import LSTMMixer, LSTMState
from subquad.models import TransformerDecoder, TransformerEncoder
from subquad.ops.state import load_state, save_state, state_size_bytes
from subquad.testing import check_mixer

DIRECTIONS = {"causal": True, "bidirectional": False}
directions = pytest.mark.parametrize("is_causal", DIRECTIONS.values(), ids=DIRECTIONS)


def build(is_causal, *, dtype=torch.float64, **options):
    return LSTMMixer(6, 2, is_causal=is_causal, hidden_size=5, **options).to(dtype)


def one_direction(lstm, tokens, suffix):
    """The equations of an LSTM over a list of tokens, gates in torch's order: i, f, g, o."""
    w_x, w_h = (getattr(lstm, f"weight_{part}_l0{suffix}") for part in ("ih", "hh"))
    b = getattr(lstm, f"bias_ih_l0{suffix}") + getattr(lstm, f"bias_hh_l0{suffix}")
    h = c = w_x.new_zeros(w_h.shape[1])
    outputs = []
    for x in tokens:
        i, f, g, o = (w_x @ x + w_h @ h + b).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return outputs


def definition(layer, x, mask):
    """Each row's valid tokens alone, from the left and (bi-LSTM) from the right; 0 elsewhere."""
    rows = []
    for row, keep in zip(x, mask, strict=True):
        valid = list(row[keep])
        y = one_direction(layer.lstm, valid, "")
        if not layer.is_causal:
            back = one_direction(layer.lstm, valid[::-1], "_reverse")[::-1]
            y = [torch.cat(pair) for pair in zip(y, back, strict=True)]
        full = torch.zeros_like(row)
        if y:
            full = full.index_put((keep,), layer.out_proj(torch.stack(y)))
        rows.append(full)
    return torch.stack(rows)


MASKS = {
    "whole": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
    "left": [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]],
}


@directions
@pytest.mark.parametrize("name", MASKS)
def test_the_layer_is_the_equations_on_the_valid_tokens_alone(is_causal, name):
    layer, mask = build(is_causal), torch.tensor(MASKS[name]).bool()
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    x[~mask] = torch.nan
    x.requires_grad_()
    y = layer(x, key_mask=mask)
    expected = definition(layer, x, mask)
    assert_near(y, expected, 1e-12)
    upstream, at = torch.randn_like(y), [x, *layer.parameters()]
    grads = [torch.autograd.grad((out * upstream).sum(), at) for out in (y, expected)]
    for actual, wanted in zip(*grads, strict=True):
        assert (actual - wanted).norm() <= 1e-12 * wanted.norm()
    assert (y[~mask] == 0).all()


@directions
def test_without_a_mask_it_is_torchs_own_lstm(is_causal):
    layer, x = build(is_causal), torch.randn(2, 9, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer.out_proj(layer.lstm(x)[0]))
    assert_near(layer(x, key_mask=torch.ones(2, 9).bool()), layer(x), 1e-12)


@directions
def test_packed_sequences_are_each_alone(is_causal):
    layer, x = build(is_causal), torch.randn(1, 12, 6, dtype=torch.float64)
    borders = torch.tensor([0, 3, 3, 4, 12])
    alone = [layer(x[:, a:b]) for a, b in ((0, 3), (3, 4), (4, 12))]
    assert_near(layer(x, cu_seqlens=borders), torch.cat(alone, 1), 1e-12)


def test_a_row_without_valid_tokens_keeps_its_state():
    layer, x = build(True), torch.randn(3, 4, 6, dtype=torch.float64)
    _, state = layer.prefill(x, layer.init_state(3))
    mask = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    y, after = layer.prefill(x, state, key_mask=mask)
    assert (y[[0, 2]] == 0).all()
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert not torch.equal(old[1], new[1])
    _, same = layer.prefill(x, state, key_mask=mask & False)
    assert all(torch.equal(old, new) for old, new in zip(state, same, strict=True))


VARIANTS = {
    "hidden_size": partial(LSTMMixer, 8, 2, hidden_size=5),
    "no bias": partial(LSTMMixer, 8, 3, bias=False),
}


@directions
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant, is_causal):
    make = partial(VARIANTS[variant], is_causal=is_causal)
    check_mixer(make, d_model=8, is_causal=is_causal)


@directions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_weights_keep_a_wide_recurrence_and_can_be_copied(is_causal, dtype):
    layer = build(is_causal, dtype=torch.float32)
    half, x = copy.deepcopy(layer).to(dtype), torch.randn(2, 40, 6).to(dtype)
    y = half(x)
    rounded = copy.deepcopy(half).float()
    assert y.dtype == dtype
    assert_near(y, rounded(x.float()), 2 * torch.finfo(dtype).eps)
    assert torch.equal(copy.deepcopy(half)(x), y)
    if is_causal:
        assert {part.dtype for part in half.init_state(2)} == {torch.float32}


@directions
def test_autocast_narrows_the_projection_only(is_causal):
    layer, x = build(is_causal, dtype=torch.float32), torch.randn(2, 40, 6)
    mask = torch.arange(40) < torch.tensor([[40], [17]])
    expected = layer(x, key_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, key_mask=mask)
        assert y.dtype == torch.bfloat16
        assert_near(y, expected, 1e-2)
        if is_causal:
            _, state = layer.prefill(x[:, :30].bfloat16(), layer.init_state(2))
            assert state.h.dtype == torch.float32
            assert layer.step(x[:, 30], state)[0].dtype == torch.bfloat16


def test_the_state_is_small_and_goes_to_a_file_and_back(tmp_path):
    layer, x = build(True), torch.randn(2, 300, 6, dtype=torch.float64)
    _, state = layer.prefill(x, layer.init_state(2))
    assert state_size_bytes(state) == 2 * 2 * 5 * 8
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors", layer.init_state(1))
    assert isinstance(loaded, LSTMState)
    assert torch.equal(layer.step(x[:, 0], loaded)[0], layer.step(x[:, 0], state)[0])


@directions
def test_it_builds_on_the_meta_device_and_loads_there(is_causal):
    with torch.device("meta"):
        layer = build(is_causal)
    real, x = build(is_causal), torch.randn(2, 5, 6, dtype=torch.float64)
    layer.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(layer(x), real(x))


def test_models_take_it_by_name():
    assert MIXERS["lstm"] is LSTMMixer
    options = {"num_layers": 2, "num_heads": 3, "mixer": "lstm"}
    x = torch.randn(2, 5, 8)
    assert TransformerEncoder(8, **options)(x).shape == x.shape
    decoder = TransformerDecoder(8, **options).eval()
    state, steps = decoder.init_state(2), []
    for x_t in x.unbind(1):
        y, state = decoder.step_(x_t, state)
        steps.append(y)
    assert_near(torch.stack(steps, 1), decoder(x), 1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": True}, TypeError, "num_heads must be an int, got bool True"),
        ({"d_model": -8}, ValueError, "d_model must be at least 1, got -8"),
        ({"d_model": 8.0}, TypeError, r"d_model must be an int, got float 8\.0"),
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"hidden_size": 2.5}, TypeError, r"hidden_size must be an int, got float 2\.5"),
        ({"rotary": True}, TypeError, "unexpected keyword argument 'rotary'"),
        ({"head_dim": 4}, TypeError, "unexpected keyword argument 'head_dim'"),
        ({"value_dim": 4}, TypeError, "unexpected keyword argument 'value_dim'"),
    ],
)
def test_constructor_errors(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        LSTMMixer(**{"d_model": 8, "num_heads": 2, "is_causal": True, **options})


def test_a_model_with_rotary_positions_is_refused(unhooked):
    with pytest.raises(TypeError, match="unexpected keyword argument 'rotary'"):
        TransformerDecoder(8, num_heads=2, mixer="lstm", positions="rotary")


def tokens(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


@directions
@pytest.mark.parametrize(
    ("x", "masks", "error", "message"),
    [
        (tokens(2, 3, 7), {}, ValueError, r"x must have shape \(B, T, 6\) .* got \(2, 3, 7\)"),
        (tokens(2, 0, 6), {}, ValueError, r"B, T >= 1, got \(2, 0, 6\)"),
        (tokens(2, 3, 6).long(), {}, TypeError, "x must be of a floating dtype, got torch.int64"),
        (tokens(2, 3, 6), {"key_mask": torch.ones(2, 4) > 0}, ValueError, r"got \(2, 4\)"),
        (tokens(2, 3, 6), {"key_mask": torch.ones(2, 3)}, TypeError, "key_mask must be bool"),
        (tokens(2, 3, 6), {"cu_seqlens": torch.tensor([0, 3])}, ValueError, "batch of size 1"),
        (tokens(1, 3, 6), {"cu_seqlens": torch.tensor([0, 4])}, ValueError, "got 0 and 4"),
    ],
)
def test_forward_errors(is_causal, x, masks, error, message, unhooked):
    with pytest.raises(error, match=message):
        build(is_causal)(x, **masks)


def test_errors_of_steps_and_states(unhooked):
    layer = build(True)
    state = layer.init_state(2)
    for take in (layer.step, layer.step_):
        with pytest.raises(ValueError, match=r"x_t must have shape \(B, 6\) .* got \(2, 1, 6\)"):
            take(tokens(2, 1, 6), state)
        with pytest.raises(ValueError, match=r"batch size of the tokens \(3\), got 2"):
            take(tokens(3, 6), state)
    with pytest.raises(ValueError, match=r"batch size of the tokens \(3\), got 1"):
        layer.prefill(tokens(3, 4, 6), layer.init_state(1))
    with pytest.raises(ValueError, match=r"key_mask must have shape"):
        layer.prefill(tokens(2, 4, 6), state, key_mask=torch.ones(2, 3) > 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        layer.init_state(0)


def test_a_bi_lstm_has_no_state():
    layer, state = build(False), build(True).init_state(1)
    for call in (
        partial(layer.init_state, 1),
        partial(layer.prefill, tokens(1, 2, 6), state),
        partial(layer.step, tokens(1, 6), state),
        partial(layer.step_, tokens(1, 6), state),
    ):
        with pytest.raises(ValueError, match="needs a mixer built with is_causal=True"):
            call()
