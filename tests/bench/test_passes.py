"""Passes timed in turn. No test here asserts a time."""

import pytest
import torch

from subquad.bench.passes import check_device, time_passes


def test_each_pass_is_timed_and_what_fails_has_a_reason():
    calls = []

    def fails():
        raise RuntimeError("out of\n  memory, " + 300 * "x")

    runs = {
        ("a", "forward"): lambda: calls.append("af"),
        ("a", "backward"): fails,
        ("b", "forward"): lambda: calls.append("bf"),
    }
    found, reasons = time_passes(runs, device="cpu", repetitions=4, seconds=60.0)
    assert list(found) == [("a", "forward"), ("b", "forward")]
    assert [took.count for took in found.values()] == [4, 4]
    assert {"af", "bf"} == set(calls)
    assert list(reasons) == [("a", "backward")]
    assert reasons["a", "backward"].startswith("out of memory, xxx")
    assert len(reasons["a", "backward"]) == 200


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be cpu where torch can use no GPU, got cuda"):
        check_device("cuda")
