"""Relative positions: the definition by loops, the mixers' contract, errors."""

from functools import partial

import pytest
import torch

from helpers import assert_near, leaves
from subquad.layers import SoftmaxAttention
from subquad.layers.attention_rows import attention_rows
from subquad.layers.relative_positions import RelativePositions
from subquad.testing import check_mixer

B, H, T, K = 2, 3, 5, 4


def test_the_bias_is_a_query_times_the_vector_of_its_offset():
    torch.manual_seed(0)
    layer = RelativePositions(T + 1, H, K).double()
    (q,) = leaves(torch.randn(B, H, T, K, dtype=torch.float64))
    bias = layer(q, torch.arange(T).expand(B, T))
    for i in range(T):
        for j in range(T):
            expected = torch.einsum("bhk,hk->bh", q[:, :, i], layer.table[:, i - j + T]) / 2
            assert_near(bias[:, :, i, j], expected, 1e-12)
    assert torch.autograd.gradcheck(lambda q: layer(q, torch.arange(T).expand(B, T)), (q,))


def test_attention_adds_it_before_the_softmax():
    torch.manual_seed(0)
    mixer = SoftmaxAttention(8, 2, is_causal=False, relative_len=7).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    q, k, _ = mixer.heads.split(x)
    offsets = torch.arange(7)[:, None] - torch.arange(7) + 6
    by_pair = mixer.relative.table[:, offsets]  # H, T, T, K
    logits = (
        torch.einsum("bhik,bhjk->bhij", q, k) + torch.einsum("bhik,hijk->bhij", q, by_pair)
    ) / 2
    rows = attention_rows(mixer.eval(), x, range(7))
    assert_near(rows.weights, logits.softmax(-1), 1e-12)
    mixer(x).square().sum().backward()
    assert mixer.relative.table.grad.any(2).all()


def test_hidden_tokens_are_as_if_taken_out():
    torch.manual_seed(0)
    mixer = SoftmaxAttention(8, 2, is_causal=False, relative_len=7).double()
    torch.nn.init.normal_(mixer.relative.table)
    x, mask = torch.randn(1, 7, 8, dtype=torch.float64), torch.ones(1, 7, dtype=torch.bool)
    mask[0, [0, 3, 4]] = False
    alone = mixer(x[:, mask[0]])
    assert_near(mixer(x, key_mask=mask)[:, mask[0]], alone, 1e-12)
    packed = mixer(torch.cat([x[:, :3], x[:, mask[0]]], dim=1), cu_seqlens=torch.tensor([0, 3, 7]))
    assert_near(packed[:, 3:], alone, 1e-12)


def test_the_contract_of_mixers_holds():
    build = partial(SoftmaxAttention, 8, 2, is_causal=False, relative_len=140)
    report = check_mixer(build, d_model=8, is_causal=False)
    assert report.results


def test_what_does_not_fit_is_refused(unhooked):
    for options in ({"is_causal": True}, {"is_causal": False, "rotary": True}):
        with pytest.raises(ValueError, match="relative_len needs is_causal=False and rotary=False"):
            SoftmaxAttention(8, 2, relative_len=4, **options)
    with pytest.raises(ValueError, match="relative_len must be at least 1, got 0"):
        SoftmaxAttention(8, 2, is_causal=False, relative_len=0)
    mixer = SoftmaxAttention(8, 2, is_causal=False, relative_len=4)
    with pytest.raises(ValueError, match=r"at most relative_len \(4\) tokens, got 5"):
        mixer(torch.zeros(1, 5, 8))
