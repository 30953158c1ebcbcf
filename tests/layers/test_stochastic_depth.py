"""Stochastic depth in a block: examples that lose a branch, packed ones each by itself."""

import pytest
import torch

from subquad.layers import SoftmaxAttention
from subquad.layers.block import Block
from subquad.layers.stochastic_depth import StochasticDepth


def test_packed_examples_are_dropped_each_by_itself():
    torch.manual_seed(0)
    layer, lengths = StochasticDepth(0.5), torch.randint(0, 5, (400,))
    borders = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    y = layer(torch.ones(1, int(borders[-1]), 3), borders)[0]
    kept = [part.unique().tolist() for part in y.split(lengths.tolist())]
    assert all(values in ([], [0.0], [2.0]) for values in kept)
    assert (
        abs(sum(values == [2.0] for values in kept) - sum(values == [0.0] for values in kept)) < 60
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_drops_both_branches_in_training_only(norm):
    torch.manual_seed(0)
    mixer = SoftmaxAttention(8, 2, is_causal=False)
    block = Block(mixer, 8, 16, norm=norm, drop_path=0.5)
    plain = Block(mixer, 8, 16, norm=norm)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(1, 5, 8).expand(256, -1, -1)
    outputs = block(x)[:, 0].detach()
    # Neither branch, one, the other, both: four kinds of examples.
    assert len(outputs.mul(1e4).round().unique(dim=0)) == 4
    packed = block(x[:64].reshape(1, -1, 8), cu_seqlens=torch.arange(0, 321, 5))
    assert len(packed[0, ::5].mul(1e4).round().unique(dim=0)) == 4
    assert torch.equal(block.eval()(x), plain.eval()(x))


def test_a_rate_outside_is_refused():
    mixer = SoftmaxAttention(8, 2, is_causal=False)
    with pytest.raises(ValueError, match="drop_path must be at least 0 and below 1, got 1"):
        Block(mixer, 8, 16, drop_path=1.0)
    with pytest.raises(ValueError, match="norm_eps must be a finite number above 0, got 0"):
        Block(mixer, 8, 16, norm_eps=0.0)
