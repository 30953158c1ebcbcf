"""What the hand-written backward is for: memory that grows with T and not with T K V."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import subquad
from helpers import assert_near
from subquad.ops.linear_attention import linear_attention_quadratic

HEADS, WIDTH = 2, 16


def forward_and_backward(attend, seq_len, log_decay=None):
    q, k, v = (torch.rand(1, HEADS, seq_len, WIDTH, requires_grad=True) for _ in range(3))
    attend(q, k, v, is_causal=True, log_decay=log_decay).sum().backward()


def peak_bytes(attend, seq_len, kind="none"):
    """Return the most that was allocated at once, by the allocator's own account."""
    shape = {"none": None, "token": (), "feature": (WIDTH,)}[kind]
    g = None if shape is None else -torch.rand(1, HEADS, seq_len, *shape)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        forward_and_backward(attend, seq_len, g)
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 0, "the profiler saw no memory"
    return peak


def slope(attend, lengths, kind="none"):
    """Return the exponent a in peak ~ T^a, fitted over all lengths."""
    x = torch.tensor([math.log(n) for n in lengths])
    y = torch.tensor([math.log(peak_bytes(attend, n, kind)) for n in lengths])
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_peak_memory_grows_linearly(kind):
    longest = 16384 if kind == "none" else 4096
    assert slope(subquad.linear_attention, [longest // 16, longest // 4, longest], kind) <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_peak_memory_grows_linearly_up_to_64k(kind):
    assert slope(subquad.linear_attention, [1024, 4096, 16384, 65536], kind) <= 1.1


def test_the_probe_sees_the_square():
    assert slope(linear_attention_quadratic, [64, 128, 256]) > 1.8


class LargestTensor(TorchDispatchMode):
    """Note the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_no_tensor_holds_a_state_a_token(kind):
    """None is larger than the inputs; T K V would be 16 times that."""
    seq_len = 2048
    shape = {"none": None, "token": (), "feature": (WIDTH,)}[kind]
    g = None if shape is None else -torch.rand(1, HEADS, seq_len, *shape)
    with LargestTensor() as largest:
        forward_and_backward(subquad.linear_attention, seq_len, g)
    assert largest.numel == HEADS * seq_len * WIDTH


def test_the_state_is_not_rebuilt_by_subtraction():
    """A huge key would leave its rounding error in the states before it, taken from one after."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, 1, 96, 4, generator=generator) for _ in range(3))
    k[:, :, 40] = 1e7
    gradients = []
    for form in (subquad.linear_attention, linear_attention_quadratic):
        dtype = torch.float32 if form is subquad.linear_attention else torch.float64
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        # elu + 1 of what is not negative is x + 1; the definition takes features.
        features = [x if dtype == torch.float32 else x + 1 for x in inputs[:2]]
        y = form(*features, inputs[2], is_causal=True, normalize=False)
        gradients.append(torch.autograd.grad(y[:, :, :40].square().sum(), inputs))
    assert_near(*gradients, 1e-5)
