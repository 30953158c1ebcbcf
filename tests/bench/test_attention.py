import math
import subprocess
import sys

import pytest

from subquad.bench import attention, machine, mechanisms
from subquad.bench.attention import (
    measure_attention,
    memory_in_this_process,
    new_report,
    predicted_seconds,
)
from subquad.bench.machine import Rates, linear_roofline_seconds
from subquad.bench.mechanisms import Mechanism, select
from subquad.bench.options import AttentionOptions
from subquad.bench.results import Report, Row, spread
from subquad.bench.summary import best_torch_form, overtakes, slope, summarize
from subquad.bench.tables import tables
from subquad.bench.timing import Progress

TINY = {
    "lengths": (8, 16), "heads": 1, "head_dim": 4, "repetitions": 2, "seconds": 1.0,
    "has_memory": False, "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(machine, "CPU_GEMM", 8)
    monkeypatch.setattr(machine, "CPU_COPY", 2**10)
    monkeypatch.setattr(mechanisms, "ROUNDS", (1,))  # the definition takes half a second a round


def measured(**changes):
    table = changes.pop("table", None)
    options = AttentionOptions(**{**TINY, **changes})
    report = new_report(options)
    measure_attention(options, report, table=table)
    return report


def row(name, seq_len, seconds, which="forward"):
    what = {"mechanism": name, "pass": which, "seq_len": seq_len}
    return Row(what=what, seconds=spread([seconds]))


def report_of(*rows):
    return Report(kind="attention", options={}, rows=list(rows))


@pytest.mark.parametrize("is_causal", [True, False])
def test_all_mechanisms_are_measured_in_both_passes(is_causal):
    report = measured(is_causal=is_causal)
    found = {(r.what["mechanism"], r.what["pass"], r.what["seq_len"]) for r in report.rows}
    names = {"softmax", "performer-256", "lsh-1", "local-256", "strided-128"}
    names |= {"linear-torch-32"} if is_causal else {"linear-torch", "linformer-256"}
    assert {
        (name, which, n)
        for name in names
        for which in ("forward", "forward+backward")
        for n in TINY["lengths"]
    } <= found
    assert all(r.seconds.count == 2 for r in report.rows)
    linear = next(r for r in report.rows if r.what["mechanism"].startswith("linear-torch"))
    assert linear.more["roofline_share"] > 0
    assert linear.more["faster_than_softmax"] > 0
    assert all(error < 1e-4 for error in report.machine["error"].values())
    assert [table.title for table in tables(report)][:3] == [
        "attention, forward",
        "attention, forward+backward",
        "growth",
    ]


def test_work_planned_is_all_done_or_dropped():
    options = AttentionOptions(**TINY)
    progress = Progress()
    measure_attention(options, new_report(options), progress=progress)
    assert progress.done == pytest.approx(progress.total)


def test_the_memory_of_each_cell_of_a_job_is_told(monkeypatch):
    monkeypatch.setattr(attention, "peak_bytes", lambda run, device: run()[0].shape[2])
    job = {
        "options": {**TINY, "is_causal": False},
        "mechanism": "linear-torch",
        "cells": [("forward+backward", 64), ("forward+backward", 128)],
    }
    found = []
    memory_in_this_process(job, found.append)
    assert [(x["pass"], x["seq_len"]) for x in found] == job["cells"]
    assert [x["peak_bytes"] for x in found] == [64, 128]


@pytest.mark.slow
def test_memory_is_measured_in_another_process():
    report = measured(mechanisms=("softmax",), has_memory=True, lengths=(512,), head_dim=64)
    both = report.find(mechanism="softmax", **{"pass": "forward+backward"})
    arrays = 4 * 512 * 64
    assert 3 * arrays < both.more["peak_bytes"] < 100 * arrays


def test_an_operator_of_ones_own_joins_the_table():
    own = Mechanism(attend=lambda q, k, v, is_causal: v * q.sum() + 0 * k)
    report = measured(
        table={**mechanisms.mechanisms(), "mine": own}, mechanisms=("mine", "softmax")
    )
    assert {r.what["mechanism"] for r in report.rows} == {"mine", "softmax"}


def test_what_would_take_too_long_is_left_out_and_said():
    report = measured(limit=1e-9, mechanisms=("softmax",), lengths=(8, 16, 32))
    assert {r.what["seq_len"] for r in report.rows} == {8}
    reasons = [x["reason"] for x in report.left_out]
    assert len(reasons) == 4
    assert "more than the limit of 1e-09 s" in reasons[0]


def test_weights_are_made_before_memory_is_measured(monkeypatch):
    made = []
    own = Mechanism(attend=lambda q, k, v, is_causal: v, prepare=lambda q: made.append(q.shape[2]))
    options = AttentionOptions(**TINY)
    attention.call(own, "forward", attention.inputs(options, 8), True)
    assert made == [8]


def test_names_select_families():
    known = ["softmax", "linear-torch-32", "linear-torch-64", "linear-cpu"]
    assert select(["linear-torch", "softmax"], known) == [*known[1:3], "softmax"]
    with pytest.raises(ValueError, match=r"mechanisms must be among softmax, .* got 'lin'"):
        select(["lin"], known)


def test_an_interrupt_leaves_what_was_measured():
    calls = []

    def attend(q, k, v, is_causal):
        calls.append(q.shape[2])
        if len(calls) > 40 and q.shape[2] == 16:
            raise KeyboardInterrupt
        return v * 1

    options = AttentionOptions(**TINY)
    report = new_report(options)
    with pytest.raises(KeyboardInterrupt):
        measure_attention(options, report, table={"mine": Mechanism(attend=attend)})
    assert [r.what["seq_len"] for r in report.rows][:1] == [8]
    assert report.summary


def test_times_are_predicted_from_the_last_two_lengths():
    report = report_of(row("a", 8, 1.0), row("a", 16, 2.0), row("b", 8, 1.0))
    assert predicted_seconds(report, "a", "forward", 32) == pytest.approx(4.0)
    assert predicted_seconds(report, "b", "forward", 16) == pytest.approx(4.0)
    assert predicted_seconds(report, "c", "forward", 16) is None
    spike = report_of(row("a", 8, 1.0), row("a", 16, 1e3))
    assert predicted_seconds(spike, "a", "forward", 32) == pytest.approx(1e3 * 2**2.5)


def test_slopes_are_of_the_longest_lengths():
    cubes = [(2**n, 2.0 ** (3 * n)) for n in range(4, 8)]
    assert slope([(1, 1e9), (2, 1e9), *cubes]) == pytest.approx(3.0)
    assert slope([(8, 1.0)]) is None


def test_where_one_overtakes_the_other():
    softmax = [(n, n**2 / 100.0) for n in (4, 16, 64, 256)]
    linear = [(n, n / 4) for n in (4, 16, 64, 256)]
    assert overtakes(linear, softmax) == {"from": 25, "is_first": False}
    assert overtakes(linear[2:], softmax) == {"from": 64, "is_first": True}
    assert overtakes(softmax, linear) == {"from": None, "is_first": False}
    # A lead that is lost again is no overtaking: it must hold up to the longest length.
    assert overtakes([(4, 0.1), (16, 9.0), (64, 1.0)], softmax)["from"] > 16


def test_ratios_are_against_softmax_and_the_best_chunk_size():
    report = report_of(
        row("softmax", 8, 6.0), row("linear-torch-32", 8, 3.0), row("linear-torch-64", 8, 2.0),
        row("linear-cpu", 8, 1.0),
    )  # fmt: skip
    summarize(report)
    assert best_torch_form(report, "forward", 8).what["mechanism"] == "linear-torch-64"
    assert report.rows[3].more == {"faster_than_softmax": 6.0, "faster_than_torch_form": 2.0}


def test_the_roofline_is_the_larger_of_flops_and_bytes():
    sizes = {"seq_len": 10, "batch": 1, "heads": 2, "key_dim": 8, "value_dim": 4}
    sizes |= {"element_bytes": 4}
    flops_bound, bytes_bound = Rates(1.0, 1e30), Rates(1e30, 1.0)
    forward = {**sizes, "is_backward": False}
    both = {**sizes, "is_backward": True}
    assert linear_roofline_seconds(flops_bound, **forward) == 4 * 10 * 2 * 8 * 4
    assert linear_roofline_seconds(flops_bound, **both) == 10 * 10 * 2 * 8 * 4
    arrays = 4 * 10 * 2 * (8 + 8 + 4 + 4)  # q, k, v and out
    assert linear_roofline_seconds(bytes_bound, **forward) == arrays
    assert linear_roofline_seconds(bytes_bound, **both) == 2 * arrays


PEAK = """
import torch
from subquad.bench.memory import peak_bytes
big = 4 * 2**24
def run():
    x = torch.ones(2**24)
    return float((x + 1).sum())
torch.ones(3 * 2**24)  # an earlier peak is not counted
found = peak_bytes(run, "cpu")
assert 1.9 * big < found < 2.5 * big, found / big
"""


def test_a_peak_counts_what_is_freed_again():
    # In a process of its own: others of these tests tell this one to keep freed memory.
    subprocess.run([sys.executable, "-c", PEAK], check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, "lengths must rise and be at least one"),
        ({"lengths": (8, 8)}, r"lengths must rise .* got \[8, 8\]"),
        ({"lengths": (0, 8)}, "lengths must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"repetitions": 0}, "repetitions must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"limit": math.nan}, "limit must be above 0, got nan"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AttentionOptions(**change)
