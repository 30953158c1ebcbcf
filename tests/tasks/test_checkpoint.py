import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close

from subquad.tasks.checkpoint import (
    Checkpoint,
    capture,
    check_settings,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from subquad.tasks.optim import RAdam


class Tied(nn.Module):
    """Two names for one weight, a strided one, one that does not learn, a whole number."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.strided = nn.Parameter(torch.randn(width, 2).t())
        self.fixed = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return self.strided @ self.two(self.one(x)).t()


def trained(optimizer_class=RAdam, steps=3, width=3):
    model = Tied(width)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_class(params, lr=0.1)
    for _ in range(steps):
        update(model, optimizer)
    return model, optimizer


def update(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, model.one.in_features)).square().mean().backward()
    optimizer.step()


def saved(path, model, optimizer, **fields):
    fields = {"step": 3, "settings": {}, "progress": {}, **fields}
    write_checkpoint(path, Checkpoint(tensors=capture(model, optimizer), **fields))
    return path


@pytest.mark.parametrize("optimizer_class", [RAdam, torch.optim.AdamW])
def test_what_comes_back_goes_on_bit_for_bit(tmp_path, optimizer_class):
    model, optimizer = trained(optimizer_class)
    path = saved(tmp_path / "c.safetensors", model, optimizer, progress={"x": [1, None, "a"]})
    for _ in range(4):
        update(model, optimizer)

    other, its_optimizer = trained(optimizer_class, steps=0)
    found = read_checkpoint(path)
    restore(found.tensors, other, its_optimizer)
    for _ in range(4):
        update(other, its_optimizer)

    assert (found.step, found.progress) == (3, {"x": [1, None, "a"]})
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.two.weight is other.one.weight


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = saved(tmp_path / "c.safetensors", *trained())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"c.safetensors must be a whole safetensors file, but is"):
        read_checkpoint(path)


def test_a_flipped_bit_is_refused(tmp_path):
    path = saved(tmp_path / "c.safetensors", *trained())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"c.safetensors is damaged: its tensors do not match"):
        read_checkpoint(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="must be a training checkpoint of subquad, but it is ano"):
        read_checkpoint(path)


def test_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.tasks.checkpoint.VERSION", "2")
    path = saved(tmp_path / "c.safetensors", *trained())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must be a checkpoint of version 1, got 2"):
        read_checkpoint(path)


def test_an_unreadable_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.tasks.checkpoint.json.dumps", lambda *_, **__: "{")
    path = saved(tmp_path / "c.safetensors", *trained())
    with pytest.raises(ValueError, match="is damaged: its header cannot be read"):
        read_checkpoint(path)


def test_another_shape_is_refused_whole(tmp_path):
    found = read_checkpoint(saved(tmp_path / "c.safetensors", *trained(width=4)))
    model, optimizer = trained()
    before = capture(model, optimizer)
    with pytest.raises(ValueError, match=r"another model: strided must be .* \(2, 3\), got .*4"):
        restore(found.tensors, model, optimizer)
    assert_close(capture(model, optimizer), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "verb"), [("model.one.bias", "lacks"), ("model.other", "has")])
def test_other_tensors_are_refused_whole(tmp_path, name, verb):
    model, optimizer = trained()
    tensors = capture(model, optimizer)
    if verb == "lacks":
        del tensors[name]
    else:
        tensors[name] = torch.ones(1)
    with pytest.raises(ValueError, match=f"another model: it {verb} the tensor {name[6:]}, unlike"):
        restore(tensors, model, optimizer)


def test_another_optimisers_state_is_refused_whole():
    model, optimizer = trained()
    tensors = capture(model, optimizer)
    tensors["optimizer.exp_avg.one.bias"] = torch.ones(9)
    with pytest.raises(
        ValueError, match=r"exp_avg of one.bias must have the shape \(3,\), got \(9"
    ):
        restore(tensors, model, optimizer)
    tensors["optimizer.exp_avg.nowhere"] = tensors.pop("optimizer.exp_avg.one.bias")
    with pytest.raises(ValueError, match="optimiser knows nowhere, this model does not"):
        restore(tensors, model, optimizer)


def test_other_settings_are_refused():
    found = Checkpoint(step=1, settings={"training": {"lr": 0.1}}, progress={}, tensors={})
    check_settings(Path("c"), found, {"training": {"lr": 0.1}})
    with pytest.raises(
        ValueError, match=r"^c was made with another training: lr was 0.1, got 0.2;"
    ):
        check_settings(Path("c"), found, {"training": {"lr": 0.2}})


def test_a_setting_that_is_an_object_has_a_lasting_name(tmp_path):
    settings = {"model": {"mixer": nn.Linear, "other": nn.ReLU()}}
    path = saved(tmp_path / "c.safetensors", *trained(), settings=settings)
    check_settings(path, read_checkpoint(path), {"model": {"mixer": nn.Linear, "other": nn.ReLU()}})


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path = saved(tmp_path / "c.safetensors", *trained())
    before = path.read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"c.safetensors cannot be written: No space left on device$"):
        saved(path, *trained(), step=4)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
