"""How far the attention rows of a feature map are from those of softmax."""

import torch

from subquad.ops.feature_maps import FeatureMap
from subquad.ops.linear_attention import linear_attention
from subquad.ops.softmax_attention import softmax_attention


@torch.no_grad()
def distance_from_softmax(
    feature_map: FeatureMap, *, num_heads: int, head_dim: int, seq_len: int, seed: int = 0
) -> float:
    """Return the mean total variation between causal attention rows, from 0 to 1.

    Of normal q and k; the values are unit vectors, so that the outputs are the weights. A row that
    gives no token any weight counts as 1, farthest.

    Args:
        feature_map: one whose kernel is not negative.
        num_heads: heads over which the mean is taken; a learned map's own number of them.
        head_dim: width of q and k.
        seq_len: rows.
        seed: of q and k.

    Raises:
        ValueError: if the map's kernel can be negative.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, num_heads, seq_len, head_dim, generator=generator)
    units = torch.eye(seq_len).expand(1, num_heads, seq_len, seq_len)
    rows = linear_attention(q, k, units, is_causal=True, feature_map=feature_map)
    exact = softmax_attention(q, k, units, is_causal=True)
    # For two distributions this is half the sum of |differences|.
    return float(1 - torch.minimum(rows, exact).sum(-1).mean())
