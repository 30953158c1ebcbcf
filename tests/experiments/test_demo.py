import html
import json

import pytest

from subquad.experiments import demo_run, pixel_run
from subquad.experiments.demo import DemoOptions, pixel_options
from subquad.experiments.demo_run import TrainingCost, remarks, run_demo, steps_within


def row(mixer, **changes):
    return {
        "mixer": mixer,
        "image_shape": [14, 14, 1],
        "train_images_per_second": 100.0,
        "generation": {"1": 1.0, "64": 50.0},
        "state_bytes_per_image": 1000,
        **changes,
    }


def test_both_mixers_get_one_recipe():
    linear, softmax = (pixel_options(DemoOptions(), mixer, 100) for mixer in ("linear", "softmax"))
    assert linear.train == softmax.train
    assert linear.model == softmax.model
    assert linear.half_size
    assert not pixel_options(DemoOptions(full_size=True), "linear", 100).half_size


def test_the_remarks_tell_when_softmax_is_the_faster_one():
    found = remarks(
        [
            row("linear", generation={"1": 1.0, "64": 100.0}),
            row("softmax", generation={"1": 2.0, "64": 50.0}, state_bytes_per_image=20_000),
        ]
    )
    assert found[:3] == [
        "Training: equal to within 5 %.",
        "Drawing, batch 1: softmax is 2.00 times as fast.",
        "Drawing, batch 64: linear is 2.00 times as fast.",
    ]
    assert "At 196 bytes an image softmax can be the faster one" in found[3]
    assert "20.0 times the bytes" in found[4]


def test_the_remarks_are_silent_where_softmax_is_not_faster():
    found = remarks([row("linear"), row("softmax")])
    assert not any("can be the faster" in line for line in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0.0}, "--minutes must be above 0, got 0"),
        ({"samples": 1}, "--samples must be at least 2, got 1"),
        ({"completions": 0}, "--completions must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DemoOptions(**options)


def test_the_demo_is_no_scale_of_an_experiment():
    assert not hasattr(pixel_options(DemoOptions(), "linear", 100), "scale")


def test_as_many_steps_are_taken_as_fit_with_their_evaluations():
    costs = [
        TrainingCost(step=0.1, evaluation=5.0, eval_every=100),
        TrainingCost(step=0.3, evaluation=5.0, eval_every=100),
    ]
    steps = steps_within(520.0, costs)
    assert steps == 1000
    assert sum(cost.of(steps) for cost in costs) == pytest.approx(510)
    assert steps_within(1.0, costs) == 1


def test_the_demo_measures_both_and_writes_a_report(tmp_path, monkeypatch):
    def tiny(options, mixer, max_steps):
        chosen = pixel_options(options, mixer, min(max_steps, 2))
        return chosen.__class__(
            **{
                **vars(chosen),
                "model": chosen.model.__class__(
                    **{**vars(chosen.model), "num_layers": 1, "d_model": 8, "num_heads": 2}
                ),
            }
        )

    monkeypatch.setattr(demo_run, "pixel_options", tiny)
    digits = pixel_run.load_images("embedded-mnist", None, half_size=True)
    monkeypatch.setattr(demo_run, "load_images", lambda *_, **__: digits)
    monkeypatch.setattr(pixel_run, "load_images", lambda *_, **__: digits)
    options = DemoOptions(minutes=0.01, samples=4, completions=2)
    said = []
    rows = run_demo(options, tmp_path / "demo", command=["subquad", "demo"], say=said.append)
    assert [row["mixer"] for row in rows] == ["linear", "softmax"]
    assert rows[0]["steps"] == rows[1]["steps"]
    assert rows[0]["images_seen"] == rows[1]["images_seen"]
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[0]["state_bytes_per_image"] < rows[1]["state_bytes_per_image"]
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written["rows"] == rows
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    for remark in remarks(rows):
        assert html.escape(remark) in page
    assert any(line.startswith("softmax: 1 steps") for line in said)
