"""The smoke scale of each experiment, in this process, and what a run leaves in its folder."""

import dataclasses
import json
import re

import numpy as np
import pytest

from subquad.data.images import ImageSet
from subquad.experiments import copy_run, pixel_run, sampling
from subquad.experiments.checkpoints import find_model, image_shape
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import export_results, run_experiment

COMMAND = ["subquad", "run", "x"]


@pytest.fixture(autouse=True)
def eight_images(monkeypatch):
    """Take the place of the embedded digits, whose table takes half a second to read."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(8, dtype=np.uint8)
    found = ImageSet(
        train=images,
        train_labels=labels,
        test=images,
        test_labels=labels,
        source="eight images of noise",
    )
    monkeypatch.setattr(pixel_run, "load_images", lambda *_, **__: found)
    monkeypatch.setattr(sampling, "load_images", lambda *_, **__: found)


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch):
    monkeypatch.setattr("subquad.tasks.marked_tokens.FULL_BATCHES", 1)


def smoke(name, mixer="linear", **changes):
    options = EXPERIMENTS[name].preset("smoke", mixer)
    train = dataclasses.replace(options.train, max_steps=3, eval_every=2, log_every=1)
    return dataclasses.replace(options, train=train, **changes)


def run(name, folder, mixer="linear", **changes):
    options = smoke(name, mixer, **changes)
    return run_experiment(EXPERIMENTS[name], options, folder, command=COMMAND, say=str)


@pytest.mark.parametrize(
    ("name", "mixer", "unit"),
    [
        ("mnist-pixels", "linear", "bits/dim"),
        ("mnist-pixels", "softmax", "bits/dim"),
        ("cifar10-pixels", "linear", "bits/dim"),
        ("copy-task", "softmax", "nats/token"),
    ],
)
def test_the_smoke_scale_runs_and_leaves_a_whole_folder(tmp_path, name, mixer, unit):
    results = run(name, tmp_path / "run", mixer)
    assert results["unit"] == unit
    assert 0 < results["test"] < 100
    assert (results["steps"], results["mixer"], results["scale"]) == (3, mixer, "smoke")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    for file in ("environment.json", "metrics.csv", "checkpoint.safetensors"):
        assert (tmp_path / "run" / file).is_file()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["experiment"], config["options"]["mixer"]) == (name, mixer)
    assert config["training"]["max_steps"] == 3
    assert all((tmp_path / "run" / file).is_file() for file in results["figures"])


def test_the_report_needs_no_other_file_and_stands_beside_the_paper(tmp_path):
    run("mnist-pixels", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    for words in ("Table 1, MNIST", "Table 4, MNIST", "Table 5, MNIST", "0.644", "142.8", "72.6"):
        assert words in page
    assert "linear, this run" in page
    assert "24 images seen" in page  # 3 steps of 8
    assert "subquad run x" in page
    assert str(tmp_path) not in page


def test_the_report_on_copying_says_what_differs_from_the_paper(tmp_path):
    run("copy-task", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Figure 2 is a plot without numbers" in page
    assert "Here: 10 symbols, sequences of 32, 2 layers of width 32" in page
    assert "linear: 3 updates, 12 sequences" in page


def test_the_figures_of_a_run_are_of_that_run(tmp_path):
    results = run("mnist-pixels", tmp_path / "run")
    assert results["generation"].keys() == {"1", "4"}
    assert results["image_shape"] == [4, 4, 1]
    assert results["images_seen"] == 24
    assert results["epochs"] == 3.0
    assert results["state_bytes_per_image"] == 2 * 2 * (16 * 16 + 16) * 4
    softmax = run("mnist-pixels", tmp_path / "other", "softmax")
    assert softmax["state_bytes_per_image"] == 2 * 2 * 32 * 16 * 4


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    first = run("copy-task", tmp_path / "run")
    monkeypatch.setattr(copy_run, "fit", None)
    assert run("copy-task", tmp_path / "run") == first


def test_a_setting_out_of_range_leaves_no_folder(tmp_path):
    options = smoke("copy-task")
    options = dataclasses.replace(options, train=dataclasses.replace(options.train, lr=-1.0))
    with pytest.raises(ValueError, match="lr must be a finite number above 0, got -1"):
        run_experiment(
            EXPERIMENTS["copy-task"], options, tmp_path / "run", command=COMMAND, say=str
        )
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = run("copy-task", tmp_path / "whole")
    real = copy_run.fit
    monkeypatch.setattr(
        copy_run,
        "fit",
        lambda *a, **k: dataclasses.replace(real(*a, **k), interrupted=True),
    )
    with pytest.raises(KeyboardInterrupt):
        run("copy-task", tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(copy_run, "fit", real)
    resumed = run("copy-task", tmp_path / "run")
    assert resumed["test"] == whole["test"]


def test_results_are_exported_with_environment_and_without_folders(tmp_path):
    results = run("mnist-pixels", tmp_path / "run", data_folder=tmp_path / "digits")
    export_results(tmp_path / "run", tmp_path / "results" / "mnist.json")
    exported = json.loads((tmp_path / "results" / "mnist.json").read_text())
    assert exported["results"] == results
    assert exported["environment"]["command"] == "subquad run x"
    assert exported["options"]["data_folder"] == "digits"
    assert str(tmp_path) not in json.dumps(exported)
    figures = sorted((tmp_path / "results" / "mnist").iterdir())
    assert [path.name for path in figures] == ["completions.png", "curve.png", "samples.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert sum(path.stat().st_size for path in figures) < 200_000
    with pytest.raises(ValueError, match=r"path must name a .json file, got \S*mnist$"):
        export_results(tmp_path / "run", tmp_path / "results" / "mnist")


def test_a_class_conditional_model_draws_the_class_asked_for(tmp_path):
    run("mnist-pixels", tmp_path / "run", class_conditional=True)
    model = sampling.load_pixel_model(find_model(str(tmp_path / "run")), "cpu")
    assert sampling.draw(model, 2, seed=0, label=3).shape == (2, 4, 4, 1)
    with pytest.raises(ValueError, match="label must lie from 0 to 9, got 10"):
        sampling.draw(model, 2, seed=0, label=10)


def test_a_completion_keeps_the_upper_half(tmp_path):
    run("mnist-pixels", tmp_path / "run")
    folder = find_model(str(tmp_path / "run"))
    model = sampling.load_pixel_model(folder, "cpu")
    images, labels, source = sampling.test_images(folder, model.seq_len)
    done = sampling.complete(model, images[:3], seed=1, labels=labels[:3])
    np.testing.assert_array_equal(done[:, :2], images[:3, :2])
    assert not (done[:, 2:] == images[:3, 2:]).all()
    assert source == "test images: eight images of noise"
    with pytest.raises(ValueError, match=r"label must be left out .* got 1"):
        sampling.draw(model, 1, seed=0, label=1)


def test_taking_the_embedded_digits_instead_of_mnist_is_said(tmp_path, monkeypatch):
    def only_embedded(data, folder, *, half_size):
        if data == "mnist":
            raise FileNotFoundError
        digits = np.zeros((1, 28, 28, 1), np.uint8)
        label = np.zeros(1, np.uint8)
        return ImageSet(
            train=digits, train_labels=label, test=digits, test_labels=label, source="a digit"
        )

    monkeypatch.setattr(sampling, "load_images", only_embedded)
    _, _, source = sampling.test_images(tmp_path / "model", 784)
    assert source == "test images: a digit (MNIST is not here; subquad data mnist brings it)"


def test_a_model_beside_another_programs_config_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "PixelModel"}')
    _, _, source = sampling.test_images(tmp_path / "model", 16)
    assert source == "test images: eight images of noise"


@pytest.mark.parametrize("name", ["mnist-pixels", "cifar10-pixels", "copy-task"])
def test_an_estimate_needs_no_data_and_starts_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pixel_run, "load_images", None)
    cost = EXPERIMENTS[name].estimate(smoke(name))
    assert cost["steps"] == 3
    assert cost["flops"] == 3 * cost["flops_per_step"] > 0
    assert min(cost[key] for key in ("parameters", "minutes", "memory_gb", "disk_gb")) > 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seq_len", "shape"), [(784, (28, 28, 1)), (196, (14, 14, 1)), (3072, (32, 32, 3))]
)
def test_the_shape_of_an_image_follows_from_its_bytes(seq_len, shape):
    assert image_shape(seq_len) == shape


def test_a_length_that_is_no_image_is_refused():
    with pytest.raises(ValueError, match="square image with 1 or 3 channels, got 5"):
        image_shape(5)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither the folder of a run nor a packaged"):
        find_model("no-such-model")
    with pytest.raises(FileNotFoundError, match="holds no trained model: is its run finished"):
        find_model(str(tmp_path))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="got cuda: torch sees no GPU"):
        sampling.pick_device("cuda")
