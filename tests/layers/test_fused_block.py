"""A block's step in one native call: equal to ``step``, taken where it fits and nowhere else."""

import copy
import os
import signal
import threading

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.kernels.cpu import library
from subquad.kernels.cpu.block_step import MOST_SEQUENCES, BlockStep
from subquad.kernels.dispatch import Impl
from subquad.layers.block import Block
from subquad.layers.feed_forward import FeedForward
from subquad.layers.fused_block import fused_step
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.ops.feature_maps import EluPlusOne
from subquad.ops.state import map_state

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(library.why_not()))


def build(*, d_model=19, num_heads=3, d_ff=37, norm="post", activation="relu", **options):
    torch.manual_seed(0)
    mixer = LinearAttention(d_model, num_heads, is_causal=True, head_dim=6, value_dim=5, **options)
    block = Block(mixer, d_model, d_ff, norm=norm, activation=activation)
    for norm_layer in (block.mixer_norm, block.feed_forward_norm):
        nn.init.normal_(norm_layer.weight)
        nn.init.normal_(norm_layer.bias)
    return block


@torch.inference_mode()
def both(block, batch_size, tokens=6, *, x=None):
    """Return the outputs and the last state, fused and by ``step`` in float64."""
    exact = copy.deepcopy(block).double()
    x = torch.randn(tokens, batch_size, block.mixer.heads.d_model) if x is None else x
    take = fused_step(block, batch_size)
    state, wide = block.mixer.init_state(batch_size), exact.mixer.init_state(batch_size)
    found, expected = [], []
    for token in x:
        y, state = take(token, state)
        found.append(y)
        y, wide = exact.step(token.double(), wide)
        expected.append(y)
    return torch.stack(found), torch.stack(expected), state, wide


@pytest.mark.parametrize("batch_size", range(1, MOST_SEQUENCES + 1))
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equal_to_step(batch_size, norm, activation, instruction_set):
    found, expected, state, wide = both(build(norm=norm, activation=activation), batch_size)
    assert_near(found, expected, 2e-6)
    assert_near(state.kv, wide.kv, 2e-6)
    assert_near(state.k_sum, wide.k_sum, 2e-6)


@pytest.mark.parametrize(
    "options", [{"rotary": True}, {"normalize": False}, {"bias": False}], ids=lambda x: str(x)
)
def test_equal_with_other_options(options):
    found, expected, *_ = both(build(**options), 2)
    assert_near(found, expected, 2e-6)


def test_equal_at_the_width_of_vectors_and_over_threads():
    torch.manual_seed(0)
    mixer = LinearAttention(256, 8, is_causal=True)
    found, expected, *_ = both(Block(mixer, 256, 1024), 1, 3)
    assert_near(found, expected, 2e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    torch.manual_seed(0)
    block, x = Block(LinearAttention(256, 8, is_causal=True), 256, 1024), torch.randn(1, 256)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            take = fused_step(block, 1)
            want = take(x, block.mixer.init_state(1))[0].numpy()
            state = block.mixer.init_state(1)
            if (child := os.fork()) == 0:
                signal.alarm(60)  # ends a child that waits for its parent's threads
                y = take(x, state)[0].numpy()
                os._exit(0 if abs(y - want).max() < 1e-5 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


def test_rotary_steps_after_a_prefill_with_a_mask():
    """Rows then stand at different positions, one of them at the first."""
    block = build(rotary=True)
    x, keep = torch.randn(3, 9, 19), torch.arange(4) < torch.tensor([[4], [2], [0]])
    with torch.inference_mode():
        _, state = block.prefill(x[:, :4], block.mixer.init_state(3), key_mask=keep)
        wanted, take = state, fused_step(block, 3)
        state = map_state(torch.clone, state)
        for t in range(4, 9):
            y, state = take(x[:, t], state)
            expected, wanted = block.step(x[:, t], wanted)
            assert_near(y, expected, 2e-6)


def test_a_row_of_equal_numbers_and_nan():
    block = build()
    x = torch.full((1, 2, 19), 3.0)
    x[0, 1, 4] = torch.nan
    found, expected, *_ = both(block, 2, x=x)
    assert_near(found[:, 0], expected[:, 0], 2e-6)
    assert found[:, 1].isnan().all()
    assert expected[:, 1].isnan().all()


def test_a_stepper_takes_it(monkeypatch):
    calls = []
    call = BlockStep.__call__
    monkeypatch.setattr(BlockStep, "__call__", lambda *a: (calls.append(1), call(*a))[1])
    block = build()
    with torch.inference_mode():
        block.stepper(1)(torch.randn(1, 19), block.mixer.init_state(1))
        block.stepper(MOST_SEQUENCES + 1)
    assert len(calls) == 1


def hooked(block):
    block.mixer_norm.register_forward_hook(lambda *_: None)


def dropping(block):
    block.dropout.p = 0.5
    block.train()


def other_map(block):
    block.mixer.feature_map = type("Mine", (EluPlusOne,), {})()


def other_network(block):
    block.feed_forward = nn.Linear(19, 19)


def subclassed_network(block):
    class Squashed(FeedForward):
        def forward(self, x):
            return self.outer(torch.sigmoid(self.inner(x)))

    block.feed_forward = Squashed(19, 37)


def hooked_network(block):
    block.feed_forward.register_forward_hook(lambda *_: None)


def stepped_otherwise(block):
    block.mixer.step_ = block.mixer.step


def short_bias(block):
    block.feed_forward.inner.bias = nn.Parameter(torch.ones(1))


def narrow_weight(block):
    block.feed_forward.outer.weight = nn.Parameter(torch.ones(19, 36))


def negated_view(block):
    weight = block.feed_forward.inner.weight.detach()
    block.feed_forward.inner.weight = nn.Parameter(torch._neg_view(weight), requires_grad=False)


def sparse(block):
    weight = block.feed_forward.inner.weight.detach()
    layer = block.feed_forward.inner
    layer.weight = nn.Parameter(weight.to_sparse(), requires_grad=False)


def bidirectional(block):
    block.mixer = LinearAttention(19, 3, is_causal=False, head_dim=6, value_dim=5)


def double(block):
    block.double()


def by_torch(block):
    block.mixer.impl = Impl.TORCH


def strided(block):
    weight = block.feed_forward.inner.weight
    block.feed_forward.inner.weight = nn.Parameter(weight.detach().t().contiguous().t())


def sharing(block):
    block.mixer = LinearAttention(19, 3, is_causal=True, head_dim=6, value_dim=5, share_qk=True)


def softmax(block):
    block.mixer = SoftmaxAttention(19, 1, is_causal=True)


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        dropping,
        other_map,
        other_network,
        subclassed_network,
        hooked_network,
        stepped_otherwise,
        short_bias,
        narrow_weight,
        negated_view,
        sparse,
        bidirectional,
        double,
        by_torch,
        strided,
        sharing,
        softmax,
    ],
    ids=lambda f: f.__name__,
)
def test_not_taken_where_it_does_not_fit(change):
    block = build()
    with torch.inference_mode():
        assert fused_step(block, 1) is not None
    change(block)
    with torch.inference_mode():
        assert fused_step(block, 1) is None


def test_not_taken_under_a_global_hook():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with torch.inference_mode():
            assert fused_step(build(), 1) is None
    finally:
        handle.remove()


def test_not_taken_for_more_sequences_gradients_or_autocast():
    block = build()
    assert fused_step(block, 1) is None
    with torch.inference_mode():
        assert fused_step(block, MOST_SEQUENCES + 1) is None
        with torch.autocast("cpu"):
            assert fused_step(block, 1) is None


def test_weights_changed_in_place_are_seen():
    block = build()
    with torch.inference_mode():
        take = fused_step(block, 1)
        x = torch.randn(1, 19)
        before, _ = take(x, block.mixer.init_state(1))
        block.feed_forward.outer.weight.zero_()
        after, _ = take(x, block.mixer.init_state(1))
    assert not torch.equal(before, after)


def test_a_stepper_whose_weights_have_moved_says_so():
    block = build()
    with torch.inference_mode():
        take, state = fused_step(block, 1), block.mixer.init_state(1)
        x = torch.randn(1, 19)
        take(x, state)
        block.feed_forward.inner.weight.data = torch.zeros(37, 19)
        with pytest.raises(RuntimeError, match="weights must stay where they were"):
            take(x, state)


def test_one_stepper_in_two_threads():
    torch.manual_seed(0)
    block = Block(LinearAttention(64, 4, is_causal=True), 64, 256)
    xs = torch.randn(2, 200, 1, 64)
    results = [None, None]
    with torch.inference_mode():
        take = fused_step(block, 1)

    def go(i):
        with torch.inference_mode():
            state, ys = block.mixer.init_state(1), []
            for x in xs[i]:
                y, state = take(x, state)
                ys.append(y)
            results[i] = torch.stack(ys)

    for i in range(2):
        go(i)
    expected = list(results)
    threads = [threading.Thread(target=go, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, wanted in zip(results, expected, strict=True):
        assert torch.equal(found, wanted)


def test_errors():
    block = build()
    with torch.inference_mode():
        take, state = fused_step(block, 2), block.mixer.init_state(2)
        with pytest.raises(
            ValueError, match=r"x must be float32 of shape \(2, 19\) on the CPU, got .*\(3, 19"
        ):
            take(torch.randn(3, 19), state)
        with pytest.raises(ValueError, match=r"x must be float32 of shape .* got torch\.float64"):
            take(torch.randn(2, 19).double(), state)
        with pytest.raises(ValueError, match=r"kv must be float32 of shape \(2, 3, 6, 5\)"):
            take(torch.randn(2, 19), block.mixer.init_state(1))
        with pytest.raises(ValueError, match=r"x must be .* on the CPU, got .* on meta"):
            take(torch.randn(2, 19, device="meta"), state)
        turned = state._replace(kv=state.kv.transpose(2, 3).contiguous().transpose(2, 3))
        with pytest.raises(ValueError, match="state must lie in memory in one piece"):
            take(torch.randn(2, 19), turned)
