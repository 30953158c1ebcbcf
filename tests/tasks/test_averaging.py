import pytest
import torch
from torch import nn
from torch.testing import assert_close

from subquad.tasks.averaging import WeightAverage
from subquad.tasks.checkpoint import capture, read_checkpoint, restore
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import estimate
from subquad.tasks.optim import build_optimizer
from subquad.tasks.training import fit

SETTINGS = {"max_steps": 30, "batch_size": 4, "lr": 1e-2, "device": "cpu"}


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    model.register_buffer("drawn", torch.ones(2))
    model.register_buffer("hidden", torch.ones(1), persistent=False)
    return model


def change(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand_like(value.float()) * 5)


def test_it_is_the_recursion_for_weights_and_running_statistics():
    model, decay = net(), 0.7
    average = WeightAverage(model, decay)
    change(model)
    average.update()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert_close(average.tensors(), expected, rtol=0, atol=0)
    for _ in range(3):
        change(model)
        average.update()
        for name, value in model.state_dict().items():
            moves = name not in ("1.num_batches_tracked", "drawn")
            kept = decay if moves else 0
            expected[name] = (kept * expected[name] + (1 - kept) * value).to(value.dtype)
    assert_close(average.tensors(), expected, check_dtype=False)
    assert average.updates == 4


def test_a_weight_that_does_not_change_stays_to_the_bit():
    model = net()
    average = WeightAverage(model, 0.9)
    for _ in range(20):
        average.update()
    assert_close(average.tensors(), dict(model.state_dict()), rtol=0, atol=0)


def test_in_use_it_stands_in_for_the_weights_even_where_that_fails():
    model = net()
    average = WeightAverage(model, 0.9)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    change(model)
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    held = {}

    def look_and_fail():
        held.update({name: value.clone() for name, value in model.state_dict().items()})
        raise KeyError

    with pytest.raises(KeyError), average.in_use():
        look_and_fail()
    assert_close(held, own, rtol=0, atol=0)
    assert_close(dict(model.state_dict()), changed, rtol=0, atol=0)
    assert_close(average.tensors(), own, rtol=0, atol=0)
    average.put_into_model()
    assert_close(dict(model.state_dict()), own, rtol=0, atol=0)


def test_what_is_evaluated_and_kept_is_the_average(tiny, tmp_path):
    task = tiny.TinyTask()
    looks = []
    evaluate = task.evaluate
    task.evaluate = lambda *, full: looks.append(weights_of(task)) or evaluate(full=full)
    fit(task, TrainConfig(**SETTINGS, eval_every=10, ema_decay=0.9), tmp_path, quiet=True)
    found = read_checkpoint(tmp_path / "checkpoint.safetensors").tensors
    kept = {k.removeprefix("average."): v for k, v in found.items() if k.startswith("average.")}
    assert_close(weights_of(task), kept, rtol=0, atol=0)
    assert_close(looks[-1], kept, rtol=0, atol=0)
    assert not torch.equal(kept["layers.0.weight"], found["model.layers.0.weight"])
    assert not task.model.training

    # A run that is at its end already leaves the same model.
    again = tiny.TinyTask()
    result = fit(again, TrainConfig(**SETTINGS, eval_every=10, ema_decay=0.9), tmp_path, quiet=True)
    assert result.resumed_from == SETTINGS["max_steps"]
    assert_close(weights_of(again), kept, rtol=0, atol=0)


def test_averaging_does_not_disturb_the_training(tiny, tmp_path):
    found = {}
    for name, ema_decay in (("with", 0.9), ("without", None)):
        fit(tiny.TinyTask(), TrainConfig(**SETTINGS, ema_decay=ema_decay), tmp_path / name)
        tensors = read_checkpoint(tmp_path / name / "checkpoint.safetensors").tensors
        found[name] = {k: v for k, v in tensors.items() if not k.startswith("average")}
    assert_close(found["with"], found["without"], rtol=0, atol=0)


def test_a_checkpoint_without_an_average_is_refused_where_one_is_wanted(tiny, tmp_path):
    fit(tiny.TinyTask(), TrainConfig(**SETTINGS), tmp_path, quiet=True)
    with pytest.raises(ValueError, match=r"ema_decay was None, got 0\.9"):
        fit(tiny.TinyTask(), TrainConfig(**SETTINGS, ema_decay=0.9), tmp_path, quiet=True)
    model = net()
    optimizer = build_optimizer(model, TrainConfig(**SETTINGS))
    tensors, average = capture(model, optimizer), WeightAverage(model, 0.9)
    with pytest.raises(ValueError, match="it lacks the tensor"):
        restore(tensors, model, optimizer, average)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam", "radam"])
def test_moments_lie_in_memory_as_their_weights_do(optimizer):
    config = TrainConfig(**SETTINGS, optimizer=optimizer)

    def stepped(restored):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        found = build_optimizer(model, config)
        for step in range(4):
            model(torch.randn(2, 4, 5, 5)).square().sum().backward()
            found.step()
            found.zero_grad()
            if step == 1 and restored:
                tensors = capture(model, found)
                found = build_optimizer(model, config)
                restore(tensors, model, found)
        return weights_of(model)

    assert_close(stepped(True), stepped(False), rtol=0, atol=0)


def test_an_estimate_counts_the_average_and_the_moments(tiny):
    plain = estimate(tiny.TinyTask(), TrainConfig(**SETTINGS))
    more = estimate(tiny.TinyTask(), TrainConfig(**SETTINGS, ema_decay=0.9))
    less = estimate(tiny.TinyTask(), TrainConfig(**SETTINGS, optimizer="sgd"))
    state = sum(v.nbytes for v in tiny.TinyModel().state_dict().values()) / 1e9
    learned = sum(p.nbytes for p in tiny.TinyModel().parameters()) / 1e9
    for name in ("memory_gb", "disk_gb"):
        assert getattr(more, name) - getattr(plain, name) == pytest.approx(state)
        assert getattr(plain, name) - getattr(less, name) == pytest.approx(learned)


def weights_of(module):
    model = getattr(module, "model", module)
    return {name: value.clone() for name, value in model.state_dict().items()}
