import math

import pytest
import torch

from helpers import assert_near
from subquad.models import PixelModel
from subquad.ops.logistic_mixture import logistic_mixture_log_prob
from subquad.ops.state import state_size_bytes

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 16}
mixers = pytest.mark.parametrize("mixer", ["linear", "softmax"])


def stirred(model):
    """Move all parameters, so that no output starts at 0."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize(
    ("preset", "count"), [(PixelModel.mnist, 6_359_070), (PixelModel.cifar10, 12_677_150)]
)
@mixers
def test_parameter_counts_are_the_papers(preset, count, mixer):
    with torch.device("meta"):
        model = preset(mixer)
    assert sum(p.numel() for p in model.parameters()) == count


def test_presets_take_overrides_and_refuse_typos():
    with torch.device("meta"):
        assert PixelModel.mnist(num_layers=1, dropout=0.0).config["num_layers"] == 1
        with pytest.raises(TypeError, match="unexpected keyword argument 'droput'"):
            PixelModel.mnist(droput=0.0)


def test_the_state_of_the_mnist_model_has_270336_bytes_at_every_position():
    model = PixelModel.mnist("linear").eval()
    sizes = []
    with torch.inference_mode():
        state = model.init_state(1)
        sizes.append(state_size_bytes(state.mixers))
        for length in (1, 100, 683):
            _, state = model.decoder.prefill(torch.randn(1, length, 128), state)
            sizes.append(state_size_bytes(state.mixers))
    assert int(state.position) == 784
    assert sizes == [270_336] * 4
    assert state_size_bytes(state) - sizes[0] == 8  # the position


def test_the_softmax_cache_of_the_mnist_model_grows_to_12845056_bytes():
    model = PixelModel.mnist("softmax").eval()
    with torch.inference_mode():
        assert state_size_bytes(model.init_state(1).mixers) == 0
        _, state = model.decoder.prefill(torch.randn(1, 783, 128), model.init_state(1))
        assert state_size_bytes(state.mixers) == 2 * 4 * 8 * 256 * 783
        _, state = model.decoder.step_(torch.randn(1, 128), state)
    assert state_size_bytes(state.mixers) == 12_845_056


@mixers
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["sinusoidal-concat", "rotary"])
def test_changing_a_pixel_leaves_predictions_up_to_it_bit_identical(mixer, norm, positions):
    model = stirred(PixelModel(150, **SIZES, mixer=mixer, norm=norm, positions=positions)).eval()
    pixels = torch.randint(256, (2, 150))
    expected = model(pixels)
    for j in (0, 1, 63, 64, 100, 148, 149):
        other = pixels.clone()
        other[:, j] = (other[:, j] + 128) % 256
        changed = model(other)
        # Prediction t is of pixel t + 1: those up to pixel j come first.
        assert torch.equal(changed[:, :j], expected[:, :j])
        if j < 149:
            assert not torch.equal(changed[:, j], expected[:, j])


@mixers
def test_a_pixel_is_predicted_of_those_before_in_every_form(mixer):
    model = stirred(PixelModel(20, **SIZES, mixer=mixer)).double().eval()
    pixels = torch.randint(256, (2, 20))
    expected = model(pixels)
    tokens = model.byte_embedding(pixels)
    hidden, state = model.decoder.prefill(tokens[:, :9], model.init_state(2))
    parts = [hidden]
    for t in range(9, 19):
        hidden, state = model.decoder.step(tokens[:, t], state)
        parts.append(hidden.unsqueeze(1))
    assert_near(model.head(torch.cat(parts, 1)), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_nll_is_that_of_the_next_bytes_for_any_integer_dtype(dtype):
    model = stirred(PixelModel(9, **SIZES)).eval()
    pixels = torch.tensor([[0, 255, 3, 4, 200, 0, 0, 255, 17]])
    parameters = model(pixels)
    expected = -logistic_mixture_log_prob(parameters, pixels[:, 1:])
    nll = model.nll(pixels.to(dtype))
    assert nll.shape == (1, 8)
    assert torch.equal(nll, expected)


def test_a_new_model_is_near_the_8_bits_of_ignorance_and_learns():
    model = PixelModel(16, **SIZES)
    pixels = torch.full((4, 16), 77)
    pixels[:, ::2] = 200
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bits = []
    for _ in range(100):
        loss = model.nll(pixels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item() / math.log(2))
    assert 5 < bits[0] < 12
    assert min(bits) < 0.6 * bits[0]


def test_each_parameter_is_trained():
    model = PixelModel(16, **SIZES, num_classes=3, dropout=0.1)
    model.nll(torch.randint(256, (4, 16)), torch.tensor([0, 1, 2, 0])).mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_classes_condition_the_predictions():
    model = stirred(PixelModel(9, **SIZES, num_classes=3)).eval()
    pixels = torch.randint(256, (1, 9)).expand(3, 9)
    parameters = model(pixels, torch.tensor([0, 1, 1]))
    assert_near(parameters[1], parameters[2], 1e-6)
    assert not torch.allclose(parameters[0], parameters[1])
    uint8 = model(pixels, torch.tensor([0, 1, 1], dtype=torch.uint8))
    assert torch.equal(uint8, parameters)


def test_the_config_rebuilds_the_model():
    model = PixelModel(9, **SIZES, mixer="softmax", num_classes=3, norm="pre", positions="learned")
    again = PixelModel(**model.config)
    again.load_state_dict(model.state_dict())
    pixels, labels = torch.randint(256, (1, 9)), torch.tensor([2])
    assert torch.equal(model(pixels, labels), again(pixels, labels))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seq_len": 1}, ValueError, "seq_len must be at least 2, got 1"),
        ({"seq_len": -3}, ValueError, "seq_len must be at least 1, got -3"),
        ({"seq_len": 9.0}, TypeError, "seq_len must be an int, got float"),
        ({"num_mixtures": 0}, ValueError, "num_mixtures must be at least 1, got 0"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"mixer": "nothing"}, ValueError, "mixer must be one of .*linear.* got 'nothing'"),
        ({"d_model": 15}, ValueError, r"position width must be divisible by 2, got 7"),
    ],
)
def test_constructor_errors(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        PixelModel(**{"seq_len": 9, **SIZES, **options})


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "message"),
    [
        (torch.zeros(2, 8).long(), None, ValueError, r"pixels must have .* \(B, 9\), got \(2, 8\)"),
        (torch.zeros(9).long(), None, ValueError, r"pixels must have shape \(B, T\), got \(9,\)"),
        (torch.zeros(0, 9).long(), None, ValueError, r"no axis of size 0, got shape \(0, 9\)"),
        (torch.zeros(2, 9), None, TypeError, "pixels must be of an integer dtype, got torch"),
        (torch.full((2, 9), 256), None, ValueError, "pixels must lie from 0 to 255, got 256"),
        (torch.full((2, 9), -1), None, ValueError, "pixels must lie from 0 to 255, got -1"),
        (
            torch.zeros(2, 9).long(), torch.tensor([0, 1]), ValueError,
            "labels must be given exactly when num_classes is, got labels with num_classes=None",
        ),
    ],
)  # fmt: skip
def test_errors_of_pixels(pixels, labels, error, message, unhooked):
    with pytest.raises(error, match=message):
        PixelModel(9, **SIZES)(pixels, labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, ValueError, "labels must be given exactly when num_classes is, got none with .*=3"),
        (torch.tensor([0]), ValueError, r"labels must have shape \(2,\), got \(1,\)"),
        (torch.tensor([0, 3]), ValueError, "labels must lie from 0 to 2, got 3"),
        (torch.tensor([0.0, 1.0]), TypeError, "labels must be of an integer dtype"),
    ],
)
def test_errors_of_labels(labels, error, message, unhooked):
    with pytest.raises(error, match=message):
        PixelModel(9, **SIZES, num_classes=3)(torch.zeros(2, 9).long(), labels)


def test_the_head_stays_in_float32_under_autocast():
    """bf16 would round means near 1 to 2^-8, and a byte is 2 / 255 wide."""
    model = stirred(PixelModel(9, num_mixtures=4, **SIZES)).eval()
    pixels, hidden = torch.randint(256, (2, 9)), []
    model.decoder.register_forward_hook(lambda module, args, y: hidden.append(y))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(pixels)
    assert found.dtype == torch.float32
    assert torch.equal(
        found, torch.nn.functional.linear(hidden[0].float(), *model.head.parameters())
    )
    half = model.bfloat16()
    assert half(pixels).dtype == torch.float32
    assert half.generate(1, seed=0).shape == (1, 9)
