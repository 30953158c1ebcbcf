"""Is a full transformer a bidirectional RNN? A layer of full linear attention is two of them.

The sums of a scan from the left, plus those of a scan from the right, less the token itself, which
is in both, are the sums of full attention.
"""

import pytest
import torch

from subquad.ops import feature_maps
from subquad.ops.linear_attention import (
    linear_attention_bidirectional,
    linear_attention_sums,
    quotient,
)
from subquad.ops.linear_state import linear_state

MAPS = (feature_maps.elu_plus_one, feature_maps.relu, feature_maps.degree_2_polynomial)


def two_scans(phi_q, phi_k, v, key_mask, chunk_size):
    """Full attention by two recurrent networks; neither sees the future of its own direction."""
    empty = linear_state(*phi_k.shape[:2], phi_k.shape[3], v.shape[3], like=v)
    mirrored = [x.flip(2) for x in (phi_q, phi_k, v)]
    left = linear_attention_sums(phi_q, phi_k, v, empty, key_mask=key_mask, chunk_size=chunk_size)
    right = linear_attention_sums(
        *mirrored, empty, key_mask=key_mask.flip(1), chunk_size=chunk_size
    )
    own = (phi_q * phi_k).sum(-1) * key_mask[:, None]
    numerator = left[0] + right[0].flip(2) - own[..., None] * v
    return quotient(numerator, left[1] + right[1].flip(2) - own)


@pytest.mark.parametrize("feature_map", MAPS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("seq_len", [1, 7, 33])
@pytest.mark.parametrize("masked", [False, True])
def test_full_attention_is_a_scan_from_each_side_less_the_token_itself(
    feature_map, seq_len, masked
):
    torch.manual_seed(seq_len)
    q, k, v = (torch.randn(2, 3, seq_len, n, dtype=torch.float64) for n in (4, 4, 5))
    q[..., 0], k[..., 0] = q[..., 0].abs() + 1, k[..., 0].abs() + 1  # no row of relu is all 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    key_mask = torch.ones(2, seq_len, dtype=torch.bool)
    if masked:
        key_mask[0, seq_len // 2 + 1 :] = False
    phi_q, phi_k = feature_map(q), feature_map(k)

    expected = linear_attention_bidirectional(phi_q, phi_k, v, key_mask=key_mask)
    actual = two_scans(phi_q, phi_k, v, key_mask, chunk_size=8)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

    upstream = torch.randn_like(expected)
    grads = [
        torch.autograd.grad(y, leaves, upstream, retain_graph=True) for y in (actual, expected)
    ]
    for name, a, e in zip("qkv", *grads, strict=True):
        assert (a - e).norm() <= 1e-10 * e.norm().clamp(min=1), name


def test_the_outputs_of_the_two_networks_do_not_add_up():
    torch.manual_seed(0)
    phi_q, phi_k, v = (torch.rand(1, 1, 5, n, dtype=torch.float64) for n in (2, 2, 3))
    empty = linear_state(1, 1, 2, 3, like=v)
    left = linear_attention_sums(phi_q, phi_k, v, empty)
    right = linear_attention_sums(*(x.flip(2) for x in (phi_q, phi_k, v)), empty)
    outputs = [quotient(*side[:2]) for side in (left, right)]
    full = linear_attention_bidirectional(phi_q, phi_k, v)
    assert not torch.allclose(outputs[0] + outputs[1].flip(2) - v, full, rtol=1e-3)
