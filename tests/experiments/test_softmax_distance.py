"""How far a feature map's weights are from softmax's."""

import pytest
import torch

from subquad.experiments.softmax_distance import distance_from_softmax
from subquad.ops import feature_maps


class SoftmaxKernel:
    """exp(q . k / sqrt(K)) to high order: the map that softmax itself would be, for K = 1."""

    nonnegative = True

    def num_features(self, head_dim):
        return 30

    def __call__(self, x):
        powers = torch.arange(30, dtype=x.dtype)
        return x**powers / (torch.lgamma(powers + 1) / 2).exp()


class OneFeature:
    """The same weight for all keys."""

    nonnegative = True

    def num_features(self, head_dim):
        return 1

    def __call__(self, x):
        return torch.ones_like(x[..., :1])


class NoWeight(OneFeature):
    def __call__(self, x):
        return torch.zeros_like(x[..., :1])


def test_the_distance_is_0_for_softmax_itself_and_1_without_weights():
    sizes = {"num_heads": 2, "head_dim": 1, "seq_len": 12}
    assert distance_from_softmax(SoftmaxKernel(), **sizes) == pytest.approx(0, abs=1e-4)
    assert distance_from_softmax(NoWeight(), **sizes) == 1.0


def test_the_distance_is_the_total_variation_of_the_rows():
    q, k = torch.randn(2, 1, 2, 6, 3, generator=torch.Generator().manual_seed(5))
    scores = (q @ k.mT / 3**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    uniform = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    expected = 0.5 * (scores.softmax(-1) - uniform).abs().sum(-1).mean()
    found = distance_from_softmax(OneFeature(), num_heads=2, head_dim=3, seq_len=6, seed=5)
    assert found == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="normalize must be False"):
        distance_from_softmax(feature_maps.identity, num_heads=2, head_dim=3, seq_len=6)
