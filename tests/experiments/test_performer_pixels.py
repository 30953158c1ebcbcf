"""performer-pixels: its rows on images and on drawings."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from subquad.experiments import performer_pixels_run
from subquad.experiments.performer_pixels_run import blank_pictures, load_pictures, pixel_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.layers import LinearAttention, PerformerAttention, SoftmaxAttention

EXPERIMENT = EXPERIMENTS["performer-pixels"]


def smoke(**changes):
    options = EXPERIMENT.preset("smoke", "linear")
    train = dataclasses.replace(
        options.train, max_steps=2, warmup_steps=1, batch_size=2, eval_every=2, log_every=1
    )
    return dataclasses.replace(options, train=train, device="cpu", **changes)


def run(folder, **changes):
    command = ["subquad", "run", "x"]
    return run_experiment(EXPERIMENT, smoke(**changes), folder, command=command, say=str)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(performer_pixels_run, "seconds_per_step", lambda *_: 0.5)


def test_the_smoke_scale_leaves_a_folder_a_row_for_images_and_for_drawings(tmp_path):
    folder = tmp_path / "run"
    results = run(folder, attentions="softmax,elu+1")
    names = [row["row"] for row in results["rows"]]
    assert names == ["images-softmax", "images-elu-1", "drawings-softmax", "drawings-elu-1"]
    for row in results["rows"]:
        assert row["steps"] == 2
        assert row["unit"] == "bits/dim"
        assert row["state_bytes"] > 0
        assert row["seconds_per_step"] == 0.5
        assert json.loads((folder / row["row"] / "results.json").read_text())["test"] == row["test"]
    page = (folder / "report.html").read_text()
    for words in ("one seed", "made-up drawings", "tested on 8 of these", "images", "drawings"):
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert str(tmp_path) not in page
    assert run(folder, attentions="softmax,elu+1") == results  # nothing is trained again


def test_every_row_has_its_attention_and_can_be_trained():
    options = smoke(num_features=5, redraw_every=7)
    rows = pixel_rows(options, load_pictures(options))
    assert len({row.name for row in rows}) == len(rows) == 8
    kinds = {"softmax": SoftmaxAttention, "elu+1": LinearAttention}
    for row in rows:
        task = row.build()
        mixer = task.model.decoder.stack.blocks[0].mixer
        assert type(mixer) is kinds.get(row.label, PerformerAttention)
        if isinstance(mixer, PerformerAttention):
            assert mixer.features.num_directions == 5
        task.model.train()
        task.loss(*task.batch(0)).backward()
        for name, p in task.model.named_parameters():
            assert p.grad is None or torch.isfinite(p.grad).all(), (row.name, name)


def test_drawings_come_one_a_step_for_their_own_minutes():
    options = EXPERIMENT.preset("laptop", "linear")
    images, drawings = blank_pictures(options)
    assert images.train.shape == (8, 784)
    assert (images.config.minutes, images.config.warmup_steps) == (5, 100)
    assert drawings.train.shape == (1, 12_288)
    config = drawings.config
    assert (config.minutes, config.batch_size, config.warmup_steps) == (4, 1, 10)
    _, drawings = blank_pictures(smoke())
    assert (drawings.config.minutes, drawings.config.max_steps) == (None, 2)
    assert len(blank_pictures(smoke(drawings="none"))) == 1


def test_the_pictures_tested_on_are_always_the_same_and_not_only_the_first():
    few, more = (load_pictures(smoke(image_tests=count))[0].test for count in (8, 40))
    assert len(few) == 8
    assert len(more) == 40
    everything = load_pictures(smoke(image_tests=10**6))[0].test
    assert len(everything) == 500
    assert not np.array_equal(few, everything[:8])
    np.testing.assert_array_equal(few, load_pictures(smoke(image_tests=8))[0].test)


def test_an_estimate_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(performer_pixels_run, "load_images", None)
    cost = EXPERIMENT.estimate(smoke())
    assert cost["rows"] == 8
    assert cost["steps"] == 16
    assert min(cost[key] for key in ("flops", "parameters", "minutes", "memory_gb")) > 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attentions": ""}, "attentions must name at least one, got none"),
        ({"attentions": "lstm"}, "attentions must be among .* got 'lstm'"),
        ({"attentions": "linformer"}, "attentions must be among .* got 'linformer'"),
        ({"image_tests": 0}, "image_tests must be at least 1, got 0"),
        ({"drawing_tests": 0}, "drawing_tests must be at least 1, got 0"),
        ({"drawing_minutes": 0.0}, "drawing_minutes must be above 0, got 0"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        smoke(**change)
