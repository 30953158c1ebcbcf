import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from subquad.bench import performer_speed
from subquad.bench.machine import Rates
from subquad.bench.options import PerformerOptions
from subquad.bench.performer_speed import least_seconds, measure_performer, new_report
from subquad.bench.tables import tables
from subquad.bench.timing import Progress

TINY = {
    "lengths": (16, 40), "heads": 1, "head_dim": 8, "num_features": 12, "repetitions": 3,
    "threads": 1,
}  # fmt: skip


def test_ratios_are_those_of_the_times():
    options = PerformerOptions(**TINY)
    report, progress = new_report(options), Progress()
    measure_performer(options, report, progress=progress)
    assert progress.done == progress.total

    def median(what, which, n):
        return report.find(what=what, **{"pass": which}, seq_len=n).seconds.median

    for which in ("forward", "forward+backward"):
        for n in (16, 40):
            row = report.find(what="performer", **{"pass": which}, seq_len=n)
            faster = median("softmax", which, n) / row.seconds.median
            assert row.more["faster_than_softmax"] == faster
            assert ("roofline_share" in row.more) == (which == "forward")
            row = report.find(what="performer, causal", **{"pass": which}, seq_len=n)
            elu = median("elu + 1 of as many features", which, n)
            assert row.more["times_of"] == row.seconds.median / elu
            row = report.find(what="recurrence with decay", **{"pass": which}, seq_len=n)
            without = median("recurrence", which, n)
            assert row.more["times_of"] == row.seconds.median / without
    assert len(tables(report)[0].rows) == 2 * 2 * 7


def test_the_least_time_is_that_of_four_products():
    options = PerformerOptions(**TINY)
    q, w, v = torch.randn(40, 8), torch.randn(12, 8), torch.randn(40, 8)
    with FlopCounterMode(display=False) as counter:
        phi_q, phi_k = q @ w.T, q @ w.T
        phi_q @ (phi_k.T @ v)
    assert least_seconds(options, 40, Rates(gemm=1.0, copy=1.0)) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": (40, 16)}, "lengths must rise and be at least one, got"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0.0"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        PerformerOptions(**{**TINY, **changes})


def test_an_operator_that_is_wrong_is_not_timed(monkeypatch):
    def wrong(q, k, v, *, features, is_causal):
        y = performer_speed.performer_attention_quadratic(
            q, k, v, features=features, is_causal=is_causal
        )
        return y * 1.01 if is_causal else y

    monkeypatch.setattr(performer_speed, "performer_attention", wrong)
    options = PerformerOptions(**TINY)
    report = new_report(options)
    with pytest.raises(RuntimeError, match=r"is wrong: its output is .*, and was not timed"):
        measure_performer(options, report)
    assert not report.rows
