import csv
import dataclasses
import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from subquad.models import PixelModel
from subquad.tasks.checkpoint import read_checkpoint
from subquad.tasks.config import TrainConfig
from subquad.tasks.pixels import PixelTask
from subquad.tasks.training import fit


def config(**options):
    given = {"max_steps": 12, "batch_size": 4, "lr": 1e-2, "log_every": 4, "device": "cpu"}
    return TrainConfig(**{**given, **options})


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_writes_what_it_promises(tiny, tmp_path):
    task = tiny.TinyTask()
    result = fit(task, config(max_steps=150, lr=3e-2, eval_every=50), tmp_path, quiet=True)
    found = rows(tmp_path)
    assert [int(r["step"]) for r in found if r["test"]] == [0, 50, 100, 150]
    assert float(found[-1]["train"]) < 0.5 * float(found[1]["train"])
    assert result.step == result.max_steps == 150
    assert result.samples == int(found[-1]["samples"]) == 600
    assert result.evaluation == {"loss": float(found[-1]["test"]), "accuracy": 0.5}
    assert not result.interrupted
    assert result.resumed_from is None
    assert result.samples_per_second > 0
    assert not task.model.training
    assert set(task.evaluations) == {False}
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert json.loads((tmp_path / "config.json").read_text())["training"]["lr"] == 3e-2
    weights = read_checkpoint(tmp_path / "checkpoint.safetensors").tensors
    assert_close(weights["model.layers.0.weight"], task.model.state_dict()["layers.0.weight"])


def test_the_train_column_is_the_mean_in_the_tasks_unit(tiny, tmp_path, monkeypatch):
    losses = []

    def loss(self, x, y):
        value = (self.model(x) - y).abs().mean()
        losses.append(value.detach())
        return value

    monkeypatch.setattr(tiny.TinyTask, "loss", loss)
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    means = [2 * float(torch.stack(losses[i : i + 4]).mean()) for i in (0, 4, 8)]
    assert [float(r["train"]) for r in rows(tmp_path)[1:]] == pytest.approx(means)


def test_a_finished_run_is_not_trained_again(tiny, tmp_path):
    first = fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    metrics = (tmp_path / "metrics.csv").read_bytes()
    task = tiny.TinyTask()
    second = fit(task, config(), tmp_path, quiet=True)
    assert task.seen == []
    assert (second.step, second.resumed_from) == (12, 12)
    assert second.evaluation == first.evaluation
    assert (tmp_path / "metrics.csv").read_bytes() == metrics


def test_accumulated_gradients_are_those_of_the_mean(tiny, tmp_path):
    task = tiny.TinyTask()
    task.model.eval()
    for module in task.model.modules():  # neither batch statistics nor dropout
        module.train = lambda mode=True: None
    start = {k: v.clone() for k, v in task.model.state_dict().items()}
    fit(task, config(max_steps=1, grad_accumulation=3, weight_decay=0.0), tmp_path, quiet=True)
    assert task.seen == [0, 1, 2]

    other = tiny.TinyTask()
    other.model.load_state_dict(start)
    other.model.eval()
    x, y = (torch.cat(parts) for parts in zip(*(other.batch(i) for i in range(3)), strict=True))
    other.loss(x, y).backward()
    for name, p in other.model.named_parameters():
        g = p.grad * min(1.0, 1.0 / (float(p.grad.norm()) + 1e-6))
        expected = start[name] - 1e-2 * g  # the first step of RAdam
        assert_close(task.model.get_parameter(name).detach(), expected)


def test_gradients_are_clipped_together(tiny, tmp_path):
    fit(tiny.TinyTask(), config(clip_norm=1e-3), tmp_path, quiet=True)
    assert all(float(r["gradient_norm"]) > 1e-3 for r in rows(tmp_path)[1:])


def test_bf16_trains_float32_weights(tiny, tmp_path):
    task = tiny.TinyTask()
    result = fit(task, config(precision="bf16"), tmp_path, quiet=True)
    assert result.step == 12
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["radam", "adamw"])
def test_a_run_cut_in_two_equals_a_whole_one(tiny, tmp_path, monkeypatch, optimizer):
    whole, cut = tiny.TinyTask(), tiny.TinyTask()
    options = config(optimizer=optimizer, checkpoint_every=5, schedule="cosine")
    fit(whole, options, tmp_path / "whole", quiet=True)

    def batch(step, original=cut.batch):
        if step == 8:
            raise RuntimeError("cut")
        return original(step)

    monkeypatch.setattr(cut, "batch", batch)
    with pytest.raises(RuntimeError, match="cut"):
        fit(cut, options, tmp_path / "cut", quiet=True)
    second = tiny.TinyTask(seed=0)
    for p in second.model.parameters():
        torch.nn.init.zeros_(p)  # all must come from the checkpoint
    result = fit(second, options, tmp_path / "cut", quiet=True)
    assert (result.resumed_from, second.seen) == (5, list(range(5, 12)))
    assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    names = ("step", "train", "test", "learning_rate")
    assert [[r[n] for n in names] for r in rows(tmp_path / "cut")] == [
        [r[n] for n in names] for r in rows(tmp_path / "whole")
    ]


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


def test_how_often_to_look_may_change_on_resume(tiny, tmp_path):
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    fit(
        tiny.TinyTask(), config(log_every=2, eval_every=3, checkpoint_every=1), tmp_path, quiet=True
    )


def test_looking_does_not_change_what_is_learned(tiny, tmp_path):
    often, seldom = tiny.TinyTask(), tiny.TinyTask()
    options = config(eval_every=1, log_every=1, checkpoint_every=1)
    fit(often, options, tmp_path / "often", quiet=True)
    fit(seldom, config(), tmp_path / "seldom", quiet=True)
    assert_close(often.model.state_dict(), seldom.model.state_dict(), rtol=0, atol=0)


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


def test_config_json_keeps_what_others_wrote(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "x"}')
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    value = json.loads((tmp_path / "config.json").read_text())
    assert value["experiment"] == "x"
    assert value["training"]["max_steps"] == 12


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


def test_fit_works_outside_of_the_main_thread(tiny, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(tiny.TinyTask(), config(), tmp_path, quiet=True))
    )
    thread.start()
    thread.join()
    assert results[0].step == 12


def test_the_progress_line_says_value_and_speed(tiny, tmp_path, capsys):
    fit(tiny.TinyTask(), config(), tmp_path)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "12/12" in shown.err
    assert " bits" in shown.err
    assert "rows/s" in shown.err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quiet_says_nothing(tiny, tmp_path, capfd, precision):
    fit(tiny.TinyTask(), config(precision=precision), tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "")


def _pixel_task():
    model = PixelModel(9, num_layers=1, num_heads=2, d_model=16, d_ff=16, num_mixtures=2)
    images = torch.randint(256, (8, 9), dtype=torch.uint8).numpy()
    return PixelTask(model, images, images, batch_size=4)


@pytest.mark.parametrize("name", ["tiny", "pixels"])
def test_no_step_waits_for_the_device_but_those_that_log(name, tiny, tmp_path, monkeypatch):
    reads = []
    task = tiny.TinyTask() if name == "tiny" else _pixel_task()
    for name in ("item", "tolist", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, f=original, n=name: reads.append(n) or f(t)
        )
    counts = []
    monkeypatch.setattr(
        task, "batch", lambda step, batch=task.batch: counts.append(len(reads)) or batch(step)
    )
    fit(task, config(max_steps=30, log_every=10, clip_norm=1.0), tmp_path, quiet=True)
    waited = [i for i in range(1, 30) if counts[i] > counts[i - 1]]
    assert waited == [10, 20]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().lr = 1.0
