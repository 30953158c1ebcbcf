import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from subquad.models import DecoderLM
from subquad.tasks.recall import RecallTask
from subquad.tasks.task import Task

SIZES = {"num_pairs": 3, "num_keys": 4, "num_values": 5}


def build():
    torch.manual_seed(0)
    return DecoderLM(9, num_layers=1, num_heads=2, d_model=16, d_ff=16)


def task(model=None, batch_size=5, **options):
    return RecallTask(model or build(), batch_size=batch_size, **{**SIZES, **options})


class Remembers(nn.Module):
    """Looks the asked key up among the pairs: the right answers, from the tokens before."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, tokens):
        following = torch.zeros_like(tokens)
        for row, x in enumerate(tokens.tolist()):
            pairs = dict(zip(x[:6:2], x[1:6:2], strict=True))
            for place in range(6, 12, 2):
                following[row, place] = pairs[x[place]]
        return self.scale * F.one_hot(following, 9)


def test_a_model_that_remembers_is_always_right():
    found = task(Remembers()).evaluate(full=False)
    assert found["loss"] < 1e-6
    assert found["accuracy"] == 1.0


def test_only_the_answers_count():
    one = task()
    tokens, targets, mask = one.batch(0)
    nats = -one.model(tokens).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert_close(one.loss(tokens, targets, mask), nats[mask].mean())


def test_it_is_a_task_of_its_own():
    one = task(seed=2)
    assert isinstance(one, Task)
    assert one.identity == {"name": "recall", "seed": 2, **SIZES}
    assert_close(one.batch(3), task(seed=2).batch(3))
    assert not torch.equal(one.batch(3)[0], task().batch(3)[0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_keys": 2}, "num_keys must be at least 3, got 2"),
        ({"seed": -1}, "seed must be from 0 to 1000000006, got -1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        task(**options)
