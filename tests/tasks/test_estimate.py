import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.layers import SoftmaxAttention
from subquad.models import PixelModel
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import estimate, seconds_per_step
from subquad.tasks.pixels import PixelTask


class Square:
    """A linear map of 5 to 7 numbers: everything can be counted by hand."""

    unit, sample_name, samples_per_step, identity = "x", "rows", 6, {}

    def __init__(self) -> None:
        self.model = nn.Linear(5, 7)

    def batch(self, step):
        return (torch.ones(6, 5),)

    def loss(self, *batch):
        return self.model(batch[0]).square().mean()

    def metric(self, loss):
        return loss

    def evaluate(self, *, full):
        return {"loss": 0.0}


def config(**options):
    given = {"max_steps": 100, "batch_size": 6, "lr": 0.1, "device": "cpu", "grad_accumulation": 2}
    return TrainConfig(**{**given, **options})


def test_what_can_be_counted_by_hand():
    found = estimate(Square(), config())
    assert found.parameters == 42
    # A product forward and one for the weights backward; the input learns nothing.
    assert found.flops_per_step == 2 * (2 * 5 * 7) * 12
    assert found.flops == 100 * found.flops_per_step
    assert found.steps == 100
    assert found.minutes == pytest.approx(100 * found.seconds_per_step / 60)
    assert found.disk_gb == pytest.approx(4 * 42 * 4 / 1e9)
    # weights, gradients, two moments; the input (5) and the output (7) of each sample.
    assert found.memory_gb == pytest.approx((4 * 42 * 4 + 6 * 12 * 4) / 1e9)


def test_minutes_give_steps():
    found = estimate(Square(), config(max_steps=None, minutes=1.0))
    assert found.steps >= 1
    assert found.minutes <= 1.0


def test_the_model_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = PixelModel(9, num_layers=1, num_heads=2, d_model=16, d_ff=16, num_mixtures=2).eval()
    images = torch.randint(256, (8, 9), dtype=torch.uint8).numpy()
    task = PixelTask(model, images, images, batch_size=6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    found = estimate(task, config())
    assert found.flops_per_step > 12 * 6 * sum(p.numel() for p in model.decoder.parameters())
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


class Attends(Square):
    """One causal softmax attention: 7 tokens of width 6, 2 heads of width 3."""

    def __init__(self, attention_dropout):
        self.model = SoftmaxAttention(6, 2, is_causal=True, attention_dropout=attention_dropout)

    def batch(self, step):
        return (torch.ones(6, 7, 6),)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.5], ids=["fused", "in steps"])
def test_the_products_of_softmax_attention_are_counted(attention_dropout):
    found = estimate(Attends(attention_dropout), config(grad_accumulation=1))
    projections = 2 * 7 * 6 * (18 + 6)
    # Forward and for the weights; the tokens learn nothing, but what goes into out_proj does.
    linear = 2 * projections + 2 * 7 * 6 * 6
    product = 2 * 2 * 7 * 7 * 3  # multiply-adds of 2 heads, for scores or for the sum over values
    again = 0 if attention_dropout else 1  # fused attention makes the scores anew going backward
    assert found.flops_per_step == 6 * (linear + (2 + 4 + again) * product)


def test_seconds_of_one_step_leave_the_model_as_it_is():
    task = Square()
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    random = torch.get_rng_state()
    assert seconds_per_step(task, config()) > 0
    assert_close(task.model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in task.model.parameters())
