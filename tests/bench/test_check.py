"""An operator is timed only if its outputs and gradients are those of its definition."""

import pytest
import torch

from subquad.bench import machine, mechanisms
from subquad.bench.attention import measure_attention, new_report
from subquad.bench.check import check_mechanism
from subquad.bench.mechanisms import Mechanism
from subquad.bench.options import AttentionOptions
from subquad.ops.lsh_attention import lsh_attention

TINY = {
    "lengths": (8,), "heads": 1, "head_dim": 4, "repetitions": 1, "seconds": 1.0,
    "has_memory": False, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(machine, "CPU_GEMM", 8)
    monkeypatch.setattr(machine, "CPU_COPY", 2**10)


def measured(table):
    options = AttentionOptions(**TINY)
    measure_attention(options, new_report(options), table=table)


def test_a_wrong_operator_is_not_timed():
    bad = Mechanism(
        attend=lambda q, k, v, is_causal: v, definition=lambda q, k, v, is_causal: 2 * v
    )
    with pytest.raises(ValueError, match=r"mine is wrong: its output is 5\.0e-01 off"):
        measured({"mine": bad})


class Doubled(torch.autograd.Function):
    """2 v, whose gradient is told to be another."""

    @staticmethod
    def forward(v):
        return 2 * v

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_an_operator_with_a_wrong_gradient_is_not_timed():
    bad = Mechanism(
        attend=lambda q, k, v, is_causal: Doubled.apply(v),
        definition=lambda q, k, v, is_causal: 2 * v,
    )
    with pytest.raises(ValueError, match=r"its gradient of v is 5\.0e-01 off its definition"):
        measured({"mine": bad})


def test_an_operator_that_is_wrong_without_a_graph_only_is_not_timed():
    bad = Mechanism(
        attend=lambda q, k, v, is_causal: 2 * v if torch.is_grad_enabled() else v,
        definition=lambda q, k, v, is_causal: 2 * v,
    )
    with pytest.raises(ValueError, match=r"its output is 5\.0e-01 off its definition"):
        measured({"mine": bad})


def test_a_gradient_that_should_be_0_must_be_0():
    leaky = Mechanism(
        attend=lambda q, k, v, is_causal: v + (q - q.detach()),
        definition=lambda q, k, v, is_causal: 1 * v,
    )
    with pytest.raises(ValueError, match="its gradient of q is"):
        measured({"mine": leaky})


@pytest.mark.parametrize("is_causal", [True, False])
def test_rounds_of_lsh_one_by_one_are_the_operators_own(is_causal):
    q, v, upstream = torch.randn(3, 1, 2, 70, 4, generator=torch.Generator().manual_seed(1))
    q, v = q.requires_grad_(), v.requires_grad_()
    whole = lsh_attention(q, v, mechanisms._rotations(3, 4), chunk_size=32, is_causal=is_causal)
    apart = mechanisms._lsh(q, q, v, is_causal, rounds=3)
    torch.testing.assert_close(apart, whole)
    for found, expected in zip(
        torch.autograd.grad(apart, (q, v), upstream), torch.autograd.grad(whole, (q, v), upstream),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, expected)


def test_the_papers_figure_has_all_its_rows():
    names = set(mechanisms.mechanisms())
    assert {"softmax", "lsh-1", "lsh-4", "lsh-8", "linear-torch-64", "linear-cpu"} <= names


@pytest.mark.parametrize(
    ("mechanism", "reason"),
    [
        (Mechanism(attend=lambda *_: 0, directions=("bidirectional",)), "has no causal form"),
        (Mechanism(attend=lambda *_: 0, device="cuda"), "runs on cuda only"),
        (Mechanism(attend=lambda q, k, v, c: q @ k), "cannot run: "),
    ],
)
def test_why_an_operator_cannot_run_is_said(mechanism, reason):
    verdict = check_mechanism(
        mechanism, is_causal=True, device="cpu", dtype=torch.float32, head_dim=4
    )
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(
    "name", ["softmax", "linear-torch", "linear-torch-32", "lsh-2", "local-256", "strided-128",
             "linformer-256", "performer-256", "hybrid-256"],
)  # fmt: skip
def test_each_row_is_its_definition(name, is_causal, monkeypatch):
    monkeypatch.setattr(mechanisms, "ROUNDS", (2,))
    mechanism = mechanisms.mechanisms()[name]
    verdict = check_mechanism(
        mechanism, is_causal=is_causal, device="cpu", dtype=torch.float32, head_dim=4
    )
    direction = "causal" if is_causal else "bidirectional"
    if direction in mechanism.directions:
        assert verdict.reason is None
        assert verdict.error < 1e-5
    else:
        assert verdict.reason == f"has no {direction} form"
