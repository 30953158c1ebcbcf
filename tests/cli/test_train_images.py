"""Train on drawn folders and tell images again, as a user would, in this process."""

import contextlib
import csv
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from subquad.cli import main
from subquad.experiments import checkpoints, packaging, predicting
from subquad.experiments.image_training_run import tenths
from subquad.tasks import training
from subquad.tasks.checkpoint import read_checkpoint
from subquad.tasks.classifier import load_classifier

Image = pytest.importorskip("PIL.Image")

CLASSES = ("bars", "dots", "grey", "left", "right", "white")
SHORT = ("--image-size", "16", "--batch-size", "6", "--max-steps", "5", "--warmup-steps", "1")
SHORT += ("--eval-every", "3", "--log-every", "1", "--device", "cpu")
NO_TEXT = os.fsdecode(b"\xff.png")  # as an archive of other days may leave it


def draw(path, label, rng):
    image = np.full((20, 26, 3), 230, np.uint8)
    colour = rng.integers(0, 120, 3)
    kind = CLASSES[label]
    if kind == "bars":
        image[:, ::4] = colour
    elif kind == "dots":
        image[::4, ::4] = colour
    elif kind == "grey":
        image[:] = colour
    elif kind in ("left", "right"):
        image[:, :13] = colour
        image = image if kind == "left" else image[:, ::-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for i in range(6):
            draw(root / "train" / name / f"{i}.png", label, rng)
        for i in range(2):
            draw(root / "val" / name / f"{i}.jpg", label, rng)
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train-images", str(folder), "--out", str(where), *SHORT]) == 0
    return where


def results(where):
    return json.loads((where / "results.json").read_text())


def test_a_run_leaves_what_other_runs_leave(run, folder):
    found = results(run)
    assert found["classes"] == list(CLASSES)
    assert (found["train_images"], found["test_images"], found["steps"]) == (36, 12, 5)
    assert found["test_accuracy_top5"] >= found["test_accuracy"]
    assert found["data"] == "images of 6 classes: 36 to train on, 12 to test (those of val/)"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json", "environment.json", "metrics.csv", "checkpoint.safetensors", "model",
        "figures", "results.json", "report.html",
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["folder"] == str(folder)
    assert config["training"]["optimizer"] == "adamw"
    assert config["classifier"] == json.loads((run / "model" / "labels.json").read_text())
    assert config["classifier"]["classes"] == list(CLASSES)
    report = (run / "report.html").read_text()
    assert "Class by class" in report
    assert "data:image/png" in report
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"test_accuracy", "test_accuracy_top5"} <= set(rows[0])


def test_the_same_command_again_reads_the_results(run, folder, capsys, monkeypatch):
    monkeypatch.setattr("subquad.experiments.image_training_run.fit", None)
    assert main(["train-images", str(folder), "--out", str(run), *SHORT]) == 0
    assert f"{results(run)['test_accuracy']:.1%} of 12 test images told" in capsys.readouterr().out
    assert main(["train-images", str(folder), "--out", str(run), *SHORT, "--seed", "1"]) == 1
    assert "holds a run with --seed 0, not 1" in capsys.readouterr().err


def told(where, folder, *options, capsys):
    """Return the classes that predict names for all test images, and the right ones."""
    files = sorted((folder / "val").rglob("*.jpg"))
    capsys.readouterr()
    assert main(["predict", str(where), *map(str, files), "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [str(file) for file in files]
    return found, [file.parent.name for file in files]


def test_predict_sees_images_as_the_training_did(run, folder, capsys):
    found, right = told(run, folder, "--top", "6", capsys=capsys)
    guesses = [entry["classes"][0]["class"] for entry in found]
    share = np.mean([a == b for a, b in zip(guesses, right, strict=True)])
    assert share == pytest.approx(results(run)["test_accuracy"])
    nats = 0.0
    for entry, name in zip(found, right, strict=True):
        shares = {c["class"]: c["probability"] for c in entry["classes"]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        nats -= math.log(shares[name]) / len(found)
    assert nats == pytest.approx(results(run)["test"], rel=1e-4)


def test_a_run_is_packaged_and_found_by_its_name(run, folder, tmp_path, capsys, monkeypatch):
    for module in (checkpoints, packaging):
        monkeypatch.setattr(module, "PACKAGED", tmp_path)
    assert main(["package", str(run), "shapes"]) == 0
    found, _ = told("shapes", folder, capsys=capsys)
    assert found == told(run, folder, capsys=capsys)[0]
    card = (tmp_path / "shapes" / "README.md").read_text()
    assert f"shows: {', '.join(CLASSES)}." in card


@pytest.mark.slow
def test_crops_averages_and_rand_augment_and_predict_takes_the_middle(folder, tmp_path, capsys):
    pytest.importorskip("kornia")
    words = ["--model", "small-lambda", "--recipe", "lambda-350", *SHORT, "--ema-decay", "0.5"]
    words += ["--rand-augment", "9", "--channels-last", "--checkpointing", "--lr", "0.02"]
    assert main(["train-images", str(folder), "--out", str(tmp_path / "x"), *words]) == 0
    found, right = told(tmp_path / "x", folder, "--top", "6", capsys=capsys)
    nats = 0.0
    for entry, name in zip(found, right, strict=True):
        shares = {c["class"]: c["probability"] for c in entry["classes"]}
        nats -= math.log(shares[name]) / len(found)
    assert nats == pytest.approx(results(tmp_path / "x")["test"], rel=1e-3)
    labels = load_classifier(tmp_path / "x" / "model").labels
    assert (labels.image_size, labels.resize, labels.fit) == ((16, 16), 18, "resize")
    tensors = read_checkpoint(tmp_path / "x" / "checkpoint.safetensors").tensors
    kept = load_classifier(tmp_path / "x" / "model").model.state_dict()
    assert_close(kept, {k: tensors[f"average.{k}"] for k in kept}, rtol=0, atol=0)


def test_a_stopped_run_goes_on_to_the_same_weights(run, folder, tmp_path, capsys, monkeypatch):
    @contextlib.contextmanager
    def stop_after_two():
        answers = iter([False, False, True])
        yield lambda: next(answers)

    monkeypatch.setattr(training, "stop_on_interrupt", stop_after_two)
    words = ["train-images", str(folder), "--out", str(tmp_path / "x"), *SHORT]
    assert main(words) == 130
    assert not (tmp_path / "x" / "results.json").exists()
    monkeypatch.undo()
    assert main(words) == 0
    ours, theirs = (
        read_checkpoint(where / "checkpoint.safetensors").tensors for where in (tmp_path / "x", run)
    )
    assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_fine_tuning_begins_with_equal_shares_and_more_pixels(run, folder, tmp_path):
    words = ["--recipe", "vit-finetune", "--start-from", str(run), "--image-size", "32"]
    words += ["--batch-size", "6", "--max-steps", "2", "--warmup-steps", "1", "--device", "cpu"]
    assert main(["train-images", str(folder), "--out", str(tmp_path / "x"), *words]) == 0
    with (tmp_path / "x" / "metrics.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["test"]) == pytest.approx(math.log(6), abs=1e-6)
    found = load_classifier(tmp_path / "x" / "model")
    assert found.labels.mean == (0.5, 0.5, 0.5)
    assert found.model.config["image_size"] == 32


def test_unreadable_files_stop_it_or_are_named_and_left_out(folder, tmp_path, capsys):
    bad = tmp_path / "images"
    shutil.copytree(folder, bad)
    (bad / "train" / "dots" / "0.png").write_bytes(b"")
    (bad / "train" / "dots" / "1.png").write_bytes(b"x")
    (bad / "train" / "dots" / NO_TEXT).write_bytes(b"")
    (bad / "train" / "dots" / f"{NO_TEXT}.txt").write_bytes(b"")
    out = ["--out", str(tmp_path / "x"), *SHORT, "--max-steps", "2"]
    assert main(["train-images", str(bad), *out]) == 1
    error = capsys.readouterr().err
    assert "dots/0.png cannot be read as a picture: is empty (and 2 more)" in error
    assert main(["train-images", str(bad), *out, "--unreadable", "skip"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out: ") == 3
    assert r"dots/\udcff.png cannot be read as a picture" in shown
    assert r"1 files are no images by their names: \udcff.png.txt" in shown
    assert len(results(tmp_path / "x")["left_out"]) == 3


def test_the_reading_of_many_images_is_told_by_tenths():
    told = []
    progress = tenths(told.append)
    for done in range(100, 3001, 100):
        progress(done, 3000)
    assert told == [f"read {done:,} of 3,000" for done in range(300, 3001, 300)]
    few = []
    tenths(few.append)(99, 99)
    assert few == []


def test_an_estimate_reads_no_image_and_writes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subquad.experiments.image_training_run.read_folder", None)
    words = [*SHORT, "--model", "small-resnet", "--estimate"]
    assert main(["train-images", str(folder), *words]) == 0
    assert "Estimate; nothing was started" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "FOLDER is missing"),
        (["nowhere"], 2, "FOLDER must be a folder of images, got nowhere"),
        (["FOLDER", "--recipe", "smal"], 2, "unknown recipe 'smal'; did you mean small?"),
        (["FOLDER", "--recipe", "vit-finetune"], 2, "--recipe vit-finetune needs --start-from"),
        (["FOLDER", "--epochs", "1", "--minutes", "1"], 2, "only one of --epochs, --max-steps"),
        (["FOLDER", "--unreadable", "ignore"], 2, "--unreadable must be one of refuse, skip"),
        (["FOLDER", "--model", "small-vti"], 1, "model must be one of small-vit, small-resnet"),
        (["FOLDER", "--image-size", "33"], 1, "image_size must be even and at least 16"),
        (["FOLDER", "--memory-gb", "1e-6"], 1, "memory_gb must be at least 0.00059 for 48 images"),
        (["FOLDER", "--channels", "1", "--normalization", "imagenet"], 1, "needs C = 3, got C = 1"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, code, sentence, folder, tmp_path, capsys, unhooked):
    words = [str(folder) if word == "FOLDER" else word for word in words]
    out = [] if not words else ["--out", str(tmp_path / "x")]
    assert main(["train-images", *words, *out]) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    if "memory" not in sentence:
        assert not (tmp_path / "x").exists()


def test_help_says_what_the_recipe_has(capsys):
    assert main(["train-images", "--help", "--recipe", "lambda-90"]) == 0
    assert "averaged with 0.9999" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_predict_prints_a_table(run, folder, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    files = [str(folder / "val" / name / "0.jpg") for name in ("dots", "grey")]
    assert main(["predict", str(run), *files, "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("%") == 4
    assert "probability" in shown
    shutil.copy(files[0], tmp_path / NO_TEXT)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), NO_TEXT, "--top", "1"]) == 0
    assert r"\udcff.png" in capsys.readouterr().out


def test_predict_refuses_before_it_tells_anything(run, folder, tmp_path, capsys, monkeypatch):
    good = folder / "val" / "dots" / "0.jpg"
    cut, text = tmp_path / "cut.jpg", tmp_path / "x.png"
    cut.write_bytes(good.read_bytes()[:300])
    text.write_text("no picture")
    capsys.readouterr()
    monkeypatch.setattr(predicting, "predict", None)
    assert main(["predict", str(run), str(good), str(cut), str(text), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, ("cut.jpg", "x.png", tmp_path.name), strict=True):
        assert f"{name} cannot be read as a picture: " in line


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "MODEL is missing"),
        (["RUN"], 2, "IMAGE is missing: predict takes a model and one image or more"),
        (["RUN", "GOOD", "--top", "0"], 2, "top must be at least 1, got 0"),
        (["RUN", "GOOD", "--top", "7"], 1, "top must be from 1 to the model's 6 classes, got 7"),
        (["RUN", "GOOD", "--topp", "7"], 2, "unknown option --topp; did you mean --top?"),
        (["mnist-liner", "GOOD"], 1, "neither the folder of a run nor a packaged model"),
        (["mnist-linear", "GOOD"], 1, "must hold labels.json, found none"),
        (["RUN", "gone.png"], 1, "gone.png cannot be read as a picture: is missing or no file"),
    ],
)
def test_mistakes_of_predict_are_told_in_a_sentence(
    words, code, sentence, run, folder, capsys, unhooked
):
    places = {"RUN": str(run), "GOOD": str(folder / "val" / "dots" / "0.jpg")}
    capsys.readouterr()
    assert main(["predict", *(places.get(word, word) for word in words)]) == code
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""


def test_help_of_both_loads_no_torch():
    import subprocess
    import sys

    for command in ("train-images", "predict"):
        code = f"""
import sys
from subquad.cli import main
assert main(["{command}", "--help"]) == 0
assert not {{"torch", "lightning_fabric", "kornia", "torchmetrics"}} & set(sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


def test_the_random_state_of_a_reader_does_not_matter(run, folder):
    found = load_classifier(run / "model")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    labels = found.labels
    images = predicting.read_for(labels, [folder / "val" / "dots" / "0.jpg"])
    predicting.predict(found, images, top=1)
    assert torch.equal(torch.get_rng_state(), before)
