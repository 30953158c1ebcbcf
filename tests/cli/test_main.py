import errno
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from subquad.cli import commands, main
from subquad.cli.demo import free_folder
from subquad.data.images import ImageSet
from subquad.environment import environment
from subquad.experiments import pixel_run, sampling


def outcome(capsys, *words):
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def failing_with(monkeypatch, error):
    def fail(words):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "info", commands.Command(summary="", run=fail))


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """A folder with a trained model of 4 x 4 images."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    labels = np.zeros(8, np.uint8)
    found = ImageSet(
        train=images,
        train_labels=labels,
        test=images,
        test_labels=labels,
        source="noise",
    )
    monkeypatch.setattr(pixel_run, "load_images", lambda *_, **__: found)
    monkeypatch.setattr(sampling, "load_images", lambda *_, **__: found)
    words = ["run", "mnist-pixels", "--scale", "smoke", "--max-steps", "3", "--num-layers", "1"]
    assert main([*words, "--out", "run", "--export", "results/one.json"]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rn"], "unknown command 'rn'; did you mean run?"),
        (["--verbose"], "unknown command '--verbose'"),
        (["run", "mnist-pixel"], "unknown experiment 'mnist-pixel'; did you mean mnist-pixels?"),
        (
            ["run", "mnist-pixels", "--mixr", "linear"],
            "unknown option --mixr; did you mean --mixer?",
        ),
        (["run", "copy-task", "--mixer", "lineer"], "unknown mixer 'lineer'; did you mean linear?"),
        (["run", "copy-task", "--scale=lptop"], "unknown scale 'lptop'; did you mean laptop?"),
        (["run", "copy-task", "--lr", "x"], "--lr must be a finite number, got 'x'"),
        (
            ["run", "copy-task", "--minutes", "1", "--max-steps", "5"],
            "only one of --minutes and --max-steps may be given, got 1 and 5",
        ),
        (["run-all", "mnist-pixls"], "unknown group 'mnist-pixls'; did you mean mnist-pixels?"),
        (["run-all", "--scale", "long"], "GROUP is missing"),
        (["sample"], "MODEL is missing"),
        (["sample", "x", "--cont", "3"], "unknown option --cont; did you mean --count?"),
        (["run", "copy-task", "--lr", "-1"], "lr must be a finite number above 0, got -1.0"),
        (["run", "mnist-pixels", "--samples", "0"], "samples must be at least 1, got 0"),
        (["run", "copy-task", "--export", "x"], "--export must name a .json file, got x"),
        (["run-all", "copy-task", "--seed", "-1"], "seed must be at least 0, got -1"),
        (
            ["sample", "x", "--complete", "2", "--label", "3"],
            "complete must stand without count and label, because the test images are given, "
            "got label 3",
        ),
        (["sample", "x", "--complete", "2", "--count", "64"], "complete must stand without count"),
        (["data", "mnist", "--folder", "no/such"], "--folder must be a folder that exists, got no"),
        (["sample", "x", "--count", "0"], "count must be at least 1, got 0"),
        (["data", "mnst"], "unknown data set 'mnst'; did you mean mnist?"),
        (["data", "cifar10"], "cifar10 needs --folder"),
        (["demo", "--full-sise"], "unknown option --full-sise; did you mean --full-size?"),
        (["info", "all"], "unexpected argument 'all'"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith(f"subquad: error: {message}")
    assert err.count("\n") == 1
    assert "--help)" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ([], "run-all"),
        (["--help"], "demo"),
        (["run"], "mnist-pixels"),
        (["run", "--help"], "laptop"),
        (["run", "copy-task", "--help"], "--num-symbols"),
        (["run-all"], "linear-transformer"),
        (["run-all", "--help"], "linear-transformer"),
        (["sample", "--help"], "--temperature"),
        (["data", "--help"], "fashion-mnist"),
        (["demo", "--help"], "--full-size"),
        (["info", "--help"], "versions"),
        (["package", "--help"], "RUN NAME"),
    ],
)
def test_help_is_there_for_everything(capsys, words, known):
    code, out, err = outcome(capsys, *words)
    assert (code, err) == (0, "")
    assert known in out


def test_the_help_of_an_experiment_shows_the_scales_defaults(capsys):
    _, out, _ = outcome(capsys, "run", "mnist-pixels", "--scale", "paper", "--help")
    text = " ".join(out.replace("│", " ").replace("|", " ").split())  # without frame and folding
    assert "(default: 0.0001)" in text
    assert "(default: radam)" in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x must be 1, got 2"), "x must be 1, got 2"),
        (FileNotFoundError("f is missing"), "f is missing"),
        (OSError(errno.ENOSPC, "f cannot be written: disk full"), "f cannot be written: disk full"),
        (OSError(errno.EACCES, "Permission denied", "f"), "Permission denied: f"),
        (RuntimeError("first\nsecond"), "first second"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_expected_failure_is_one_line_and_exit_code_1(capsys, monkeypatch, error, line):
    failing_with(monkeypatch, error)
    assert outcome(capsys, "info") == (1, "", f"subquad: error: {line}\n")


def test_debug_shows_the_traceback(monkeypatch):
    failing_with(monkeypatch, ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        main(["info", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    failing_with(monkeypatch, AttributeError("x"))
    with pytest.raises(AttributeError):
        main(["info"])


def test_ctrl_c_is_one_line_and_exit_code_130(capsys, monkeypatch):
    failing_with(monkeypatch, KeyboardInterrupt())
    code, out, err = outcome(capsys, "info")
    assert (code, out, err.count("\n")) == (130, "", 1)


def test_a_core_installation_is_told_which_extra_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    code, _, err = outcome(capsys, "demo")
    assert code == 1
    assert "pip install 'subquad[train]'" in err
    assert err.count("\n") == 1


def test_the_program_itself_exits_with_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "subquad.cli", "rn"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_info_names_versions_forms_and_data(capsys):
    code, out, _ = outcome(capsys, "info")
    assert code == 0
    for words in ("torch", "linear attention", "FAVOR+", "trained models", "embedded digits"):
        assert words in out
    assert ("subquad[triton]" in out) == (importlib.util.find_spec("triton") is None)


def test_a_trained_model_is_sampled_and_completed(trained, capsys):
    assert json.loads((trained.parent / "results/one.json").read_text())["environment"]
    capsys.readouterr()
    code, out, _ = outcome(capsys, "sample", "run", "--count", "3", "--out", "a.png")
    assert code == 0
    assert out.startswith("a.png: 3 images")
    assert (trained.parent / "a.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = outcome(capsys, "sample", "run", "--complete", "2", "--out", "b.png")
    assert code == 0
    assert "test images: noise" in out
    assert "replaced" not in out
    _, out, _ = outcome(capsys, "sample", "run", "--count", "1", "--out", "b.png")
    assert out.startswith("b.png (the earlier file is replaced): 1 image, ")
    for words, message in (
        (["--complete", "9"], "--complete must be at most 8, got 9"),
        (["--label", "3"], "label must be left out for a model without classes, got 3"),
        (["--out", "no/such.png"], "--out must lie in a folder that exists"),
        (["--temperature", "0"], "temperature"),
    ):
        code, _, err = outcome(capsys, "sample", "run", *words)
        assert code == 1
        assert message in err
        assert err.count("subquad: error") == 1


def test_a_run_in_the_folder_of_another_is_refused(trained, capsys):
    words = ["run", "mnist-pixels", "--scale", "smoke", "--max-steps", "4", "--num-layers", "1"]
    code, _, err = outcome(capsys, *words, "--out", "run")
    assert code == 1
    assert "run holds a run with --max-steps 3, not 4; choose another folder with --out" in err


@pytest.mark.parametrize(("there", "fetched"), [(True, 0), (False, 1)])
def test_data_is_fetched_into_a_folder_only_where_files_are_missing(
    capsys, tmp_path, monkeypatch, there, fetched
):
    calls = []
    noise = SimpleNamespace(source="noise")
    monkeypatch.setattr("subquad.data.mnist.has_idx_files", lambda folder: there)
    monkeypatch.setattr("subquad.data.fetch.fetch_mnist", lambda f: calls.append(f) or f)
    monkeypatch.setattr("subquad.data.images.load_mnist", lambda folder: noise)
    code, out, _ = outcome(capsys, "data", "mnist", "--folder", str(tmp_path))
    assert (code, out) == (0, f"noise: complete, in {tmp_path}\n")
    assert calls == [tmp_path] * fetched


def test_a_model_that_is_not_there_is_told(capsys):
    code, _, err = outcome(capsys, "sample", "mnist-lineer")
    assert code == 1
    assert "mnist-lineer is neither the folder of a run nor a packaged model" in err


def test_estimates_are_shown_and_nothing_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = outcome(capsys, "run", "copy-task", "--scale", "smoke", "--estimate")
    assert code == 0
    assert "nothing was started" in out
    assert "memory, GB" in out
    assert not any(tmp_path.iterdir())


def test_a_group_runs_one_after_another_and_skips_what_is_finished(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.tasks.marked_tokens.FULL_BATCHES", 1)
    words = ["run-all", "copy-task", "--scale", "smoke", "--out", str(tmp_path)]
    assert main(words) == 0
    runs = sorted(path.name for path in tmp_path.iterdir())
    assert runs == ["copy-task-compared-smoke", "copy-task-linear-smoke", "copy-task-softmax-smoke"]
    page = (tmp_path / "copy-task-compared-smoke" / "report.html").read_text()
    assert "<th>linear</th><th>softmax</th>" in page
    monkeypatch.setattr("subquad.experiments.copy_run.fit", None)
    capsys.readouterr()
    code, out, _ = outcome(capsys, *words)
    assert code == 0
    assert out.count("on test data") == 2


def test_the_demo_takes_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(free_folder(None)) == "runs/demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert str(free_folder(None)) == "runs/demo-2"
    (tmp_path / "full").mkdir()
    assert free_folder(tmp_path / "full") == tmp_path / "full"
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        free_folder(tmp_path / "full")


def test_the_stamp_of_a_run_names_its_command(trained):
    stamp = json.loads((trained / "environment.json").read_text())
    assert stamp["command"].startswith("subquad run mnist-pixels --scale smoke")
    assert stamp.keys() == environment().keys()
