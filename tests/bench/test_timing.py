import pytest
import torch

from subquad.bench import timing
from subquad.bench.timing import Progress, interleave, threads


@pytest.fixture
def calls(monkeypatch):
    """Names in the order called; each call takes as long as one sample should."""
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    return []


def runs(calls, *names):
    return {name: lambda name=name: calls.append(name) for name in names}


def test_rounds_take_turns_and_each_starts_with_another(calls):
    samples = {}
    order = []
    interleave(
        runs(calls, "a", "b", "c"),
        samples,
        device="cpu",
        repetitions=3,
        seconds=10.0,
        on_sample=order.append,
    )
    assert "".join(order) == "abcbcacab"
    assert {name: len(found) for name, found in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]  # warm-up


def test_a_spent_budget_still_leaves_three_rounds(calls):
    samples = {}
    interleave(runs(calls, "a"), samples, device="cpu", repetitions=50, seconds=0.0)
    assert len(samples["a"]) == 3


def test_quick_calls_are_repeated_within_a_sample():
    calls = []
    interleave(runs(calls, "a"), {}, device="cpu", repetitions=1, seconds=1.0)
    assert len(calls) > 12


def test_an_interrupt_keeps_the_samples_made_before(calls):
    samples = {}

    def stop(name):
        if len(samples["a"]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave(
            runs(calls, "a"), samples, device="cpu", repetitions=9, seconds=9.0, on_sample=stop
        )
    assert len(samples["a"]) == 2


def test_what_fails_is_told_and_left_out(calls):
    def fail():
        raise RuntimeError("no memory")

    told, samples = [], {}
    options = {"device": "cpu", "repetitions": 1, "seconds": 1.0}
    interleave(
        {"bad": fail, **runs(calls, "good")},
        samples,
        on_failure=lambda name, error: told.append((name, str(error))),
        **options,
    )
    assert told == [("bad", "no memory")]
    assert list(samples) == ["good"]
    with pytest.raises(RuntimeError, match="no memory"):
        interleave({"bad": fail}, {}, **options)


def test_progress_counts_work():
    shown = []
    progress = Progress(lambda *news: shown.append(news))
    progress.plan(10)
    progress.advance(4, "a")
    progress.drop(3)
    progress.drop(100)
    assert shown == [(0, 10, ""), (4, 10, "a"), (4, 7, ""), (4, 4, "")]


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before
