import json

import pytest

from subquad.cli import main
from subquad.experiments import packaging
from subquad.experiments.packaging import package_run

RESULTS = {
    "experiment": "mnist-pixels",
    "mixer": "linear",
    "scale": "laptop",
    "seed": 7,
    "unit": "bits/dim",
    "test": 0.98765,
    "test_images": 10_000,
    "parameters": 812_345,
    "steps": 6_543,
    "images_seen": 52_344,
    "epochs": 0.8724,
    "minutes": 15.02,
    "data": "MNIST, 60,000 training and 10,000 test images, from idx files",
    "image_shape": [28, 28, 1],
    "model": {"d_model": 128, "num_classes": None},
    "hardware": "A processor (2 threads)",
}
CONFIG = {"experiment": "mnist-pixels", "options": {"data": "mnist", "train": {"lr": 0.004}}}
ENVIRONMENT = {
    "command": "subquad run mnist-pixels --seed 7",
    "date": "2026-01-02T03:04+00:00",
    "commit": "abc123",
    "subquad": "0.1.0",
    "packages": {"torch": "2.13.0"},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "config.json").write_text("{}")
    for name, content in (
        ("results", RESULTS),
        ("config", CONFIG),
        ("environment", ENVIRONMENT),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_model_is_copied_and_its_card_says_what_was_measured(tmp_path, run):
    folder = package_run(run, "mnist-linear", packaged=tmp_path / "checkpoints")
    assert folder == tmp_path / "checkpoints" / "mnist-linear"
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "config.json").read_text() == "{}"
    card = (folder / "README.md").read_text()
    for line in (
        "| parameters | 812,345 |",
        "| test bits/dim | 0.988 |",
        "| images seen | 52,344 |",
        "| passes over the training images | 0.872 |",
        "| hardware | A processor (2 threads) |",
        "| lr | 0.004 |",
        "| d_model | 128 |",
        "    subquad run mnist-pixels --seed 7",
        "commit abc123",
        "CC BY-SA 3.0",
        "Not the paper's recipe",
        "28 x 28 pixels, 1 channel,",
    ):
        assert line in card
    assert "None" not in card


def test_a_later_run_takes_the_place_of_an_earlier_one(tmp_path, run):
    package_run(run, "x", packaged=tmp_path / "checkpoints")
    (run / "model" / "model.safetensors").write_bytes(b"better")
    folder = package_run(run, "x", packaged=tmp_path / "checkpoints")
    assert (folder / "model.safetensors").read_bytes() == b"better"


@pytest.mark.parametrize("name", ["", "../x", "A", "x y", "-x"])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path, run, name):
    with pytest.raises(ValueError, match="name must be small letters, digits and hyphens, got"):
        package_run(run, name, packaged=tmp_path / "checkpoints")


def test_a_large_file_is_refused_and_nothing_is_written(tmp_path, run, monkeypatch):
    monkeypatch.setattr(packaging, "LARGEST", 6)
    with pytest.raises(ValueError, match=r"model\.safetensors must be at most 6 bytes .* got 7"):
        package_run(run, "x", packaged=tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("missing", ["results.json", "model/model.safetensors"])
def test_an_unfinished_run_is_refused(tmp_path, run, missing):
    (run / missing).unlink()
    with pytest.raises(FileNotFoundError, match=r"is missing|holds no model\.safetensors"):
        package_run(run, "x", packaged=tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


def test_the_command_packages(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packaging, "PACKAGED", tmp_path / "checkpoints")
    assert main(["package", str(run), "mnist-linear"]) == 0
    assert "mnist-linear" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "mnist-linear" / "README.md").is_file()
    assert main(["package", str(tmp_path / "no"), "x"]) == 2
    assert "RUN must be the folder of a finished run, got" in capsys.readouterr().err
    assert main(["package", "x"]) == 2
    assert "package takes a run's folder and a name, got 'x'" in capsys.readouterr().err


def test_a_model_of_other_files_leaves_none_of_them_behind(tmp_path, run):
    labels = run / "model" / "labels.json"
    labels.write_text("{}")
    folder = package_run(run, "x", packaged=tmp_path / "checkpoints")
    assert (folder / "labels.json").is_file()
    labels.unlink()
    package_run(run, "x", packaged=tmp_path / "checkpoints")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors",
    }  # fmt: skip


def test_a_run_that_trains_no_single_model_is_refused(tmp_path, run):
    (run / "results.json").write_text(json.dumps({"experiment": "lambda-compare", "rows": []}))
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model holds no model\.safetensors"):
        package_run(run, "x", packaged=tmp_path / "checkpoints")


OF_A_FOLDER = {
    "experiment": "train-images",
    "model": "small-vit",
    "recipe": "small",
    "recipe_source": "this library's",
    "data": "images of 2 classes: 90 to train on, 10 to test (those of val/)",
    "left_out": ["x.png cannot be read as a picture: is empty"],
    "classes": ["cat", "dog"],
    "image_shape": [32, 32, 3],
    "network": {"d_model": 64},
    "test_accuracy": 0.875,
    "unit": "nats",
}
SETTINGS = {
    "experiment": "train-images",
    "options": {"folder": "photos", "lr": None},
    "training": {"lr": 0.002},
}


def test_the_card_of_a_folder_s_classifier_says_what_it_tells(run):
    results = {k: v for k, v in RESULTS.items() if k not in ("scale", "mixer")} | OF_A_FOLDER
    card = packaging.model_card("pets", results, SETTINGS, ENVIRONMENT)
    for line in (
        "| trained by | train-images, recipe small (this library's) |",
        "| network | small-vit |",
        "| files left out | 1 |",
        "| share of test images right | 87.50% |",
        "| lr | 0.002 |",
        "| d_model | 64 |",
        "The images are those of a folder, which says nothing of their terms.",
        "resized to 32 x 32 pixels in 3 channels; it gives each one of these classes, whatever it "
        "shows: cat, dog.",
    ):
        assert line in card
    assert "None" not in card
    assert "draws" not in card
