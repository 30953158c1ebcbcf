import pytest

from subquad.bench import train
from subquad.bench.options import TrainOptions
from subquad.bench.tables import tables
from subquad.bench.train import (
    TrainingStep,
    measure_train,
    memory_in_this_process,
    new_report,
    profile_text,
)

TINY = {
    "layers": 1, "width": 8, "heads": 2, "seq_len": 5, "batch": 2, "repetitions": 1,
    "seconds": 0.5, "threads": 1,
}  # fmt: skip


def measured(**changes):
    options = TrainOptions(**{**TINY, **changes})
    report = new_report(options)
    measure_train(options, report)
    return report


def test_steps_of_the_mixers_are_set_side_by_side():
    report = measured(has_memory=False)
    for mixer in ("linear", "softmax"):
        row = report.find(mixer=mixer, part="step")
        assert row.more["images_per_second"] == pytest.approx(2 / row.seconds.median)
    assert report.find(mixer="softmax", part="step").more["faster_than_softmax"] == 1.0
    (table,) = tables(report)
    assert {row[:2] for row in table.rows} == {
        (m, p) for m in ("linear", "softmax") for p in ("step", "forward")
    }


def test_the_memory_of_a_step_is_told(monkeypatch):
    monkeypatch.setattr(train, "peak_bytes", lambda run, device: run() or 7)
    found = []
    job = {"options": {**TINY, "mixers": ["linear"]}, "mixer": "linear"}
    memory_in_this_process(job, found.append)
    assert found == [{"peak_bytes": 7}]


@pytest.mark.slow
def test_memory_is_measured_in_another_process():
    report = measured(mixers=("linear",))
    assert report.find(mixer="linear", part="step").more["peak_bytes"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_changes_the_weights(dtype):
    step = TrainingStep(TrainOptions(**{**TINY, "dtype": dtype}), "linear")
    before = step.model.head.weight.detach().clone()
    for _ in range(2):
        step.step()
    assert not before.equal(step.model.head.weight)


def test_the_profile_names_operators():
    assert "aten::" in profile_text(TrainOptions(**TINY), "linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixers": ("lineer",)}, "mixers must be among .*, got 'lineer'"),
        ({"positions": "rotry"}, "positions must be among .*, got 'rotry'"),
        ({"width": 9}, "width must be a multiple of heads = 2, got 9"),
        ({"seq_len": 1}, "seq_len must be at least 2, got 1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_a_model_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measured(has_memory=False, **change)
