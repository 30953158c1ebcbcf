import pytest
import torch
from torch import nn
from torch.nn import functional as F

from subquad.layers import LinearAttention
from subquad.layers.block import Block
from subquad.layers.feed_forward import FeedForward


def block(**options):
    made = Block(LinearAttention(8, 2, is_causal=True), 8, 12, **options)
    for norm in (made.mixer_norm, made.feed_forward_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made


def test_post_norm_normalises_each_sum():
    b, x = block(norm="post"), torch.randn(2, 5, 8)
    y = b.mixer_norm(x + b.mixer(x))
    expected = b.feed_forward_norm(y + b.feed_forward(y))
    torch.testing.assert_close(b(x), expected)


def test_pre_norm_normalises_each_input():
    b, x = block(norm="pre"), torch.randn(2, 5, 8)
    y = x + b.mixer(b.mixer_norm(x))
    expected = y + b.feed_forward(b.feed_forward_norm(y))
    torch.testing.assert_close(b(x), expected)


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("gelu", F.gelu)])
def test_the_feed_forward_network(activation, function):
    network, x = FeedForward(4, 6, activation=activation), torch.randn(3, 4)
    expected = network.outer(function(network.inner(x)))
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_works_in_training_only(norm):
    b, x = block(norm=norm, dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(b(x), b(x))
    b.eval()
    without = block(norm=norm)
    without.load_state_dict(b.state_dict())
    assert torch.equal(b(x), without(x))


def test_dropout_falls_on_the_mixer_on_the_hidden_layer_and_on_the_output():
    x = torch.randn(1, 5, 8)

    def is_random(b):
        return not torch.equal(b(x), b(x))

    b = block(norm="pre", dropout=0.5)
    nn.init.zeros_(b.feed_forward.outer.weight)
    nn.init.zeros_(b.feed_forward.outer.bias)
    assert is_random(b)
    b = block(norm="pre", dropout=0.5)
    nn.init.zeros_(b.mixer.heads.out_proj.weight)
    for kept, off in ((b.dropout, b.feed_forward.dropout), (b.feed_forward.dropout, b.dropout)):
        kept.p, off.p = 0.5, 0.0
        assert is_random(b)
    b.dropout.p = b.feed_forward.dropout.p = 0.0
    assert not is_random(b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "none"}, "norm must be one of post, pre; got 'none'"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu, gelu-tanh; got 'tanh'"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
    ],
)
def test_errors(options, message, unhooked):
    with pytest.raises(ValueError, match=message):
        block(**options)


def test_a_feed_forward_network_needs_width(unhooked):
    with pytest.raises(ValueError, match="d_ff must be at least 1, got 0"):
        FeedForward(4, 0)
