"""Files and names that are not those of a Vision Transformer: one sentence, nothing half-loaded."""

import os
import pickle
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from subquad.models.vision_transformer import VisionTransformer
from subquad.pretrained import (
    detect_vit_layout,
    load_vit_weights,
    save_vit_weights,
    vit_from_weights,
    vit_options,
    vit_state_dict,
)
from subquad.pretrained.vit_files import array_as_tensor, read_tensors

LAYOUTS = ("google", "big-vision", "timm", "hf-v4", "hf-v5")


SEEDS = count()


def small(**options):
    """Return a model of other weights at each call."""
    torch.manual_seed(next(SEEDS))
    options = {
        "image_size": 8, "patch_size": 4, "num_classes": 5, "d_model": 8, "num_layers": 2,
        "num_heads": 2, "d_ff": 12, **options,
    }  # fmt: skip
    model = VisionTransformer(**options)
    for p in model.parameters():
        nn.init.normal_(p)
    return model


@contextmanager
def refused(model, kind, match):
    """Expect one sentence, and the model as it was."""
    before = {name: x.clone() for name, x in model.state_dict().items()}
    config = dict(model.config)
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, before[name]) for name, x in after.items())
    assert model.config == config


def test_one_error_lists_all_that_is_wrong():
    model = small()
    weights = vit_state_dict(small(), "timm")
    del weights["norm.bias"], weights["cls_token"]
    weights["fc_norm.bias"] = torch.zeros(1)
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(13)
    weights["blocks.1.norm1.bias"] = torch.zeros(8, dtype=torch.long)
    weights["blocks.1.norm1.weight"] = torch.zeros(8, device="meta")
    weights["blocks.1.norm2.weight"] = torch.ones(8).to_sparse()
    text = (
        r"^weights must be those of this model in the layout timm; missing: cls_token, norm\.bias; "
        r"unexpected: fc_norm\.bias; of another shape: "
        r"blocks\.0\.mlp\.fc1\.bias \(13,\) in place of \(12,\); not plain floating tensors: "
        r"blocks\.1\.norm1\.bias torch\.int64 torch\.strided on cpu, "
        r"blocks\.1\.norm1\.weight torch\.float32 torch\.strided on meta, "
        r"blocks\.1\.norm2\.weight torch\.float32 torch\.sparse_coo on cpu$"
    )
    with refused(model, ValueError, text):
        load_vit_weights(model, weights)
    with refused(model, ValueError, text):
        load_vit_weights(model, weights, head="replace")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_that_are_not_finite(layout):
    model = small()
    for number in (torch.nan, -torch.inf):
        weights = vit_state_dict(small(), layout)
        name = sorted(weights)[0]
        weights[name].view(-1)[-1] = number
        bare = name.removeprefix("params/")
        text = rf"^weights must be finite in torch\.float32, got NaN or infinity in {bare}$"
        with refused(model, ValueError, text):
            load_vit_weights(model, weights)


def test_weights_that_a_narrower_model_cannot_hold():
    weights = vit_state_dict(small(), "timm")
    weights["blocks.1.norm1.bias"][3], weights["head.bias"][0] = 1e5, -1e6
    load_vit_weights(small(), weights)
    model = small().half()
    text = "finite in torch.float16, got NaN or infinity in blocks.1.norm1.bias, head.bias$"
    with refused(model, ValueError, text):
        load_vit_weights(model, weights)
    text = "got NaN or infinity in blocks.1.norm1.bias$"
    with refused(model, ValueError, text):
        load_vit_weights(model, weights, head="replace")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_that_differ(layout):
    hint = '; head="replace" leaves their head out$'
    names = {"timm": ("head.bias", "pre_logits.fc.bias")}.get(
        layout, ("classifier.bias", "vit.pooler.dense.bias")
    )
    if layout in ("google", "big-vision"):
        names = ("head/bias", "pre_logits/bias")
    model = small()
    others = small(num_classes=7)
    with refused(model, ValueError, rf"{names[0]} \(7,\) in place of \(5,\).*{hint}"):
        load_vit_weights(model, vit_state_dict(others, layout))
    with refused(model, ValueError, rf"unexpected: {names[1]}, [^ ]*{hint}"):
        load_vit_weights(model, vit_state_dict(small(pre_logits=True), layout))
    more = small(pre_logits=True)
    with refused(more, ValueError, rf"missing: {names[1]}, [^ ]*{hint}"):
        load_vit_weights(more, vit_state_dict(model, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_another_grid(layout, unhooked):
    model, other = small(image_size=12), vit_state_dict(small(), layout)
    hint = "; resample= brings positions to another grid$"
    with refused(model, ValueError, rf"of another shape: .*, 8\) in place of \(1, 10, 8\){hint}"):
        load_vit_weights(model, other)
    with refused(model, ValueError, "resample must be one of zoom, bilinear, bic.*; got 'nearest'"):
        load_vit_weights(model, other, resample="nearest")
    wide = vit_state_dict(small(image_size=(8, 12)), layout)
    text = "; only positions of a square grid and of the same width can be resampled$"
    with refused(model, ValueError, text):
        load_vit_weights(model, wide, resample="zoom")
    with refused(model, ValueError, text):
        load_vit_weights(model, vit_state_dict(small(d_model=16), layout), resample="zoom")


def test_heads_of_another_number_are_seen_in_googles_names():
    model = small(num_heads=4)
    with refused(model, ValueError, r"Attention_1/key/bias \(2, 4\) in place of \(4, 2\)"):
        load_vit_weights(model, vit_state_dict(small(), "google"))


def test_options_and_layouts(unhooked):
    model, weights = small(), vit_state_dict(small(), "timm")
    with refused(model, ValueError, "head must be one of strict, replace; got 'drop'"):
        load_vit_weights(model, weights, head="drop")
    with refused(model, ValueError, "layout must be one of google, .*, hf-v5; got 'keras'"):
        load_vit_weights(model, weights, "keras")
    with refused(model, ValueError, "weights must be in the layout hf-v5, got timm"):
        load_vit_weights(model, weights, "hf-v5")
    with refused(model, TypeError, "weights must be a file's name or names to tensors, got list"):
        load_vit_weights(model, [1])
    with refused(model, TypeError, "weights must have strings as names, got 0"):
        load_vit_weights(model, {0: torch.zeros(1)})
    with refused(model, TypeError, "must be tensors or arrays, cls_token is not: .* got float"):
        load_vit_weights(model, {**weights, "cls_token": 1.0})
    with refused(model, ValueError, r"must be of a Vision .* hf-v4, hf-v5, got 2 names, a, b$"):
        load_vit_weights(model, {"b": torch.zeros(1), "a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"hf-v5, got 0 names$"):
        detect_vit_layout({})
    with pytest.raises(ValueError, match=r"layout must be one of google, .* got 'keras'"):
        vit_state_dict(model, "keras")
    doubled = vit_state_dict(model, "google")
    doubled["pos_embedding"] = torch.zeros(1, 4, 8)
    with refused(model, ValueError, "must hold Transformer/.*/pos_embedding once, got it under tw"):
        load_vit_weights(model, doubled)


def test_models_that_have_no_names(unhooked):
    with pytest.raises(TypeError, match="model must be a VisionTransformer, got Linear"):
        vit_state_dict(nn.Linear(2, 2), "timm")
    with pytest.raises(TypeError, match="model must be a VisionTransformer, got Linear"):
        load_vit_weights(nn.Linear(2, 2), {})
    with torch.device("meta"):
        model = VisionTransformer(image_size=8, patch_size=4, d_model=8, num_heads=2)
    with pytest.raises(ValueError, match=r"model must have weights of its own, got .* meta"):
        load_vit_weights(model, {})
    for options, layout, text in (
        ({"positions": "coordinates"}, "timm", "the positions learned .*, got coordinates"),
        ({"position_place": "shared"}, "google", "the position_place stem .*, got shared"),
        ({"pooling": "sequence"}, "timm", "the pooling class or mean .*, got sequence"),
        ({"pooling": "mean"}, "hf-v5", "the pooling class for the layout hf-v5, got mean"),
        ({"stem": "conv"}, "google", "the stem patch or r-ti or .*, got conv"),
        ({"stem": "r-ti", "patch_size": 4}, "hf-v4", "the stem patch for .*, got r-ti"),
        ({"stem": "r-ti", "patch_size": 4}, "big-vision", "the stem patch for .*, got r-ti"),
        ({"mixer": ["softmax", "lambda"]}, "timm", "q, k and v of one width, got L.* in blocks.1"),
        ({"mixer": "lsh-1"}, "timm", "q, k and v of one width, got LSH.* in blocks.0"),
        ({"mixer": "lstm"}, "timm", "q, k and v of one width, got .*LSTM.* in blocks.0"),
        (
            {"mixer": "linformer"}, "timm",
            "no parameters that the layout timm has no names for, got blocks.0.mixer.*blocks.1",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^model must have (mixers.*)?{text}"):
            vit_state_dict(small(**options), layout)


def test_weights_that_do_not_tell(unhooked):
    weights = vit_state_dict(small(), "timm")
    with pytest.raises(ValueError, match="num_heads must be given: weights, in timm, tell it not"):
        vit_from_weights(weights)
    wide = vit_state_dict(small(image_size=(8, 12)), "google")
    assert "image_size" not in vit_options(wide)
    with pytest.raises(ValueError, match="image_size must be given: weights, in google, tell it"):
        vit_from_weights(wide)
    assert vit_from_weights(wide, image_size=(8, 12)).grid == (2, 3)
    with pytest.raises(ValueError, match="style must be one of google, timm, hf; got 'torch'"):
        vit_from_weights(weights, num_heads=2, style="torch")
    with pytest.raises(TypeError, match="num_head"):
        vit_from_weights(weights, num_heads=2, num_head=2)
    with pytest.raises(ValueError, match=r"must hold pos_embed of 3 axes, got \(5, 8\)"):
        vit_options({**weights, "pos_embed": torch.zeros(5, 8)})
    with pytest.raises(ValueError, match="must have square patches, got 4 x 2"):
        vit_options({**weights, "patch_embed.proj.weight": torch.zeros(8, 3, 4, 2)})
    del weights["blocks.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"must hold blocks\.0\.mlp\.fc1\.weight of 2 .* got none"):
        vit_options(weights)
    hybrid = vit_state_dict(small(stem="r-ti", patch_size=4), "google")
    hybrid["block1/unit1/conv1/kernel"] = torch.zeros(1, 1, 64, 64)
    with pytest.raises(ValueError, match=r"must have a residual network of \(\), .* got \(1,\)"):
        vit_options(hybrid)


def write(path, model, layout="timm"):
    weights = vit_state_dict(model, layout)
    if path.suffix == ".npz":
        np.savez(path, **{name: x.numpy() for name, x in weights.items()})
    elif path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".bin", ".pth", ".pt"])
def test_files_are_read_whole_or_refused(suffix, tmp_path):
    path, model, other = tmp_path / f"a{suffix}", small(), small()
    write(path, model, "google" if suffix == ".npz" else "timm")
    nn.init.zeros_(other.head.weight)
    load_vit_weights(other, str(path))
    assert torch.equal(other.head.weight, model.head.weight)
    data = path.read_bytes()
    for keep in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with refused(model, ValueError, f"^{path} must be a whole "):
            load_vit_weights(model, path)
    path.write_bytes(b"<html>not found</html>" * 50)
    with refused(model, ValueError, f"^{path} must be a whole "):
        load_vit_weights(model, path)
    write(path, small(d_ff=16))
    with refused(model, ValueError, f"^weights in {path} must be those of this model in"):
        load_vit_weights(model, path)
    path.unlink()
    with refused(model, FileNotFoundError, f"weights must be a file, found none at {path}"):
        load_vit_weights(model, path)
    path.mkdir()
    with refused(model, FileNotFoundError, f"weights must be a file, found none at {path}"):
        load_vit_weights(model, path)


def test_a_flipped_bit_in_an_npz_file(tmp_path):
    path, model = tmp_path / "a.npz", small()
    write(path, model, "google")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with refused(model, ValueError, f"^{path} must be a whole .npz file of numbers, .*Bad CRC-32"):
        load_vit_weights(model, path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    arrays = {name: x.numpy() for name, x in vit_state_dict(model, "google").items()}
    np.savez("a.npz", **{**arrays, "cls": np.array([Bomb()], dtype=object)})
    with refused(model, ValueError, "a.npz must be a .* cls cannot be read: Object arrays cannot"):
        load_vit_weights(model, "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    with refused(model, ValueError, r"b.npz must be a whole .npz file, it is no zip archive"):
        load_vit_weights(model, "b.npz")
    torch.save({"cls_token": Bomb()}, "c.pth")
    with refused(model, ValueError, "c.pth must be a whole file of tensors alone, as torch.save"):
        load_vit_weights(model, "c.pth")
    assert not (tmp_path / "bomb").exists()


def test_files_of_other_things(tmp_path):
    model = small()
    for name, value, text in (
        ("a.pth", [torch.zeros(1)], "a.pth must hold tensors by name, got list"),
        ("c.pt", {7: torch.zeros(1)}, "c.pt must hold tensors by name alone, got .* things: 7"),
        ("b.bin", {"epoch": 3}, "b.bin must hold tensors by name alone, got other things: epoch"),
    ):
        torch.save(value, tmp_path / name)
        with refused(model, ValueError, text):
            load_vit_weights(model, tmp_path / name)
    np.savez(tmp_path / "c.npz", a=np.array(["text"]))
    with refused(model, ValueError, "c.npz .*, a cannot be read: numbers are wanted, .* <U4"):
        load_vit_weights(model, tmp_path / "c.npz")
    np.save(tmp_path / "d.npy", np.zeros(3))
    text = r"weights must be a file .npz, .safetensors, .bin, .pth, .pt, got .*d.npy"
    with refused(model, ValueError, text):
        load_vit_weights(model, tmp_path / "d.npy")


def test_weights_nested_by_training_scripts_and_half_precision(tmp_path):
    model, other = small(), small()
    for name in ("state_dict", "model"):
        nn.init.zeros_(other.head.weight)
        torch.save({name: vit_state_dict(model, "hf-v5"), "epoch": 3}, tmp_path / "a.pth")
        load_vit_weights(other, tmp_path / "a.pth")
        assert torch.equal(other.head.weight, model.head.weight)
    half = model.bfloat16().head.bias
    # As jax writes bfloat16: two bytes that numpy has no name for.
    x = array_as_tensor(half.detach().view(torch.int16).numpy().view("V2"))
    assert torch.equal(x, half)
    x = array_as_tensor(np.arange(6, dtype=">f4").reshape(2, 3).T)
    assert torch.equal(x, torch.arange(6.0).reshape(2, 3).t())


def test_only_the_networks_own_arrays_are_read(tmp_path):
    model, other = small(), small()
    weights = {f"opt/target/{n}": x.numpy() for n, x in vit_state_dict(model, "google").items()}
    weights["opt/state/what"] = np.array(["not numbers"])
    np.savez(tmp_path / "a.npz", **weights)
    nn.init.zeros_(other.head.weight)
    load_vit_weights(other, tmp_path / "a.npz")
    assert torch.equal(other.head.weight, model.head.weight)
    with pytest.raises(ValueError, match="opt/state/what cannot be read"):
        read_tensors(tmp_path / "a.npz")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = small()
    with pytest.raises(ValueError, match=r"path must be a file \.npz for the layout google, got a"):
        save_vit_weights(model, "a.safetensors", "google")
    with pytest.raises(ValueError, match=r"path must be a file \.safetensors for .* hf-v4, got a"):
        save_vit_weights(model, "a.npz", "hf-v4")
    with pytest.raises(OSError, match=r"a\.npz cannot be written: No such file"):
        save_vit_weights(model, tmp_path / "none" / "a.npz", "google")
    with pytest.raises(ValueError, match=r"must not be of bfloat16 to be written as \.npz, .* is"):
        save_vit_weights(small().bfloat16(), tmp_path / "a.npz", "google")
    save_vit_weights(model, tmp_path / "a.npz", "google")
    before = (tmp_path / "a.npz").read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **arrays: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_vit_weights(model, tmp_path / "a.npz", "google")
    assert [x.name for x in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_bytes() == before
