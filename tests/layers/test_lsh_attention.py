import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.layers import MIXERS
from subquad.layers.lsh_attention import LSHAttention
from subquad.layers.positions import Rotary
from subquad.ops.lsh_definition import lsh_attention_quadratic
from subquad.testing import MixerFault, check_mixer

lsh = partial(LSHAttention, 8, 2)


def stir(layer):
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("combine", ["mean", "logsumexp"])
def test_the_layer_is_the_definition_between_its_projections(is_causal, rotary, combine):
    layer = stir(
        lsh(
            is_causal=is_causal, rotary=rotary, combine=combine, value_dim=3, num_hashes=2,
            num_buckets=6, chunk_size=3, chunks_before=2, chunks_after=1,
        ).double()
    )  # fmt: skip
    x = torch.randn(2, 17, 8).double()
    qk, v = layer.heads.qkv_proj(x).split([8, 6], dim=-1)
    qk, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (qk, v))
    if rotary:
        qk = Rotary(4)(torch.arange(17)[None], torch.float64)(qk)
    y = lsh_attention_quadratic(
        qk, v, layer.rotations, chunk_size=3, chunks_before=2, chunks_after=1,
        combine=combine, is_causal=is_causal,
    )  # fmt: skip
    assert_near(layer(x), layer.heads.out_proj(y.transpose(1, 2).flatten(2)), 1e-10)


def test_the_names_of_the_paper_are_numbers_of_rounds():
    for name, rounds in (("lsh-1", 1), ("lsh-4", 4), ("lsh-8", 8)):
        layer = MIXERS[name](256, 8, is_causal=True)
        assert layer.rotations.shape == (rounds, 32, 32)  # 64 buckets
        assert (layer.chunk_size, layer.combine, layer.chunks_before) == (32, "mean", 1)


def test_projections_are_shared_and_start_within_the_glorot_bound():
    heads = LSHAttention(64, 4, is_causal=True).heads
    assert heads.qkv_proj.weight.shape == (128, 64)
    for projection in (heads.qkv_proj, heads.out_proj):
        bound = math.sqrt(3 / 64)
        assert 0.98 * bound < projection.weight.abs().max() <= bound
        assert (projection.bias == 0).all()


def test_evaluation_and_training_repeat_themselves_and_any_length_goes():
    layer = lsh(is_causal=False, chunk_size=8)
    for mode in (True, False):
        layer.train(mode)
        for seq_len in (1, 50, 65):
            x = torch.randn(1, seq_len, 8)
            assert torch.equal(layer(x), layer(x))


def test_redraw_is_on_request_and_fixed_by_the_seed_in_the_state_dict():
    layer, other = lsh(is_causal=False), lsh(is_causal=False)
    other.load_state_dict(layer.state_dict())
    first = layer.rotations.clone()
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        layer.redraw()
        torch.rand(3)  # another rank, at another place of its random numbers
        other.redraw()
        assert torch.equal(layer.rotations, other.rotations)
        drawn.append(layer.rotations.clone())
    torch.set_rng_state(before)
    assert not torch.equal(drawn[0], first)
    assert not torch.equal(drawn[0], drawn[1])
    assert abs(float(drawn[1].std()) - 1) < 0.1
    layer.redraw()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_schedule_counts_forward_passes_in_training_and_survives_a_checkpoint():
    layer, x = lsh(is_causal=False, redraw_every=3), torch.randn(1, 5, 8)
    states = [layer.rotations.clone()]
    for _ in range(8):
        layer(x)
        states.append(layer.rotations.clone())
        layer.eval()
        layer(x)
        layer.train()
    changed = [not torch.equal(a, b) for a, b in pairwise(states)]
    assert changed == [False, False, False, True, False, False, True, False]
    resumed = lsh(is_causal=False, redraw_every=3)
    resumed.load_state_dict(layer.state_dict())
    for _ in range(3):
        layer(x), resumed(x)
        assert torch.equal(layer.rotations, resumed.rotations)
    assert not torch.equal(layer.rotations, states[-1])


def test_redrawing_between_forward_and_backward_is_allowed():
    layer, x = lsh(is_causal=False, redraw_every=1), torch.randn(1, 70, 8)
    (layer(x) + layer(x)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_attention_dropout_works_in_training_only():
    layer, x = lsh(is_causal=True, attention_dropout=0.5), torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("combine", ["mean", "logsumexp"])
def test_under_autocast_only_the_projections_are_narrow(combine):
    layer, x = LSHAttention(32, 2, is_causal=True, combine=combine), torch.randn(2, 30, 32)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    expected = layer(x, key_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x, key_mask=mask)[mask], expected[mask], 3e-2)


def test_it_builds_on_the_meta_device_and_loads_there():
    with torch.device("meta"):
        layer = lsh(is_causal=True, rotary=True, combine="logsumexp")
        assert layer(torch.zeros(2, 40, 8)).shape == (2, 40, 8)
    real = lsh(is_causal=True, rotary=True, combine="logsumexp")
    layer.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(1, 40, 8)
    assert torch.equal(layer(x), real(x))


@pytest.mark.parametrize("is_causal", [True, False])
def test_there_is_no_state(is_causal):
    layer, x = lsh(is_causal=is_causal), torch.zeros(1, 2, 8)
    for call in (
        partial(layer.init_state, 1),
        partial(layer.prefill, x, None),
        partial(layer.step, x[:, 0], None),
        partial(layer.step_, x[:, 0], None),
    ):
        with pytest.raises(ValueError, match="LSHAttention must be run on whole sequences, it has"):
            call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_hashes": 0}, ValueError, "num_hashes must be at least 1, got 0"),
        ({"num_hashes": 2.0}, TypeError, r"num_hashes must be an int, got float 2\.0"),
        ({"num_buckets": 0}, ValueError, "num_buckets must be at least 1, got 0"),
        ({"num_buckets": 7}, ValueError, "num_buckets must be divisible by 2, got 7"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"chunks_before": -1}, ValueError, "chunks_before must be at least 0, got -1"),
        ({"chunks_after": -2}, ValueError, "chunks_after must be at least 0, got -2"),
        ({"combine": "max"}, ValueError, "combine must be one of mean, logsumexp; got 'max'"),
        ({"attention_dropout": 1.0}, ValueError, "attention_dropout must be at least 0 and below"),
        ({"redraw_every": 0}, ValueError, "redraw_every must be at least 1, got 0"),
        ({"num_heads": 3}, ValueError, r"num_heads must divide d_model \(8\)"),
        ({"head_dim": 3, "rotary": True}, ValueError, "rotary width must be divisible by 2, got 3"),
        ({"rounds": 2}, TypeError, "unexpected keyword argument 'rounds'"),
    ],
)
def test_constructor_errors(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        LSHAttention(**{"d_model": 8, "num_heads": 2, "is_causal": True, **options})


VARIANTS = {
    "logsumexp": {"combine": "logsumexp"},
    "rotary": {"rotary": True},
    "widths": {"head_dim": 5, "value_dim": 3},
    "no bias": {"bias": False},
    "dropout, redraw": {"attention_dropout": 0.5, "redraw_every": 1},
    "small chunks": {"chunk_size": 5, "num_hashes": 2, "chunks_after": 1, "combine": "logsumexp"},
}


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant, is_causal):
    build = partial(lsh, is_causal=is_causal, **VARIANTS[variant])
    report = check_mixer(build, d_model=8, is_causal=is_causal)
    names = {result.name for result in report.results}
    assert {"future_without_gradient", "no_state"} <= names or not is_causal
    assert not {"future_unseen", "splits"} & names
    assert len(report.not_claimed) == (3 if is_causal else 1)
    assert "not claimed by this mixer: that a token sees itself" in str(report)


class Fault(nn.Module):
    """A right layer; each fault below breaks a claim that the contract looks at."""

    has_state = is_past_fixed = sees_itself = False

    def __init__(self):
        super().__init__()
        self.inner = lsh(is_causal=True)

    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)

    def init_state(self, batch_size):
        self.inner.init_state(batch_size)

    def prefill(self, x, state):
        self.inner.prefill(x, state)

    def step(self, x_t, state):
        self.inner.step(x_t, state)

    def step_(self, x_t, state):
        self.inner.step_(x_t, state)


class FutureLeaks(Fault):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y + 1e-9 * nn.functional.pad(x, (0, 0, 0, 1))[:, 1:]


class FutureLeaksUnderAMask(Fault):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        if key_mask is not None:
            x = x.masked_fill(~key_mask.unsqueeze(-1), 0)
        y = self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return y if key_mask is None else y + 1e-9 * x.sum(1, keepdim=True)


class StepGivesNonsense(Fault):
    def step(self, x_t, state):
        return x_t, state


class LastOfThreeIsDeaf(Fault):
    def forward(self, x, *, key_mask=None, cu_seqlens=None):
        if x.shape[1] == 3:
            x = torch.cat([x[:, :2], x[:, 2:].detach() * 0], 1)
        return self.inner(x, key_mask=key_mask, cu_seqlens=cu_seqlens)


class ClaimsThePast(Fault):
    is_past_fixed = True


class ClaimsItself(Fault):
    sees_itself = True


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (FutureLeaks, "future_without_gradient"),
        (FutureLeaksUnderAMask, "future_without_gradient"),
        (StepGivesNonsense, "no_state"),
        (LastOfThreeIsDeaf, "each_token_counts"),
        (ClaimsThePast, "future_unseen"),
        (ClaimsItself, "each_token_counts"),
    ],
)
def test_the_contract_catches_what_a_mixer_without_a_state_can_still_break(fault, check):
    with pytest.raises(MixerFault) as caught:
        check_mixer(fault, d_model=8, is_causal=True)
    assert caught.value.check == check


def test_the_whole_layer_may_be_right_with_less_claimed():
    assert len(check_mixer(Fault, d_model=8, is_causal=True).results) == 13
