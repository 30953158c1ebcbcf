"""What only a GPU can show: its kernels see no future, and decode what they train."""

import pytest
import torch

from helpers import assert_near
from subquad.models import PixelModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
SEQ_LEN = 150
OPTIONS = {"num_layers": 2, "num_heads": 2, "d_model": 32, "d_ff": 32}
mixers = pytest.mark.parametrize("mixer", ["linear", "softmax"])
positions = pytest.mark.parametrize("positions", ["sinusoidal-concat", "rotary"])


def build(mixer, positions):
    return PixelModel(SEQ_LEN, mixer=mixer, positions=positions, **OPTIONS).eval().cuda()


@mixers
@positions
def test_no_output_sees_the_future_on_a_gpu(mixer, positions):
    model = build(mixer, positions)
    pixels = torch.randint(256, (2, SEQ_LEN), device="cuda")
    with torch.inference_mode():
        before = model(pixels)
        for t in (1, 63, 64, SEQ_LEN - 2):
            changed = pixels.clone()
            changed[:, t:] = 255 - changed[:, t:]
            assert torch.equal(model(changed)[:, :t], before[:, :t])


@mixers
@positions
def test_prefill_and_steps_are_the_forward_on_a_gpu(mixer, positions):
    model = build(mixer, positions)
    x = torch.randn(3, SEQ_LEN, model.decoder.token_width, device="cuda")
    with torch.inference_mode():
        expected = model.decoder(x)
        y, state = model.decoder.prefill(x[:, :70], model.init_state(3))
        outputs = [y]
        for t in range(70, SEQ_LEN):
            take = model.decoder.step if t % 2 else model.decoder.step_
            y, state = take(x[:, t], state)
            outputs.append(y.unsqueeze(1))
    assert_near(torch.cat(outputs, 1), expected, 1e-4)
    assert_near(expected, model.cpu().decoder(x.cpu()).detach(), 1e-3)
