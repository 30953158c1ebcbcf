"""How the C++ form may be called: layouts in memory, threads, forks, and what it refuses."""

import os
import signal
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import assert_near
from subquad.kernels.cpu import library
from subquad.kernels.dispatch import Impl
from subquad.kernels.operators import OPERATORS, STEP_OPERATORS
from subquad.ops.linear_attention import (
    linear_attention,
    linear_attention_chunked,
)
from subquad.ops.linear_state import LinearState
from subquad.ops.rotary_linear_attention import (
    rotary_linear_attention,
)
from subquad.ops.rotation import Rotation

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(library.why_not()))

run = OPERATORS[Impl.CPU]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layouts(x):
    """The same numbers (B, H, T, W) in memory that no kernel would choose."""
    yield "transposed", x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "columns first", x.mT.contiguous().mT
    yield "every second", torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    yield "misaligned", torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    yield "time backwards in memory", x.flip(2).contiguous().flip(2)


def test_any_layout_of_any_input():
    q, k, v = torch.randn(2, 3, 40, 6), torch.randn(2, 3, 40, 6), torch.randn(2, 3, 40, 7)
    want = run(q, k, v, None, None, None, None, None, None, True, True, True)[0]
    for position in range(3):
        for name, other in layouts((q, k, v)[position]):
            arguments = [q, k, v]
            arguments[position] = other
            y = run(*arguments, None, None, None, None, None, None, True, True, True)[0]
            assert torch.equal(y, want), (position, name)


def test_zero_strides_in_and_out():
    q = torch.randn(1, 1, 1, 8).expand(2, 3, 40, 8).requires_grad_()
    y = run(q, q, q, None, None, None, None, None, None, True, True, True)[0]
    (grad,) = torch.autograd.grad(y.sum(), q)  # its own gradient is one number, expanded
    wide = q.detach().double().requires_grad_()
    want = linear_attention(wide, wide, wide, is_causal=True)
    (expected,) = torch.autograd.grad(want.sum(), wide)
    assert_near(y, want, 1e-6)
    assert (grad - expected).abs().max() < 1e-5


def test_from_several_python_threads_at_once(two_threads):
    q = torch.randn(2, 4, 1000, 16)  # enough work for a team of threads
    want = linear_attention(q, q, q, is_causal=True, impl=Impl.CPU)
    wrong = []

    def work():
        for _ in range(5):
            if not torch.equal(linear_attention(q, q, q, is_causal=True, impl=Impl.CPU), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(two_threads):
    q = torch.randn(2, 4, 1000, 16)  # enough work for a team of threads
    want = linear_attention(q, q, q, is_causal=True, impl=Impl.CPU).numpy()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that waits for its parent's threads
        y = linear_attention(q, q, q, is_causal=True, impl=Impl.CPU).numpy()
        # On one thread now, where time was not cut either: not by torch, which might hang here.
        os._exit(0 if (y == want).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_auto_runs_the_kernel_on_the_cpu():
    q = torch.randn(1, 2, 5, 8)
    with Operators() as seen:
        linear_attention(q, q, q, is_causal=True)
    assert "subquad::linear_attention_cpu" in seen.names
    with Operators() as seen:
        linear_attention(q, q, q, is_causal=True, impl=Impl.TORCH)
    assert "subquad::linear_attention_cpu" not in seen.names


def test_an_empty_batch_is_an_empty_result():
    q = torch.randn(0, 2, 5, 8)
    assert run(q, q, q, None, None, None, None, None, None, True, True, True)[0].shape == q.shape


@pytest.mark.filterwarnings("ignore:.*create_graph.*:UserWarning")
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_gradient_of_a_gradient_is_refused(is_causal):
    q = torch.randn(1, 1, 5, 4, requires_grad=True)
    y = linear_attention(q, q, q, is_causal=is_causal)
    (grad,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="a gradient of a gradient must not pass"):
        grad.square().sum().backward()


def test_what_is_not_where_or_what_it_should_be_is_refused():
    q = torch.rand(1, 2, 5, 4)
    far = torch.zeros(1, 2, 5, device="meta")
    with pytest.raises(ValueError, match="log_decay must be on the device of the keys"):
        linear_attention_chunked(
            q, q, q, LinearState(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4)), log_decay=far
        )
    mixed = LinearState(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4).double())
    with pytest.raises(ValueError, match=r"its state is float32, not torch\.float32 and"):
        linear_attention_chunked(q, q, q, mixed, impl=Impl.CPU)
    angle = torch.rand(1, 5, 2, requires_grad=True)
    with pytest.raises(ValueError, match="it gives a rotation no gradient"):
        rotary_linear_attention(q, q, q, Rotation(angle.cos(), angle.sin()), impl=Impl.CPU)


def test_a_step_checks_the_memory_that_it_writes_to():
    q = torch.rand(2, 3, 4)
    step = STEP_OPERATORS[Impl.CPU]
    for state in (
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4)),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5)),
    ):
        with pytest.raises(ValueError, match="state must have the shapes"):
            step(q, q, q, None, None, None, *state, True, True)
    turned = torch.zeros(2, 3, 4, 4).mT
    with pytest.raises(ValueError, match="state must lie in memory in one piece"):
        step(q, q, q, None, None, None, turned, torch.zeros(2, 3, 4), True, True)


def test_packed_rotary_sequences_run_the_form_that_is_asked_for():
    q = torch.rand(1, 2, 9, 4)
    angle = torch.rand(1, 9, 2)
    turn, borders = Rotation(angle.cos(), angle.sin()), torch.tensor([0, 4, 9])
    for is_causal in (True, False):
        options = {"is_causal": is_causal, "cu_seqlens": borders}
        with Operators() as seen:
            native = rotary_linear_attention(q, q, q, turn, impl=Impl.CPU, **options)
        assert "subquad::linear_attention_cpu" in seen.names
        with Operators() as seen:
            torch_form = rotary_linear_attention(q, q, q, turn, impl=Impl.TORCH, **options)
        assert "subquad::linear_attention_cpu" not in seen.names
        assert_near(native, torch_form, 1e-5)
