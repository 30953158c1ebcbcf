"""Encoder and decoder: the mixers' whole contract again, on whole models."""

from functools import partial

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.layers import LinearAttention
from subquad.models import TransformerDecoder, TransformerEncoder
from subquad.testing import check_mixer

POSITIONS = ("none", "sinusoidal", "sinusoidal-concat", "learned", "rotary", "learned-rotary")
SIZES = {"num_layers": 2, "num_heads": 2, "d_ff": 12, "max_len": 200}


class SameWidth(nn.Module):
    """A model that takes tokens as wide as it gives, and uses the first ``token_width`` numbers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, **masks):
        return self.model(x[..., : self.model.token_width], **masks)

    def init_state(self, batch_size):
        return self.model.init_state(batch_size)

    def prefill(self, x, state, **masks):
        return self.model.prefill(x[..., : self.model.token_width], state, **masks)

    def step(self, x_t, state):
        return self.model.step(x_t[..., : self.model.token_width], state)

    def step_(self, x_t, state):
        return self.model.step_(x_t[..., : self.model.token_width], state)


@pytest.mark.parametrize("model", [TransformerDecoder, TransformerEncoder])
@pytest.mark.parametrize(
    ("positions", "mixer", "norm"),
    [
        ("none", "linear", "post"),
        ("none", "softmax", "pre"),
        ("sinusoidal", "softmax", "post"),
        ("sinusoidal-concat", "linear", "pre"),
        ("learned", "linear", "post"),
        ("rotary", "linear", "post"),
        ("rotary", "softmax", "pre"),
    ],
)
def test_a_whole_model_keeps_the_mixers_contract(model, positions, mixer, norm):
    options = {**SIZES, "positions": positions, "mixer": mixer, "norm": norm}
    check_mixer(
        lambda: SameWidth(model(8, **options)), d_model=8, is_causal=model is TransformerDecoder
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mixer", ["linear", "softmax"])
def test_order_counts_with_any_positions_and_not_without(positions, mixer):
    model = TransformerEncoder(8, **SIZES, mixer=mixer, positions=positions).double()
    x = torch.randn(1, 7, model.token_width).double()
    changed = (model(x.flip(1)).flip(1) - model(x)).norm() / model(x).norm()
    assert (changed < 1e-12) == (positions == "none")


def test_float32_is_near_float64():
    for mixer in ("linear", "softmax"):
        model = TransformerDecoder(32, num_layers=4, num_heads=4, mixer=mixer, positions="rotary")
        x = torch.randn(2, 150, 32)
        single = model(x)
        _, state = model.prefill(x[:, :100], model.init_state(2))
        y_t, state = model.step(x[:, 100], state)
        expected = model.double()(x.double())
        assert_near(single, expected, 1e-5)
        assert_near(y_t, expected[:, 100], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", ["linear", "softmax"])
@pytest.mark.parametrize("positions", ["sinusoidal-concat", "rotary"])
def test_half_precision_and_autocast_are_near_float32(dtype, mixer, positions):
    options = {"num_layers": 3, "num_heads": 4, "mixer": mixer, "positions": positions}
    model = TransformerDecoder(32, **options)
    x = torch.randn(2, 300, model.token_width)
    expected = model(x)
    with torch.autocast("cpu", dtype):
        assert_near(model(x), expected, 4e-2)
    assert_near(model.to(dtype)(x.to(dtype)), expected, 4e-2)


def test_nan_in_padding_reaches_no_parameter_gradient_in_half_precision():
    model = TransformerDecoder(16, num_layers=2, num_heads=2, norm="pre").bfloat16()
    x = torch.full((2, 6, 16), torch.nan, dtype=torch.bfloat16)
    mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    x[0, :4] = 1
    y = model(x, key_mask=mask)
    assert torch.isfinite(y).all()
    y[mask].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_mixer_may_be_a_factory_and_widths_are_free():
    factory = partial(LinearAttention, bias=False)
    model = TransformerEncoder(8, num_layers=1, num_heads=2, head_dim=3, value_dim=5, mixer=factory)
    mixer = model.stack.blocks[0].mixer
    assert mixer.heads.qkv_proj.bias is None
    assert mixer.heads.qkv_proj.weight.shape == (2 * (3 + 3 + 5), 8)
    assert model(torch.randn(1, 4, 8)).shape == (1, 4, 8)


def test_defaults_of_widths_and_of_the_final_norm():
    model = TransformerEncoder(8, num_layers=1, num_heads=2, final_norm=False)
    assert model.stack.blocks[0].feed_forward.inner.out_features == 32
    assert isinstance(model.stack.final_norm, nn.Identity)
    assert TransformerEncoder(8, num_heads=2, positions="sinusoidal-concat").token_width == 4
    wide = TransformerEncoder(8, num_heads=2, positions="sinusoidal-concat", position_width=2)
    assert wide.token_width == 6


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mixer", ["linear", "softmax"])
def test_models_build_on_the_meta_device(positions, mixer):
    options = {**SIZES, "positions": positions, "mixer": mixer}
    with torch.device("meta"):
        model = TransformerDecoder(8, **options)
        assert model(torch.zeros(2, 5, model.token_width)).is_meta
    real = TransformerDecoder(8, **options)
    model.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(2, 5, model.token_width)
    assert torch.equal(model(x), real(x))


@pytest.mark.parametrize("model", [TransformerDecoder, TransformerEncoder])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"num_layers": 1.0}, TypeError, r"num_layers must be an int, got float 1\.0"),
        ({"num_heads": 3}, ValueError, r"num_heads must divide d_model \(8\)"),
        ({"d_ff": -1}, ValueError, "d_ff must be at least 1, got -1"),
        ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
        ({"mixer": "sofmax"}, ValueError, "mixer must be one of softmax, .*linear.* got 'sofmax'"),
        ({"norm": "both"}, ValueError, "norm must be one of post, pre; got 'both'"),
        ({"activation": "silu"}, ValueError, "activation must be one of relu, gelu, .* got 'silu'"),
        ({"dropout": -0.5}, ValueError, r"dropout must be at least 0 and below 1, got -0\.5"),
        ({"positions": "rotatory"}, ValueError, "positions must be one of none, .* got 'rotatory'"),
        ({"positions": "learned"}, ValueError, "max_len must be given with learned positions"),
        (
            {"positions": "sinusoidal-concat", "position_width": 8}, ValueError,
            r"position width must be below d_model \(8\), got 8",
        ),
        ({"layers": 2}, TypeError, "unexpected keyword argument 'layers'"),
    ],
)  # fmt: skip
def test_constructor_errors(model, options, error, message, unhooked):
    with pytest.raises(error, match=message):
        model(**{"d_model": 8, "num_heads": 2, **options})


@pytest.mark.parametrize("model", [TransformerDecoder, TransformerEncoder])
@pytest.mark.parametrize(
    ("shape", "masks", "message"),
    [
        ((2, 3, 8), {}, r"x must have shape \(B, T, 4\) .* got \(2, 3, 8\)"),
        ((4,), {}, r"x must have shape \(B, T, 4\) .* got \(4,\)"),
        ((2, 0, 4), {}, r"B, T >= 1, got \(2, 0, 4\)"),
        ((0, 3, 4), {}, r"B, T >= 1, got \(0, 3, 4\)"),
        ((2, 3, 4), {"key_mask": torch.ones(2, 4).bool()}, "key_mask must have shape"),
        ((1, 3, 4), {"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must start with 0 and end"),
        (
            (1, 3, 4), {"cu_seqlens": torch.tensor([0, 3]), "key_mask": torch.ones(1, 3).bool()},
            "cu_seqlens and key_mask must not be given together",
        ),
    ],
)  # fmt: skip
def test_call_errors(model, shape, masks, message, unhooked):
    made = model(8, num_layers=1, num_heads=2, positions="sinusoidal-concat")
    with pytest.raises(ValueError, match=message):
        made(torch.zeros(shape), **masks)


def test_errors_of_states(unhooked):
    model = TransformerDecoder(8, num_layers=1, num_heads=2, positions="sinusoidal-concat")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.init_state(0)
    state = model.init_state(2)
    message = r"state must have the batch size of the tokens \(3\), got 2"
    with pytest.raises(ValueError, match=message):
        model.prefill(torch.zeros(3, 2, 4), state)
    for take in (model.step, model.step_):
        with pytest.raises(ValueError, match=message):
            take(torch.zeros(3, 4), state)
        with pytest.raises(ValueError, match=r"x_t must have shape \(B, 4\)"):
            take(torch.zeros(2, 1, 4), state)
    with pytest.raises(TypeError, match=r"x must be of a floating dtype, got torch\.int64"):
        model(torch.zeros(1, 2, 4, dtype=torch.long))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("mixer", "norm"), [("linear", "post"), ("softmax", "pre")])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stepper_takes_the_steps_that_step_takes(positions, mixer, norm, batch_size):
    """Rows at different positions, as after a masked prefill."""
    options = {"positions": positions, "mixer": mixer, "norm": norm, "dropout": 0.1}
    model = TransformerDecoder(8, **SIZES, **options).double().eval()
    x = torch.randn(batch_size, 9, model.token_width).double()
    mask = torch.arange(4) < torch.arange(1, batch_size + 1).unsqueeze(1)
    with torch.inference_mode():
        _, state = model.prefill(x[:, :4], model.init_state(batch_size), key_mask=mask)
        expected_state = state
        steps = []
        for t in range(4, 9):
            y, expected_state = model.step(x[:, t], expected_state)
            steps.append(y)
        take = model.stepper(batch_size, 4 + 5)
        for t in range(4, 9):
            y, state = take(x[:, t], state)
            assert_near(y, steps[t - 4], 1e-12)
    assert torch.equal(state.position, expected_state.position)


def test_a_stepper_uses_its_mixers_own(monkeypatch):
    model = TransformerDecoder(8, **SIZES).eval()
    asked = []

    def stepper(self, batch_size):
        asked.append(batch_size)
        return self.step_

    monkeypatch.setattr(LinearAttention, "stepper", stepper, raising=False)
    with torch.inference_mode():
        model.stepper(9, 5)(torch.randn(9, 8), model.init_state(9))  # too many for one native call
    assert asked == [9, 9]


def test_errors_of_steppers(unhooked):
    model = TransformerDecoder(8, **SIZES, positions="learned")
    for sizes, message in (
        ((0, 5), "batch_size must be at least 1, got 0"),
        ((2, 0), "seq_len must be at least 1, got 0"),
        ((2, 201), r"positions must be below max_len \(200\), got 200"),
    ):
        with pytest.raises(ValueError, match=message):
            model.stepper(*sizes)
