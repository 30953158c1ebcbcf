"""What a training run refuses, and what ends it with its checkpoint kept."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch

from cases.training import config, rows
from subquad.tasks.checkpoint import read_checkpoint
from subquad.tasks.training import fit


def test_a_loss_that_is_nan_stops_the_run_and_keeps_the_checkpoint(tiny, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"^the loss is nan at step 7 of 12; the checkpoint of step 5 is kept in .*tensors",
    ):
        fit(tiny.TinyTask(nan_from=6), config(checkpoint_every=5), tmp_path, quiet=True)
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").step == 5


def test_a_weight_that_is_not_finite_is_never_saved(tiny, tmp_path):
    task = tiny.TinyTask()
    task.model.register_buffer("bad", torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match=r"^bad is no longer finite at step 0 of 12"):
        fit(task, config(), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "task_options", "sentence"),
    [
        ({"lr": 2e-2}, {}, "was made with another training: lr was 0.01, got 0.02"),
        ({"max_steps": 13}, {}, "was made with another training: max_steps was 12, got 13"),
        ({}, {"seed": 1}, "was made with another task: seed was 0, got 1"),
        ({}, {"width": 8}, "was made with another model: width was 16, got 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, options, task_options, sentence):
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=sentence):
        fit(tiny.TinyTask(**task_options), config(**options), tmp_path, quiet=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_damaged_checkpoint_is_refused_and_left_alone(tiny, tmp_path):
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    assert path.read_bytes() == before


def test_resume_false_refuses_a_folder_with_a_run(tiny, tmp_path):
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    with pytest.raises(FileExistsError, match="holds a run already; resume it or name another"):
        fit(tiny.TinyTask(), config(), tmp_path, resume=False, quiet=True)


def test_metrics_without_their_checkpoint_are_not_overwritten(tiny, tmp_path):
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(FileExistsError, match="holds the metrics of a run without its checkpoint"):
        fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    assert len(rows(tmp_path)) == 4


def test_a_config_json_that_is_none_is_refused(tiny, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must hold JSON, got"):
        fit(tiny.TinyTask(), config(), tmp_path, quiet=True)


def test_a_full_disk_ends_the_run_and_the_earlier_checkpoint_survives(tiny, tmp_path, monkeypatch):
    write_bytes, written = Path.write_bytes, []

    def full_from_the_third_on(self, data):
        if "checkpoint" in self.name:
            written.append(self)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_from_the_third_on)
    with pytest.raises(OSError, match=r"checkpoint.safetensors cannot be written: No space left"):
        fit(tiny.TinyTask(), config(checkpoint_every=5), tmp_path, quiet=True)
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "checkpoint.safetensors").step == 5
    assert fit(tiny.TinyTask(), config(checkpoint_every=5), tmp_path, quiet=True).step == 12


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot be written: Permission denied"):
        fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    tmp_path.chmod(0o700)


def test_a_refusal_to_write_is_named_for_root_too(tiny, tmp_path, monkeypatch):
    def refuse(self, mode=0o777, parents=False, exist_ok=False):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="run cannot be written: Permission denied"):
        fit(tiny.TinyTask(), config(), tmp_path / "run", quiet=True)


def test_a_file_in_the_place_of_the_folder_is_named(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file cannot be written: File exists"):
        fit(tiny.TinyTask(), config(), tmp_path / "file", quiet=True)


def test_two_runs_in_one_folder_are_refused(tiny, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="is in use by another run; wait for it or name another"):
            fit(tiny.TinyTask(), config(), tmp_path, quiet=True)


def test_a_batch_size_that_is_not_the_tasks_is_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"^batch_size must equal the task's samples_per_step = 4, "
    ):
        fit(tiny.TinyTask(), config(batch_size=5), tmp_path, quiet=True)


def test_fp16_on_a_cpu_is_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"^precision must be 'fp32' or 'bf16' on a CPU, got 'fp16'"
    ):
        fit(tiny.TinyTask(), config(precision="fp16"), tmp_path, quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_named(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"^device must be 'cpu' or 'auto' on a machine without a"):
        fit(tiny.TinyTask(), config(device="cuda"), tmp_path, quiet=True)
