from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from subquad.layers import LinearAttention, LinearCrossAttention
from subquad.models import (
    DecoderLM,
    EncoderDecoder,
    EncoderLM,
    PixelModel,
    TransformerEncoder,
    load_model,
    save_model,
)

MODELS = "PixelModel, DecoderLM, EncoderLM, EncoderDecoder, LambdaResNet, VisionTransformer, "
MODELS += "SmallResNet"
SIZES = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16}


@pytest.fixture
def saved(tmp_path):
    save_model(PixelModel(9, **SIZES), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "model",
    [
        PixelModel(9, **SIZES, mixer="softmax", num_classes=3, norm="pre", positions="learned"),
        DecoderLM(7, **SIZES, positions="rotary", dropout=0.3),
        EncoderLM(7, **SIZES, mixer="linformer", max_len=9, checkpointing="mixers"),
        EncoderDecoder(7, **SIZES, target_vocab_size=5, mixer="performer", cross="linear"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_comes_back_the_same_and_ready_for_evaluation(model, tmp_path):
    if isinstance(model, PixelModel):
        model.first_byte_counts[3] = 40
    folder = tmp_path / "new" / "folder"
    save_model(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = load_model(folder)
    assert type(again) is type(model)
    assert not again.training
    assert again.config == model.config
    expected = model.state_dict()
    found = again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_saving_again_replaces_and_a_failed_save_leaves_the_old(saved, monkeypatch):
    expected = load_file(saved / "model.safetensors")

    def fail(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written: No space left"):
        save_model(PixelModel(9, **SIZES), saved)
    found = load_model(saved).state_dict()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert len(list(saved.iterdir())) == 2
    monkeypatch.undo()
    model = PixelModel(9, **SIZES)
    save_model(model, saved)
    assert torch.equal(load_model(saved).head.weight, model.head.weight)


def test_a_truncated_file_is_refused(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: "):
            load_model(saved)


def test_a_foreign_file_is_refused_with_what_is_wrong(saved):
    save_file({"other": torch.zeros(2)}, saved / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"is of another model: it lacks .*; it has the unknown other"
    ):
        load_model(saved)


def test_missing_and_misshapen_tensors_are_named(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    bias = tensors.pop("head.bias")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"is of another model: it lacks head\.bias$"):
        load_model(saved)
    save_file({**tensors, "head.bias": bias[:-1].clone()}, path)
    message = r"it has head\.bias of shape \(29,\) in place of \(30,\)$"
    with pytest.raises(ValueError, match=message):
        load_model(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}, found none"):
        load_model(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "must describe a model: Expecting property name"),
        ("[1]", "must describe a model"),
        ("{}", "must describe a model, it lacks 'model'"),
        ('{"model": "PixelModel"}', "must describe a model, it lacks 'arguments'"),
        (
            '{"model": "ResNet", "arguments": {}}',
            f"model must be one of {MODELS}; got 'ResNet'",
        ),
        (
            '{"model": "PixelModel", "arguments": {"seq_len": 9, "width": 3}}',
            "unexpected keyword argument 'width'",
        ),
        (
            '{"model": "PixelModel", "arguments": {"seq_len": 9, "mixer": "nothing"}}',
            "mixer must be one of softmax, .*linear",
        ),
    ],
)
def test_a_config_that_describes_no_model_is_refused(saved, config, message, unhooked):
    (saved / "config.json").write_text(config)
    with pytest.raises(
        ValueError, match=rf"config\.json must describe a model.*{message}|{message}"
    ):
        load_model(saved)


def test_models_that_could_not_be_loaded_again_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"only if its mixer is a name in MIXERS, got <class"):
        save_model(PixelModel(9, **SIZES, mixer=LinearAttention), tmp_path)
    with pytest.raises(ValueError, match=r"only if its cross is a name in CROSS_MIXERS, got <cl"):
        save_model(EncoderDecoder(9, **SIZES, cross=LinearCrossAttention), tmp_path)
    for model in (TransformerEncoder(8, num_heads=2, num_layers=1), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"model must be one of {MODELS}, got"):
            save_model(model, tmp_path)

    subclass = type("PixelModel", (PixelModel,), {})
    with pytest.raises(ValueError, match=f"model must be one of {MODELS}, got"):
        save_model(subclass(9, **SIZES), tmp_path)
    assert list(tmp_path.iterdir()) == []
