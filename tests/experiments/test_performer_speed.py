"""Encoders timed in turn. No test here asserts a time."""

import dataclasses
import json

import pytest
import torch

from subquad.bench import timing
from subquad.experiments import performer_speed_run as run_module
from subquad.experiments.performer_speed import EXPERIMENT, preset
from subquad.experiments.performer_speed_run import (
    BOTH,
    FORWARD,
    ValuesOnly,
    expected_seconds,
    kinds,
    overtaking,
)
from subquad.experiments.runner import run_experiment

SMOKE = preset("smoke", "linear")


def row(kind, length, median, which=FORWARD):
    return {"kind": kind, "pass": which, "seq_len": length, "median": median}


def test_values_only_has_attentions_weights_and_no_attention():
    torch.manual_seed(0)
    mixer = ValuesOnly(8, 2, is_causal=False)
    softmax = kinds(SMOKE)["softmax"](8, 2, is_causal=False)
    mixer.load_state_dict(softmax.state_dict())
    x = torch.randn(1, 1, 8)
    torch.testing.assert_close(mixer(x), softmax(x))  # a token alone sees itself only
    y = torch.randn(1, 5, 8)
    torch.testing.assert_close(mixer(y)[:, 2:3], mixer(y[:, 2:3]))


def test_the_experiment_leaves_a_row_for_each_kind_pass_and_length(tmp_path):
    results = run_experiment(EXPERIMENT, SMOKE, tmp_path / "run", command=["subquad"], say=str)
    rows = results["rows_of_figure_3"]
    assert {(r["kind"], r["pass"], r["seq_len"]) for r in rows} == {
        (kind, which, length)
        for kind in ("softmax", "performer", "values only")
        for which in (FORWARD, BOTH)
        for length in (16, 32)
    }
    assert all(r["median"] > 0 for r in rows)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    page = (tmp_path / "run" / "report.html").read_text()
    assert "softmax / performer" in page
    assert page.count("data:image/png;base64,") == 1


def test_what_would_take_too_long_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "expected_seconds", lambda rows, kind, length: 1.0 * length)
    options = dataclasses.replace(SMOKE, limit=20.0)
    results = run_experiment(EXPERIMENT, options, tmp_path / "run", command=["subquad"], say=str)
    assert {r["seq_len"] for r in results["rows_of_figure_3"]} == {16}
    assert len(results["left_out"]) == 3
    assert (
        "Left out: softmax at 32: expected to take 32 s, more than the limit." in results["notes"]
    )


def test_a_call_that_fails_is_left_out(tmp_path, monkeypatch):
    def fail(model, x):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run_module, "_forward_backward", fail)
    results = run_experiment(EXPERIMENT, SMOKE, tmp_path / "run", command=["subquad"], say=str)
    assert {r["pass"] for r in results["rows_of_figure_3"]} == {FORWARD}
    assert {x["reason"] for x in results["left_out"]} == {"out of memory"}
    assert results["overtakes"][BOTH] is None


def test_softmax_is_expected_to_grow_by_the_square():
    rows = [row("softmax", 100, 1.0), row("softmax", 100, 2.0, BOTH), row("performer", 100, 2.0)]
    assert expected_seconds(rows, "softmax", 300) == 18.0
    assert expected_seconds(rows, "performer", 300) == 6.0
    assert expected_seconds(rows, "values only", 300) == 0.0


@pytest.mark.parametrize(
    ("performer", "first"),
    [((2, 2, 2), 3), ((0.5, 2, 2), 3), ((0.5, 1, 2), 1), ((9, 9, 9), None), ((0, 0, 9), None)],
)
def test_overtaking_is_for_good(performer, first):
    rows = [row("softmax", n, float(n * n) / 2 + 0.6) for n in (1, 2, 3)]
    rows += [row("performer", n, float(t)) for n, t in zip((1, 2, 3), performer, strict=True)]
    rows[1]["median"] = 1.5
    assert overtaking(rows, FORWARD) == first


def test_everything_is_timed_in_turn(tmp_path, monkeypatch):
    order = []
    seconds_of = timing.seconds_of

    def watched(run, device, *, calls=1):
        order.append(run)
        return seconds_of(run, device, calls=1)

    monkeypatch.setattr(timing, "seconds_of", watched)
    options = dataclasses.replace(SMOKE, lengths="8", repetitions=2)
    run_experiment(EXPERIMENT, options, tmp_path / "run", command=["subquad"], say=str)
    assert len(order) == 6 * 2 + 6 * 2  # each warmed up twice, then two rounds
    assert len({id(run) for run in order[-6:]}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": "32,16"}, "lengths must be rising whole numbers of at least 1 with commas"),
        ({"lengths": ""}, "lengths must be rising whole numbers of at least 1 with commas"),
        ({"num_heads": 3}, r"num_heads must divide d_model \(16\), got 3"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"limit": -1.0}, "limit must be above 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = dataclasses.replace(SMOKE, device="cuda")
    with pytest.raises(ValueError, match="device must be cpu where torch can use no GPU, got cuda"):
        run_module.run_speed(options, tmp_path, str)
