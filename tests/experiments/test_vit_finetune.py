"""vit-finetune: pre-training, what begins with its weights, and how those are fine-tuned."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from subquad.data.image_set import ImageSet
from subquad.experiments import rows as rows_module
from subquad.experiments import vit_finetune_run, vit_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.experiments.vit_finetune_run import (
    enlarged,
    finetune_rows,
    gain_notes,
    some_labels,
)
from subquad.models.saving import load_model
from subquad.tasks.masked_patches import MaskedPatchTask

EXPERIMENT = EXPERIMENTS["vit-finetune"]
COMMAND = ["subquad", "run", "x"]


def drawn(seed=0, side=28):
    labels = np.tile(np.arange(10, dtype=np.uint8), 20)
    images = np.random.default_rng(seed).integers(0, 256, (200, side, side, 1), np.uint8)
    return ImageSet(
        train=images, train_labels=labels, test=images[:20], test_labels=labels[:20],
        source=f"images of noise {seed}",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(vit_rows, "load_images", lambda *_, **__: drawn(0))
    monkeypatch.setattr(vit_finetune_run, "load_images", lambda *_, **__: drawn(1))


def smoke(**changes):
    options = EXPERIMENT.preset("smoke", "linear")
    return dataclasses.replace(options, device="cpu", **changes)


def run(folder, **changes):
    return run_experiment(EXPERIMENT, smoke(**changes), folder, command=COMMAND, say=str)


PLANNED = [
    ("pre-training", "labels"),
    ("masked patches", "mean colour"),
    ("masked patches", "4 x 4 colours"),
    ("masked patches", "all pixels"),
    ("56 x 56", "fine-tuned, rate 0.03"),
    ("56 x 56", "fine-tuned, rate 0.1"),
    ("56 x 56", "fine-tuned at 28 x 28, rate 0.03"),
    ("56 x 56", "from scratch"),
    ("56 x 56", "from scratch, as fine-tuned, rate 0.03"),
    ("1 % of the labels", "from scratch"),
    ("1 % of the labels", "mean colour"),
    ("1 % of the labels", "mean colour, fine-tuned by SGD"),
    ("10 % of the labels", "from scratch"),
    ("10 % of the labels", "mean colour"),
    ("10 % of the labels", "4 x 4 colours"),
    ("10 % of the labels", "all pixels"),
    ("10 % of the labels", "mean colour, fine-tuned by SGD"),
]


@pytest.fixture
def few_rows(monkeypatch):
    """Two pre-trainings, and what begins with each of them."""

    def some(*arguments):
        rows = finetune_rows(*arguments)
        assert [(row.group, row.label) for row in rows] == PLANNED
        return [rows[i] for i in (0, 1, 4, 9, 10)]

    monkeypatch.setattr(vit_finetune_run, "finetune_rows", some)


@pytest.mark.slow
def test_all_rows_run(tmp_path):
    results = run(tmp_path / "run")
    assert [(row["group"], row["label"]) for row in results["rows"]] == PLANNED
    assert [row.get("labels") for row in results["rows"][9:]] == [10] * 3 + [20] * 5
    for row in results["rows"]:
        assert row["steps"] == 2
        assert ("test_accuracy" in row) == (row["label"] != "all pixels" or "labels" in row)


def test_the_smoke_scale_leaves_a_folder_a_row_and_one_report(tmp_path, few_rows):
    folder = tmp_path / "run"
    results = run(folder)
    for row in results["rows"]:
        assert row["steps"] == 2
        assert 0 <= row["test_accuracy"] <= 1
        assert json.loads((folder / row["row"] / "results.json").read_text()) == row
    assert 0 < results["unseen"]["accuracy"] < 1
    page = (folder / "report.html").read_text()
    for words in (
        "79.9", "84.15",
        "from 28 to 56 pixels", "images of noise 0", "images of noise 1", "one seed",
        "1 % of the labels, against training from scratch: mean colour",
    ):  # fmt: skip
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert str(tmp_path) not in page
    assert run(folder) == results  # nothing is trained again


def test_a_stopped_experiment_goes_on_with_the_weights_of_its_pretraining(
    tmp_path, few_rows, monkeypatch
):
    whole = run(tmp_path / "whole")
    real, calls = rows_module.fit, []

    def third_row_is_stopped(*arguments):
        calls.append(arguments)
        found = real(*arguments)
        return dataclasses.replace(found, interrupted=len(calls) == 3)

    monkeypatch.setattr(rows_module, "fit", third_row_is_stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    again = run(tmp_path / "run")
    assert [row["test"] for row in again["rows"]] == [row["test"] for row in whole["rows"]]
    assert len(calls) == 6  # the first two rows were not trained again


def test_rows_begin_with_the_weights_that_were_saved(tmp_path):
    options = smoke()
    rows = finetune_rows(options, drawn(0), drawn(1), tmp_path)
    by_name = {(row.group, row.label): row for row in rows}
    for (group, label), start in (
        (("pre-training", "labels"), ("56 x 56", "fine-tuned, rate 0.03")),
        (("masked patches", "all pixels"), ("10 % of the labels", "all pixels")),
    ):
        trained = by_name[group, label].build()
        model = trained.model.backbone if group == "masked patches" else trained.model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5)
        by_name[group, label].measure(trained, tmp_path)
        begun = by_name[start].build()
        new, old = begun.model.state_dict(), model.state_dict()
        for key, value in old.items():
            if key.startswith("head."):
                assert not new[key].any()
            elif key != "positions.table" or group == "masked patches":
                assert torch.equal(new[key], value), key
        assert all(p.requires_grad for p in begun.model.parameters())
        logits = begun.model(begun.batch(0)[0])
        assert not logits.any()  # so all classes are alike
    larger = by_name["56 x 56", "fine-tuned, rate 0.03"].build().model
    assert larger.grid == (8, 8)
    assert larger.positions.table.shape == (1, 65, 16)
    small = load_model(tmp_path / "pretrained" / "labels")
    small.resample(56, "zoom")
    assert torch.equal(larger.positions.table, small.positions.table)
    as_it_is = by_name["56 x 56", "fine-tuned at 28 x 28, rate 0.03"].build().model
    assert as_it_is.grid == (4, 4)


def test_fine_tuning_is_as_published_and_scratch_as_pretraining():
    options = EXPERIMENT.preset("laptop", "linear")
    rows = {
        (row.group, row.label): row.train
        for row in finetune_rows(options, drawn(0), drawn(1), None)
    }
    tuned = rows["56 x 56", "fine-tuned, rate 0.03"]
    assert (tuned.optimizer, tuned.momentum, tuned.schedule) == ("sgd", 0.9, "cosine")
    assert (tuned.weight_decay, tuned.clip_norm, tuned.min_lr_ratio) == (0.0, 1.0, 0.0)
    assert (tuned.lr, tuned.max_steps) == (0.03, options.finetune_steps)
    assert rows["56 x 56", "from scratch, as fine-tuned, rate 0.03"] == tuned
    scratch = rows["56 x 56", "from scratch"]
    assert (scratch.optimizer, scratch.lr) == ("adamw", options.train.lr)
    assert scratch.max_steps == tuned.max_steps
    few = [row for (group, _), row in rows.items() if "labels" in group]
    assert {row.max_steps for row in few} == {options.label_steps}
    assert [row.optimizer for row in few] == ["adamw"] * 2 + ["sgd"] + ["adamw"] * 4 + ["sgd"]
    assert few[0] == few[1]  # by one recipe, but for the weights they begin with
    masked = rows["masked patches", "mean colour"]
    assert (masked.max_steps, masked.lr) == (options.masked_steps, options.masked_lr)


def test_masked_rows_have_their_target_and_patches_of_four_pixels():
    rows = finetune_rows(smoke(), drawn(0), drawn(1), None)
    tasks = [row.build() for row in rows]
    masked = [task for task in tasks if isinstance(task, MaskedPatchTask)]
    assert [task.model.target for task in masked] == ["mean-colour", "small-patch", "pixels"]
    assert all(task.model.backbone.grid == (7, 7) for task in masked)
    assert [task.model.grid for task in tasks[9:]] == [(7, 7)] * 8
    assert all(np.array_equal(task._batches.mean, [0.5]) for task in tasks)


def test_larger_images_by_hand():
    small = drawn(side=2)
    image = np.array([[0, 100], [40, 60]], np.uint8)
    small = dataclasses.replace(small, train=np.tile(image[None, ..., None], (3, 1, 1, 1)),
                                train_labels=np.zeros(3, np.uint8))  # fmt: skip
    found = enlarged(small, 2)
    assert found.train.shape == (3, 4, 4, 1)
    assert found.test.shape == (20, 4, 4, 1)
    # Between two pixels 3 : 1 and 1 : 3, outside of them level.
    np.testing.assert_array_equal(found.train[2, 0, :, 0], [0, 25, 75, 100])
    np.testing.assert_array_equal(found.train[2, :, 0, 0], [0, 10, 30, 40])


def test_a_share_of_the_labels_is_the_same_of_each_class():
    images = drawn()
    few = some_labels(images, 0.1)
    assert list(np.bincount(few.train_labels)) == [2] * 10
    assert len(some_labels(images, 0.001).train) == 10
    assert len(some_labels(images, 0.99).train) == 200
    np.testing.assert_array_equal(few.train, some_labels(images, 0.1).train)
    assert few.test is images.test
    assert few.source == "images of noise 0; 20 of the labels"


def test_gains_by_hand():
    rows = [
        {"group": "a", "label": "from scratch", "test_accuracy": 0.5},
        {"group": "a", "label": "from scratch, otherwise", "test_accuracy": 0.6},
        {"group": "a", "label": "tuned", "test_accuracy": 0.52},
        {"group": "a", "label": "bad", "failed": "the loss is nan"},
        {"group": "b", "label": "tuned", "test_accuracy": 0.52},
    ]
    assert gain_notes(rows) == ["a, against training from scratch: tuned +2.0 points."]


def test_data_sets_of_other_shapes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(vit_finetune_run, "load_images", lambda *_, **__: drawn(side=14))
    with pytest.raises(
        ValueError, match=r"finetune_data must have images of the shape \(28, 28, 1"
    ):
        run(tmp_path / "run")


def test_an_estimate_needs_no_data(tmp_path, few_rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vit_rows, "load_images", None)
    monkeypatch.setattr(vit_finetune_run, "load_images", None)
    cost = EXPERIMENT.estimate(smoke())
    assert (cost["rows"], cost["steps"]) == (5, 10)
    assert min(cost[key] for key in ("flops", "parameters", "minutes", "memory_gb")) > 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["smoke", "laptop", "long", "paper"])
def test_presets_fit(scale):
    options = EXPERIMENT.preset(scale, "linear")
    assert (options.mixer, options.enlarge) == ("all", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enlarge": 1}, "enlarge must be at least 2, got 1"),
        ({"finetune_steps": 0}, "finetune_steps must be at least 1, got 0"),
        ({"label_steps": 0}, "label_steps must be at least 1, got 0"),
        ({"masked_steps": 0}, "masked_steps must be at least 1, got 0"),
        ({"finetune_warmup": -1}, "finetune_warmup must be at least 0, got -1"),
        ({"finetune_warmup": 2}, "must be above the longest warm-up .2., got 2"),
        ({"finetune_lr": 0.0}, "finetune_lr must be above 0, got 0"),
        ({"second_lr": -1.0}, "second_lr must be above 0, got -1"),
        ({"masked_lr": 0.0}, "masked_lr must be above 0, got 0"),
        ({"masked_patch_size": 7}, "masked_patch_size must be a multiple of 4, got 7"),
        ({"large_share": 1.0}, "large_share must be at least 0 and below 1, got 1"),
        ({"small_share": 0.1}, "small_share must be above 0 and below large_share = 0.1, got 0.1"),
        ({"small_share": 0.0}, "small_share must be above 0 and below large_share = 0.1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        smoke(**change)
