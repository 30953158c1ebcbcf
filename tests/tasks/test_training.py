import dataclasses
import json
import threading

import pytest
import torch
from torch.testing import assert_close

from cases.training import config, rows
from subquad.models import PixelModel
from subquad.tasks.checkpoint import read_checkpoint
from subquad.tasks.pixels import PixelTask
from subquad.tasks.training import fit


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


def test_config_json_keeps_what_others_wrote(tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "x"}')
    fit(tiny.TinyTask(), config(), tmp_path, quiet=True)
    value = json.loads((tmp_path / "config.json").read_text())
    assert value["experiment"] == "x"
    assert value["training"]["max_steps"] == 12


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
