import json

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from cases.transformers import TEXT_MODELS, bert, llama, tokens
from subquad.pretrained import load_converted, save_converted
from subquad.pretrained.saving import KERNELS, SwapOptions, load_folder
from subquad.pretrained.swapping import attention_modules


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


@pytest.fixture
def saved(tmp_path):
    options = SwapOptions(num_features=16, seed=3, kernel="regularized", layers=[1])
    model = options.apply(bert(dropout=0.1))
    save_converted(model, tmp_path / "new", options)
    return model, tmp_path / "new"


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("mixer", ["performer", "linear"])
def test_a_converted_model_comes_back_as_it_was(tmp_path, name, mixer):
    options = SwapOptions(mixer=mixer)
    model = options.apply(TEXT_MODELS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_converted(model, tmp_path, options)
    loaded = load_converted(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


def test_directions_that_were_drawn_anew_come_back(tmp_path):
    options = SwapOptions(redraw_every=1)
    model = options.apply(bert())
    attention_modules(model)[0].subquad.features.redraw()
    save_converted(model, tmp_path, options)
    assert torch.equal(logits(load_converted(tmp_path)), logits(model))


def test_kept_layers_and_dropout_come_back(saved):
    model, folder = saved
    loaded = load_converted(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert [m.subquad.mixer for m in attention_modules(loaded)] == ["softmax", "performer"]
    loaded.train()(tokens())  # the second layer's dropout of weights is 0 again


def test_a_tokenizer_is_copied(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.txt").write_text("a\nb\n")
    options = SwapOptions()
    save_converted(
        options.apply(bert()), tmp_path / "new", options, tokenizer_from=tmp_path / "old"
    )
    assert (tmp_path / "new" / "vocab.txt").read_text() == "a\nb\n"


@pytest.mark.parametrize("name", ["subquad.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}, found none"):
        load_converted(saved[1])


def change(folder, **changes):
    described = json.loads((folder / "subquad.json").read_text()) | changes
    (folder / "subquad.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format must be 'subquad-pretrained', got 'other'"),
        ({"model": "Thing"}, "the model's class must be one of transformers, got 'Thing'"),
        ({"model": "AutoConfig"}, "the model's class must be one of transformers"),
        ({"swap": {"mixer": "favor"}}, "mixer must be one of"),
        ({"swap": {"kernel": "cosine"}}, "kernel must be one of positive, "),
        ({"swap": {"kernel": ["relu"]}}, "kernel must be one of positive, .* got .'relu'."),
        ({"swap": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"swap": {"seed": "x"}}, "seed must be an int, got 'x'"),
    ],
)
def test_a_description_that_does_not_fit(saved, unhooked, changes, message):
    change(saved[1], **changes)
    with pytest.raises(ValueError, match=message):
        load_converted(saved[1])


def test_weights_of_another_model(saved):
    change(saved[1], swap={"num_features": 17})
    with pytest.raises(ValueError, match=r"model\.safetensors is of another model"):
        load_converted(saved[1])


def test_damaged_weights(saved):
    (saved[1] / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_converted(saved[1])


def test_a_folder_of_transformers_is_read_by_its_own_class(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    found = load_folder(tmp_path)
    assert type(found) is type(model)
    assert torch.equal(logits(found), logits(model))
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json"):
        load_folder(tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_config_is_named(saved, text):
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json must be of a model of transformers"):
        load_converted(saved[1])


def test_a_description_that_is_no_object(saved):
    (saved[1] / "subquad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"subquad\.json must describe a model: it must be an obj"):
        load_converted(saved[1])


def test_missing_and_misshapen_weights_are_named(tmp_path):
    bert().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    given, key = load_file(path), "bert.encoder.layer.0.output.dense.bias"
    save_file({k: v for k, v in given.items() if k != key}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of a BertForMaskedLM, it lacks 1: {key}"):
        load_folder(tmp_path)
    save_file(given | {key: torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{key} of shape \(32,\), got \(3,\)"):
        load_folder(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="must hold the weights of a BertForMaskedLM"):
        load_folder(tmp_path)


def test_a_model_in_half_precision(tmp_path):
    llama().half().save_pretrained(tmp_path / "old")
    assert load_folder(tmp_path / "old").dtype == torch.float32
    options = SwapOptions()
    save_converted(options.apply(llama()).half(), tmp_path / "new", options)
    loaded = load_converted(tmp_path / "new")
    assert loaded.dtype == loaded.config.dtype == torch.float16


def test_code_in_a_folder_is_refused_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(code))
    (tmp_path / "own.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"config\.json must be of a model of transformers"):
        load_folder(tmp_path)


def test_every_kernel_has_a_name_and_draws():
    assert {"positive", "hyperbolic", "trigonometric", "regularized", "relu"} <= set(KERNELS)
    for kernel in KERNELS.values():
        assert kernel.draw(8, 8).num_features(8) in (8, 16)
