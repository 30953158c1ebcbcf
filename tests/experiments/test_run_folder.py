import dataclasses
import json

import pytest

from subquad.experiments.mnist_pixels import preset
from subquad.experiments.run_folder import default_folder, open_folder, read_json

OPTIONS = preset("smoke", "linear")


def begun(folder):
    open_folder(folder, "mnist-pixels", OPTIONS)
    (folder / "checkpoint.safetensors").touch()
    return folder


def test_a_run_without_a_folder_gets_one_named_after_it():
    assert str(default_folder("copy-task", "linear", "laptop", 0)) == "runs/copy-task-linear-laptop"
    assert default_folder("copy-task", "linear", "long", 3).name == "copy-task-linear-long-seed3"


def test_the_same_run_is_taken_up_again(tmp_path):
    folder = begun(tmp_path / "deep" / "run")
    assert open_folder(folder, "mnist-pixels", OPTIONS) is None


def test_a_finished_run_gives_its_results(tmp_path):
    folder = begun(tmp_path / "run")
    (folder / "results.json").write_text('{"test": 1.5}')
    assert open_folder(folder, "mnist-pixels", OPTIONS) == {"test": 1.5}


def test_how_often_to_look_may_change(tmp_path):
    folder = begun(tmp_path / "run")
    other = dataclasses.replace(OPTIONS, train=dataclasses.replace(OPTIONS.train, eval_every=1))
    assert open_folder(folder, "mnist-pixels", other) is None


def test_another_configuration_is_refused_by_its_name(tmp_path):
    folder = begun(tmp_path / "run")
    other = dataclasses.replace(OPTIONS, train=dataclasses.replace(OPTIONS.train, lr=1.0))
    with pytest.raises(ValueError, match=f"with --lr {OPTIONS.train.lr}, not 1.0; choose another"):
        open_folder(folder, "mnist-pixels", other)
    with pytest.raises(ValueError, match="holds a run of mnist-pixels, not of copy-task"):
        open_folder(folder, "copy-task", OPTIONS)


def test_a_run_that_failed_before_its_first_checkpoint_may_begin_otherwise(tmp_path):
    open_folder(tmp_path / "run", "mnist-pixels", OPTIONS)
    other = dataclasses.replace(OPTIONS, seed=5)
    assert open_folder(tmp_path / "run", "mnist-pixels", other) is None
    assert read_json(tmp_path / "run" / "config.json")["options"]["seed"] == 5


def test_a_finished_run_without_its_checkpoint_gives_its_results_to_no_other_options(tmp_path):
    folder = begun(tmp_path / "run")
    (folder / "results.json").write_text('{"test": 1.5}')
    (folder / "checkpoint.safetensors").unlink()
    other = dataclasses.replace(OPTIONS, seed=5)
    with pytest.raises(ValueError, match="with --seed 0, not 5; choose another"):
        open_folder(folder, "mnist-pixels", other)
    assert open_folder(folder, "mnist-pixels", OPTIONS) == {"test": 1.5}
    assert read_json(folder / "config.json")["options"]["seed"] == 0


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ('{"model": "PixelModel", "arguments": {}}', None),
        ('{"model": "PixelModel", "arguments": {}}', "model.safetensors"),
        ('{"model": "PixelModel", "arguments": {}}', "checkpoint.safetensors"),
        ('{"experiment": "mnist-pixels", "options": {}}', "model.safetensors"),
        ('{"experiment": "mnist-pixels", "options": {}}', "model"),
        ("{", None),
        ("[]", None),
    ],
)
def test_a_config_that_is_no_unfinished_runs_is_left_alone(tmp_path, config, beside):
    (tmp_path / "config.json").write_text(config)
    if beside == "model":
        (tmp_path / "model").mkdir()
    elif beside:
        (tmp_path / beside).touch()
    with pytest.raises(ValueError, match="must be empty or hold a run"):
        open_folder(tmp_path, "mnist-pixels", OPTIONS)
    assert (tmp_path / "config.json").read_text() == config


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="must be empty or hold a run"):
        open_folder(tmp_path, "mnist-pixels", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="must be a folder, got the file"):
        open_folder(tmp_path / "run", "mnist-pixels", OPTIONS)
    with pytest.raises(OSError, match="cannot be made"):
        open_folder(tmp_path / "run" / "below", "mnist-pixels", OPTIONS)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps("x")])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json must hold"):
        read_json(tmp_path / "results.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is missing"):
        read_json(tmp_path / "results.json")
