"""vit-fashion, its rows with every mixer, and its model in the package."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from subquad.cli import main
from subquad.experiments import vit_rows
from subquad.experiments.packaging import package_run
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.experiments.vit_fashion import MODELS
from subquad.experiments.vit_fashion_mixers_run import mixer_rows
from subquad.experiments.vit_fashion_run import confusion, fashion_task
from subquad.experiments.vit_options import ViTOptions
from subquad.experiments.vit_rows import (
    black_pictures,
    grid_of,
    image_job,
    mixer_settings,
    pictures,
    suited_mixer,
)
from subquad.layers import MIXERS
from subquad.tasks.classifier import load_classifier

FASHION, ROWS = EXPERIMENTS["vit-fashion"], EXPERIMENTS["vit-fashion-mixers"]


def smoke(experiment=FASHION, **changes):
    return dataclasses.replace(experiment.preset("smoke", "linear"), device="cpu", **changes)


def run(experiment, folder, **changes):
    command = ["subquad", "run", "x"]
    options = smoke(experiment, **changes)
    return run_experiment(experiment, options, folder, command=command, say=str)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit_rows, "training_peak", lambda job: 12_345)
        patch.setattr(vit_rows, "INFERENCE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("vit-fashion") / "run"
    return folder, run(FASHION, folder)


def test_the_smoke_scale_leaves_a_classifier_and_a_report(finished):
    folder, results = finished
    assert results["steps"] == 4
    assert results["peak_bytes"] == 12_345
    assert results["inference_images_per_second"] > 0
    assert np.array(results["confusion"]).sum() == results["test_images"] == 500
    assert 500 * results["test_accuracy"] == pytest.approx(np.trace(results["confusion"]))
    page = (folder / "report.html").read_text()
    for words in ("share right", "Table 5", "77.91", "peak memory of a training step, bytes"):
        assert words in page
    assert "copied symbols" not in page
    assert str(folder) not in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert run(FASHION, folder) == results  # nothing is trained again


def test_the_model_is_a_classifier_that_says_what_was_tested(finished):
    folder, results = finished
    classifier = load_classifier(folder / "model")
    assert classifier.labels.classes == tuple("0123456789")
    images = pictures(smoke())
    found = classifier.probabilities(images.test).argmax(1).numpy()
    right = float((found == images.test_labels).mean())
    assert right == pytest.approx(results["test_accuracy"], abs=0.004)  # layouts round otherwise


def test_it_can_be_packaged_and_its_card_says_what_it_knows(finished, tmp_path):
    folder, results = finished
    where = package_run(folder, "vit-x", packaged=tmp_path / "checkpoints")
    assert load_classifier(where).labels.classes == tuple("0123456789")
    card = (where / "README.md").read_text()
    for words in (
        f"| share of test images right | {results['test_accuracy']:.2%} |",
        "It takes images of 14 x 14 pixels, 1 channel, and gives each one of these classes",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9.",
        "| stem | conv |",
    ):
        assert words in card
    assert "draws images" not in card
    assert "None |" not in card.split("argument of the model")[0]


def test_the_packaged_model_stays_below_6_megabytes():
    options = FASHION.preset("laptop", "softmax")
    task = fashion_task(options, black_pictures(options))
    assert sum(p.nbytes for p in task.model.parameters()) < 5_500_000


def test_confusion_counts_what_was_taken_for_what():
    options = smoke()
    images = pictures(options)
    images = dataclasses.replace(images, test=images.test[:7], test_labels=images.test_labels[:7])
    task = fashion_task(options, images)
    with torch.no_grad():
        task.model.head.bias.copy_(10.0 * (torch.arange(10) == 3))
    counts = confusion(task, images, 10, batch_size=3)
    expected = np.zeros((10, 10), int)
    expected[:, 3] = np.bincount(images.test_labels, minlength=10)
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("scale", ["smoke", "laptop", "long", "paper"])
def test_every_scale_builds_and_an_estimate_needs_no_data(scale, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vit_rows, "load_images", None)
    options = FASHION.preset(scale, "softmax")
    with torch.device("meta"):
        images = black_pictures(smoke() if scale == "smoke" else FASHION.preset("laptop", "linear"))
        model = vit_rows.vision_transformer(options.model, images, "softmax", seed=0)
    assert model.grid == ((14, 14) if scale == "paper" else (7, 7))
    if scale == "smoke":
        cost = FASHION.estimate(options)
        assert min(cost[key] for key in ("flops", "parameters", "minutes", "memory_gb")) > 0


def test_every_mixer_has_a_row_and_can_be_trained():
    options = smoke(ROWS)
    images = pictures(options)
    rows = mixer_rows(options, images)
    assert [row.label for row in rows] == [*options.mixers.split(","), "ResNet"]
    assert {row.label for row in rows} >= {*MIXERS} - {"lsh-8"}
    for row in rows:
        task = row.build()
        task.model.train()
        task.loss(*task.batch(0)).backward()
        for name, p in task.model.named_parameters():
            assert p.grad is None or torch.isfinite(p.grad).all(), (row.name, name)


def test_rows_are_run_and_shown_together(tmp_path):
    folder = tmp_path / "run"
    results = run(ROWS, folder, mixers="linear,local")
    assert [row["row"] for row in results["rows"]] == [
        "mixers-linear", "mixers-local", "mixers-ResNet",
    ]  # fmt: skip
    for row in results["rows"]:
        assert row["peak_bytes"] == 12_345
        assert row["seconds_per_step"] > 0
        assert json.loads((folder / row["row"] / "results.json").read_text())["test"] == row["test"]
    page = (folder / "report.html").read_text()
    for words in ("one seed", "Table 5", "peak memory, bytes", "classified a second"):
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])


def test_rows_without_the_resnet_and_an_estimate():
    options = smoke(ROWS, mixers="linear", resnet_width=0)
    assert len(mixer_rows(options, black_pictures(options))) == 1
    cost = ROWS.estimate(options)
    assert (cost["rows"], cost["steps"]) == (1, 4)


def test_windows_reach_the_patches_above_and_below():
    grid = (3, 5)
    weights = torch.zeros(15, 15)
    reach = mixer_settings("local", grid)["window"]
    for i in range(15):
        for j in range(15):
            weights[i, j] = abs(i - j) < reach  # what a window of that width sees
    middle = 7  # second row, third patch
    assert weights[middle, [1, 2, 3, 6, 7, 8, 11, 12, 13]].all()
    assert not weights[middle, 0]
    assert suited_mixer("linear", grid) == "linear"
    assert suited_mixer("local", grid).keywords == {"window": 7}


def test_the_job_that_measures_memory_builds_the_rows_own_model():
    options = smoke(ROWS)
    images = black_pictures(options)
    from subquad.bench.image_job import build
    from subquad.experiments.options import train_config

    for name in ("linear", "local", "linformer"):
        row = next(r for r in mixer_rows(options, images) if r.label == name)
        model = row.build().model
        settings = mixer_settings(name, (7, 7))
        job = image_job(
            model, (2, 1, 14, 14), train_config(options), mixer=name, mixer_settings=settings
        )
        json.dumps(dataclasses.asdict(job))
        again = build(job)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


@pytest.mark.parametrize(
    ("experiment", "change", "message"),
    [
        (FASHION, {"shift": -1}, "shift must be at least 0, got -1"),
        (
            FASHION,
            {"label_smoothing": 1.0},
            "label_smoothing must be at least 0 and below 1, got 1",
        ),
        (ROWS, {"mixers": ""}, "mixers must be at least one, none twice, got ''"),
        (ROWS, {"mixers": "linear,linear"}, "mixers must be at least one, none twice, got"),
        (ROWS, {"mixers": "lsh-2"}, "mixers must be among .*linformer, got 'lsh-2'"),
        (ROWS, {"resnet_width": -1}, "resnet_width must be at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(experiment, change, message):
    with pytest.raises(ValueError, match=message):
        smoke(experiment, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide d_model \(128\), got 3"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1"),
        ({"dropout": -0.5}, "dropout must be at least 0 and below 1, got -0.5"),
    ],
)
def test_models_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODELS["laptop"], **change)


def test_patches_that_do_not_fit_are_refused():
    images = black_pictures(smoke())
    sizes = ViTOptions(patch_size=4, num_layers=1, num_heads=1, d_model=8)
    with pytest.raises(
        ValueError, match="patch_size must divide the images' sides, 14 x 14, got 4"
    ):
        grid_of(sizes, images)


def test_predict_takes_the_runs_folder(finished, tmp_path, capsys):
    folder, _ = finished
    image = pictures(smoke()).test[0]
    path = tmp_path / "digit.png"
    Image.fromarray(image[..., 0]).save(path)
    assert main(["predict", str(folder), str(path), "--top", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    (best,) = found["classes"]
    expected = load_classifier(folder / "model").probabilities(image[None])[0]
    assert best["class"] == str(int(expected.argmax()))
    assert best["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
