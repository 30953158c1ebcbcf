import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.models import DecoderLM
from subquad.tasks.config import TrainConfig
from subquad.tasks.copying import CopyTask
from subquad.tasks.training import fit

SIZES = {"max_len": 16, "num_symbols": 3}


def build(dropout=0.0):
    torch.manual_seed(0)
    return DecoderLM(4, num_layers=1, num_heads=2, d_model=16, d_ff=16, dropout=dropout)


def task(model=None, batch_size=5, **options):
    return CopyTask(model or build(), batch_size=batch_size, **SIZES, **options)


class Oracle(nn.Module):
    """Knows the answer: the logits of the token that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, tokens):
        following = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
        return self.scale * F.one_hot(following, 4)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    one, other = task(), task(seed=1)
    assert_close(one.batch(3), task().batch(3))
    assert not torch.equal(one.batch(3)[0], one.batch(4)[0])
    assert not torch.equal(one.batch(3)[0], other.batch(3)[0])


def test_the_loss_is_the_released_ratio_of_means():
    one = task()
    tokens, targets, mask = one.batch(0)
    nats = -one.model(tokens).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert_close(one.loss(tokens, targets, mask), nats[mask].mean())
    assert one.metric(1.5) == 1.5


@pytest.mark.parametrize("full", [True, False])
def test_evaluation_of_a_model_that_knows(full):
    found = task(Oracle()).evaluate(full=full)
    assert found["loss"] < 1e-6
    assert found["accuracy"] == 1.0


def test_evaluation_is_on_fixed_sequences_never_trained_on():
    model = build(dropout=0.5)
    one, other = task(model), task(model, seed=7)
    before = torch.get_rng_state()
    assert one.evaluate(full=False) == other.evaluate(full=False)
    assert one.evaluate(full=False) != one.evaluate(full=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0 to 1000000006, got -1"),
        ({"seed": 1_000_000_007}, "seed must be from 0 to 1000000006, got 1000000007"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        task(**options)


def test_a_model_trains(tmp_path):
    one = task(batch_size=16)
    before = one.evaluate(full=False)["loss"]
    options = TrainConfig(max_steps=40, batch_size=16, lr=1e-2, optimizer="adamw", device="cpu")
    result = fit(one, options, tmp_path, quiet=True)
    assert result.evaluation["loss"] < before
    assert set(result.evaluation) == {"loss", "accuracy"}
