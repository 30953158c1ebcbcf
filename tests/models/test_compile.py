"""Whole models through torch.compile and torch.export, without a break in the graph."""

import pytest
import torch

from helpers import assert_near
from subquad.models import PixelModel, TransformerDecoder, TransformerEncoder

pytestmark = [
    pytest.mark.compile,
    # Both are the compiler's own doing while it traces.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
SIZES = {"num_layers": 1, "num_heads": 2, "d_ff": 16}
mixers = pytest.mark.parametrize("mixer", ["linear", "softmax"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("model", "mixer", "positions"),
    [
        (TransformerEncoder, "linear", "rotary"),
        (TransformerEncoder, "softmax", "sinusoidal-concat"),
        (TransformerDecoder, "linear", "sinusoidal-concat"),
        (TransformerDecoder, "softmax", "learned"),
    ],
)
def test_a_model_compiles_whole_with_masks_and_gradients(model, mixer, positions):
    made = model(16, mixer=mixer, positions=positions, max_len=80, **SIZES)
    x = torch.randn(2, 70, made.token_width)
    mask = torch.arange(70) < torch.tensor([[70], [33]])
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for key_mask in (None, mask):
        expected = made(x, key_mask=key_mask)
        actual = compiled(x, key_mask=key_mask)
        assert_near(actual, expected, 1e-5)
        weight, parameters = torch.randn_like(x[..., :1]), list(made.parameters())
        grads = (
            torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True)
            for y in (actual, expected)
        )
        for grad, reference in zip(*grads, strict=True):
            assert (grad is None) == (reference is None)
            if grad is not None:
                assert (grad - reference).norm() <= 1e-4 * (reference.norm() + 1e-2)


@mixers
@pytest.mark.parametrize("way", [True, "mixers"])
def test_a_model_with_checkpointing_compiles_whole(mixer, way):
    made = TransformerEncoder(16, mixer=mixer, checkpointing=way, **SIZES)
    x, parameters = torch.randn(2, 70, 16), list(made.parameters())
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    weight = torch.randn(2, 70, 1)
    grads = (torch.autograd.grad((y * weight).sum(), parameters) for y in (compiled(x), made(x)))
    for grad, reference in zip(*grads, strict=True):
        assert (grad - reference).norm() <= 1e-4 * (reference.norm() + 1e-2)


@mixers
def test_the_pixel_models_loss_compiles_whole(mixer):
    model = PixelModel(20, d_model=16, mixer=mixer, **SIZES)
    pixels = torch.randint(256, (2, 20))
    compiled = torch.compile(model.nll, fullgraph=True, backend="aot_eager")
    assert_near(compiled(pixels), model.nll(pixels), 1e-5)


@mixers
def test_a_step_compiles_whole(mixer):
    model = TransformerDecoder(16, mixer=mixer, positions="sinusoidal-concat", **SIZES)
    state = model.prefill(torch.randn(2, 5, 8), model.init_state(2))[1]
    compiled = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    x_t = torch.randn(2, 8)
    y, after = compiled(x_t, state)
    expected, expected_after = model.step(x_t, state)
    assert_near(y, expected, 1e-5)
    assert torch.equal(after.position, expected_after.position)


@pytest.mark.parametrize(
    ("model", "mixer"),
    [
        (TransformerEncoder, "linear"),
        (TransformerEncoder, "softmax"),
        (TransformerDecoder, "softmax"),
        pytest.param(
            TransformerDecoder,
            "linear",
            marks=pytest.mark.xfail(
                raises=torch._dynamo.exc.UserError,
                reason="the loop over chunks is unrolled, which fixes the length at export",
            ),
        ),
    ],
)
def test_a_model_exports_with_a_dynamic_length(model, mixer):
    made = model(16, mixer=mixer, positions="sinusoidal-concat", **SIZES).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(
        made, (torch.randn(2, 70, 8),), dynamic_shapes={"x": {1: length}}, strict=False
    ).module()
    for seq_len in (5, 70, 131):
        x = torch.randn(2, seq_len, 8)
        assert_near(exported(x), made(x), 1e-5)
