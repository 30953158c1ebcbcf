"""vit-positions: its rows, what is measured of them, and what a run leaves."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from subquad.data.image_set import ImageSet
from subquad.experiments import vit_positions_run, vit_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.experiments.vit_positions_run import (
    LEARNED,
    WAYS,
    features,
    position_rows,
    spread_note,
)

EXPERIMENT = EXPERIMENTS["vit-positions"]


def drawn():
    labels = np.tile(np.arange(10, dtype=np.uint8), 12)
    images = np.random.default_rng(0).integers(0, 256, (120, 14, 14, 1), np.uint8)
    return ImageSet(
        train=images, train_labels=labels, test=images[:20], test_labels=labels[:20],
        source="images of noise",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(vit_rows, "load_images", lambda *_, **__: drawn())
    monkeypatch.setattr(vit_positions_run, "load_images", lambda *_, **__: drawn())


def smoke(**changes):
    options = EXPERIMENT.preset("smoke", "linear")
    return dataclasses.replace(options, device="cpu", **changes)


def test_the_rows_are_the_papers_and_each_learns():
    rows = position_rows(smoke(), drawn(), drawn())
    assert len({row.name for row in rows}) == len(rows) == len(WAYS) + 4
    paper = {
        (
            row.build().model.config["positions"],
            row.build().model.config["position_place"],
        ): row.facts
        for row in rows[:9]
    }
    assert paper == {
        ("none", "stem"): {"paper_five_shot": 0.61382},
        ("learned", "stem"): {"paper_five_shot": 0.64206},
        ("learned", "layers"): {"paper_five_shot": 0.63964},
        ("learned", "shared"): {"paper_five_shot": 0.64292},
        ("learned-2d", "stem"): {"paper_five_shot": 0.64001},
        ("learned-2d", "layers"): {"paper_five_shot": 0.64046},
        ("learned-2d", "shared"): {"paper_five_shot": 0.64022},
        ("relative", "layers"): {"paper_five_shot": 0.64032},
        ("coordinates", "stem"): {},
    }
    for row in rows:
        task = row.build()
        task.loss(*task.batch(0)).backward()
        assert all(
            torch.isfinite(p.grad).all() for p in task.model.parameters() if p.grad is not None
        )
    first, again = rows[1].build(), rows[9].build()
    assert rows[9].label == f"{LEARNED}, another seed"
    assert not torch.equal(first.model.stem.proj.weight, again.model.stem.proj.weight)


def test_class_token_and_mean_have_two_rates():
    rows = position_rows(smoke(), drawn(), drawn())[10:]
    found = [(row.build().model.config["pooling"], row.train.lr, row.label) for row in rows]
    assert found == [
        ("class", 0.00075, "class token, rate 0.00075"),
        ("mean", 0.002, "mean of all tokens, rate 0.002"),
        ("mean", 0.00075, "mean of all tokens, rate 0.00075"),
    ]


def test_the_smoke_scale_leaves_a_folder_a_row_and_one_report(tmp_path, monkeypatch):
    monkeypatch.setattr(vit_positions_run, "WAYS", WAYS[:2])
    folder = tmp_path / "run"
    command = ["subquad", "run", "x"]
    results = run_experiment(EXPERIMENT, smoke(), folder, command=command, say=str)
    assert [(row["group"], row["label"]) for row in results["rows"]] == [
        ("positions", "none"),
        ("positions", LEARNED),
        ("positions", f"{LEARNED}, another seed"),
        ("pooling", "class token, rate 0.00075"),
        ("pooling", "mean of all tokens, rate 0.002"),
        ("pooling", "mean of all tokens, rate 0.00075"),
        ("pooling", "class token, rate 0.002"),
    ]
    for row in results["rows"]:
        assert row["steps"] == 2
        for key in ("test_accuracy", "five_shot", "ten_shot"):
            assert 0 <= row[key] <= 1
    assert results["rows"][1]["paper_five_shot"] == 0.64206
    assert json.loads((folder / "results.json").read_text()) == results
    page = (folder / "report.html").read_text()
    for words in ("5-shot, share right", "0.64292", "are ties", "images of noise", "B/16"):
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert str(tmp_path) not in page
    assert run_experiment(EXPERIMENT, smoke(), folder, command=command, say=str) == results


def test_few_shot_tells_classes_that_the_features_tell(tmp_path):
    options, images = smoke(), drawn()
    task = position_rows(options, images, images)[0].build()
    x = features(task, images.test)
    assert x.shape == (20, 16)
    with torch.no_grad():
        seen = task.model.pool(task.model.forward_features(task.prepared(images.test)))
    torch.testing.assert_close(x, seen)
    bright = np.zeros((120, 14, 14, 1), np.uint8)
    labels = images.train_labels
    for image, label in zip(bright, labels, strict=True):
        image[label // 7 :: 7, label % 7 :: 7] = 255  # one pixel of each patch tells the class
    told = dataclasses.replace(images, train=bright, test=bright[:20])
    found = vit_positions_run._few_shot(options, told, task, tmp_path)
    assert found == {"five_shot": 1.0, "ten_shot": 1.0}
    blurred = vit_positions_run._few_shot(options, images, task, tmp_path)
    assert blurred["five_shot"] < 1.0


def test_two_seeds_tell_what_is_a_tie():
    rows = [
        {"group": "positions", "label": LEARNED, "test_accuracy": 0.8, "five_shot": 0.5},
        {"group": "positions", "label": LEARNED + ", another seed", "test_accuracy": 0.79,
         "five_shot": 0.5025},
    ]  # fmt: skip
    assert "1.00 points (test images), 0.25 points (5-shot)" in spread_note(rows)
    rows[1]["failed"] = "the loss is nan"
    assert "went bad" in spread_note(rows)


def test_an_estimate_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vit_rows, "load_images", None)
    monkeypatch.setattr(vit_positions_run, "WAYS", WAYS[:2])
    cost = EXPERIMENT.estimate(smoke())
    assert (cost["rows"], cost["steps"]) == (6, 12)
    assert min(cost[key] for key in ("flops", "parameters", "minutes", "memory_gb")) > 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["smoke", "laptop", "long", "paper"])
def test_presets_fit(scale):
    options = EXPERIMENT.preset(scale, "linear")
    assert options.mixer == "all"
    assert options.low_lr == 3 / 8 * options.train.lr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"few_shot_draws": 0}, "few_shot_draws must be at least 1, got 0"),
        ({"low_lr": 0.1}, "low_lr must be above 0 and below lr = 0.002, got 0.1"),
        ({"low_lr": 0.0}, "low_lr must be above 0 and below lr = 0.002, got 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        smoke(**change)
