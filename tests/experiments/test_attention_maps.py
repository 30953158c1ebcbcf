"""The attention rows that an experiment shows."""

import numpy as np
import torch

from subquad.experiments.attention_maps import last_layer_rows
from subquad.models import DecoderLM


def test_the_rows_of_the_last_layer_are_those_of_the_trained_model():
    torch.manual_seed(0)
    model = DecoderLM(5, num_layers=2, num_heads=2, d_model=16, d_ff=16, mixer="softmax")
    tokens = torch.randint(5, (1, 7))
    found = last_layer_rows(model.eval(), tokens, [0, 6])
    assert found.shape == (2, 2, 7)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 0], [[1, 0, 0, 0, 0, 0, 0]] * 2)
    with torch.no_grad():
        model.decoder.stack.blocks[0].feed_forward.outer.bias.add_(torch.randn(16))
    assert not np.allclose(found, last_layer_rows(model, tokens, [0, 6]))
    lstm = DecoderLM(5, num_layers=1, num_heads=2, d_model=16, d_ff=16, mixer="lstm")
    assert last_layer_rows(lstm.eval(), tokens, [0]) is None
    assert not model.decoder.stack.blocks[1].mixer._forward_pre_hooks
