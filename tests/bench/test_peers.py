import sys
from types import ModuleType

import pytest

from subquad.bench import machine, peers
from subquad.bench.mechanisms import Mechanism
from subquad.bench.options import AttentionOptions
from subquad.bench.peers import measure_peers, peer_report

TINY = {
    "lengths": (16,), "heads": 1, "head_dim": 4, "repetitions": 1, "seconds": 1.0,
    "has_memory": False, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(machine, "CPU_GEMM", 8)
    monkeypatch.setattr(machine, "CPU_COPY", 2**10)


def measured(monkeypatch, **table):
    monkeypatch.setattr(peers, "PEERS", table)
    options = AttentionOptions(**TINY)
    report = peer_report(options)
    measure_peers(options, report)
    return report


def fake(attend):
    def build(head_dim, is_causal):
        return Mechanism(attend=attend, definition=lambda q, k, v, is_causal: 2 * v)

    return build


def test_a_peer_is_timed_only_if_it_computes_what_it_claims(monkeypatch):
    report = measured(
        monkeypatch,
        right=("math", fake(lambda q, k, v, is_causal: v + v)),
        wrong=("math", fake(lambda q, k, v, is_causal: v)),
    )
    names = {row.what["mechanism"] for row in report.rows}
    assert "right" in names
    assert "wrong" not in names
    (line,) = (x for x in report.left_out if x["mechanism"] == "wrong")
    assert line["reason"] == "is wrong: its output is 5.0e-01 off its definition"


def test_a_package_that_cannot_run_is_one_line(monkeypatch):
    def needs(head_dim, is_causal):
        raise ModuleNotFoundError("No module named 'inner'", name="inner")

    def breaks(head_dim, is_causal):
        raise OSError("a library\nis missing")

    report = measured(
        monkeypatch, absent=("no_such_package", needs), half=("math", needs), bad=("math", breaks)
    )
    reasons = {x["mechanism"]: x["reason"] for x in report.left_out}
    assert reasons["absent"] == "is not installed"
    assert reasons["half"] == "needs inner"
    assert reasons["bad"] == "cannot be used: a library is missing"


def test_the_authors_kernel_is_called_as_their_layer_calls_it(monkeypatch):
    package, module = (
        ModuleType("fast_transformers"),
        ModuleType("fast_transformers.causal_product"),
    )
    module.causal_dot_product = lambda q, k, v: (q @ k.mT).tril() @ v
    monkeypatch.setitem(sys.modules, "fast_transformers", package)
    monkeypatch.setitem(sys.modules, "fast_transformers.causal_product", module)
    report = measured(monkeypatch, ft=("math", peers._fast_transformers))
    assert report.machine["error"]["ft"] < 1e-4
    assert report.find(mechanism="ft") is not None
