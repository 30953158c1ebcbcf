"""The examples of the published documentation run, but for the import."""

import pytest
import torch

from subquad.compat.fast_transformers.builders import (
    RecurrentEncoderBuilder,
    TransformerEncoderBuilder,
)
from subquad.compat.fast_transformers.masking import TriangularCausalMask

TYPES = ("full", "linear", "causal-linear")


def published_example(attention_type, batch_size, seq_len):
    """The quick-start of the published documentation, but for the import."""
    bert = TransformerEncoderBuilder.from_kwargs(
        n_layers=12,
        n_heads=12,
        query_dimensions=64,
        value_dimensions=64,
        feed_forward_dimensions=3072,
        attention_type=attention_type,
        activation="gelu",
    ).get()
    mask = TriangularCausalMask(seq_len) if attention_type == "causal-linear" else None
    with torch.inference_mode():
        return bert(torch.rand(batch_size, seq_len, 64 * 12), mask)


@pytest.mark.parametrize("attention_type", TYPES)
def test_the_published_example_runs(attention_type):
    y = published_example(attention_type, 2, 20)
    assert y.shape == (2, 20, 768)
    assert torch.isfinite(y).all()


# The example's dropout of attention weights makes softmax hold them: 0.8 GB a sequence, in three
# copies, so that ten sequences would not fit into 24 GB.
BATCHES = {"full": 2, "linear": 10, "causal-linear": 10}


@pytest.mark.slow
@pytest.mark.parametrize(("attention_type", "batch_size"), BATCHES.items())
def test_the_published_example_runs_at_its_own_length(attention_type, batch_size):
    y = published_example(attention_type, batch_size, 4000)
    assert y.shape == (batch_size, 4000, 768)
    assert torch.isfinite(y).all()


def test_the_published_recurrent_example_runs():
    model = RecurrentEncoderBuilder.from_kwargs(
        attention_type="linear",
        n_layers=8,
        n_heads=12,
        feed_forward_dimensions=1536,
        query_dimensions=32,
        value_dimensions=32,
    ).get()
    x, state = torch.rand(10, 12 * 32), None
    with torch.no_grad():
        for _ in range(5):
            x, state = model(x, state=state)
    assert torch.isfinite(x).all()
