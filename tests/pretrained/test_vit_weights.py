"""Weights of Vision Transformers of other codes, against what these compute."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import assert_near, published_weights
from subquad.models import vit_backbone
from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_resample import resample_grid
from subquad.pretrained import (
    detect_vit_layout,
    load_vit_weights,
    save_vit_weights,
    vit_from_weights,
    vit_options,
    vit_state_dict,
)
from subquad.pretrained.vit_names import GOOGLE, LAYOUTS

ORACLES = Path(__file__).parents[1] / "oracles"
SMALL = {
    "image_size": 12, "patch_size": 4, "in_channels": 2, "num_classes": 5, "d_model": 12,
    "num_layers": 2, "num_heads": 3, "d_ff": 20,
}  # fmt: skip


def small(seed=0, **options):
    torch.manual_seed(seed)
    model = VisionTransformer(**{**SMALL, **options})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


@pytest.fixture(autouse=True)
def narrow(request, monkeypatch):
    """Make residual networks half as wide, for speed; those of published models stay."""
    if request.function is not test_published_networks:
        monkeypatch.setattr(vit_backbone, "WIDTH", 32)


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[n]) for n, x in ours.items())


@pytest.mark.parametrize(
    ("name", "num_heads", "layout"),
    [
        ("hf-vit-small-config-11", 4, "hf-v5"),
        ("timm-vit_tiny_patch16_224-224x224", 3, "timm"),
        ("timm-vit_small_r26_s32_224-224x224", 6, "timm"),
    ],
)
def test_published_networks(name, num_heads, layout):
    oracle = json.loads((ORACLES / f"{name}.json").read_text())
    weights = published_weights(oracle["keys"], oracle["fill_seed"])
    weights = {key: x.float() for key, x in weights.items()}
    model = vit_from_weights(weights, num_heads=num_heads)
    seed, shape = 1000 * oracle["fill_seed"] + 999, oracle["input_shape"]
    x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        y = model(torch.from_numpy(x)).flatten()
    assert len(y) == oracle["output_size"]
    assert_near(y[:32], torch.tensor(oracle["output_first_32"]), 1e-5)
    assert abs(y.norm() - oracle["output_norm"]) < 1e-5 * oracle["output_norm"]
    back = vit_state_dict(model, layout)
    assert {key: list(x.shape) for key, x in back.items()} == oracle["keys"]
    assert all(torch.equal(x, weights[key]) for key, x in back.items())


def flax_forward(w, x, *, layers, positions_first):
    """Return the logits of images (B, H, W, C) as the names of Google's files mean them."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"], 1e-6)

    def dense(x, name):
        return torch.einsum("...i,io->...o", x, w[f"{name}/kernel"]) + w[f"{name}/bias"]

    def heads(x, name):
        return torch.einsum("btd,dha->bhta", x, w[f"{name}/kernel"]) + w[f"{name}/bias"][:, None]

    p = w["embedding/kernel"].shape[0]
    b, height, width, c = x.shape
    x = x.reshape(b, height // p, p, width // p, p, c)
    x = torch.einsum("bhpwqc,pqcd->bhwd", x, w["embedding/kernel"]) + w["embedding/bias"]
    x, token = x.flatten(1, 2), w["cls"].expand(b, -1, -1)
    if positions_first:
        x = torch.cat([token, x + w["pos_embedding"]], 1)
    else:
        x = torch.cat([token, x], 1) + w["Transformer/posembed_input/pos_embedding"]
    for i in range(layers):
        at = f"Transformer/encoderblock_{i}"
        attention = f"{at}/MultiHeadDotProductAttention_{0 if positions_first else 1}"
        y = norm(x, f"{at}/LayerNorm_0")
        q, k, v = (heads(y, f"{attention}/{part}") for part in ("query", "key", "value"))
        y = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        out = torch.einsum("bhta,had->btd", y, w[f"{attention}/out/kernel"])
        x = x + out + w[f"{attention}/out/bias"]
        y = norm(x, f"{at}/LayerNorm_{1 if positions_first else 2}")
        at = f"{at}/MlpBlock_{0 if positions_first else 3}"
        x = x + dense(F.gelu(dense(y, f"{at}/Dense_0"), approximate="tanh"), f"{at}/Dense_1")
    x = norm(x, "Transformer/encoder_norm")[:, 0]
    if "pre_logits/kernel" in w:
        x = dense(x, "pre_logits").tanh()
    return dense(x, "head")


@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("layout", ["google", "big-vision"])
def test_googles_names_mean_what_googles_code_computes(layout, pre_logits):
    model = small(pre_logits=pre_logits, activation="gelu-tanh").double()
    x = torch.randn(3, 2, 12, 12, dtype=torch.float64)
    weights = vit_state_dict(model, layout)
    if layout == "big-vision":
        weights = {name.removeprefix("params/"): x for name, x in weights.items()}
    y = flax_forward(
        weights, x.permute(0, 2, 3, 1), layers=2, positions_first=layout == "big-vision"
    )
    assert_near(model(x), y, 1e-12)


# Google's and timm's hybrids, heads, averages; transformers has a class token always.
KINDS = {
    "class": {},
    "pre-logits": {"pre_logits": True},
    "mean": {"pooling": "mean"},
    "wide": {"image_size": (8, 20)},
    "wide-16": {"image_size": (12, 20)},  # with the class token's, rows enough for 4 x 4
    "r-ti": {"stem": "r-ti", "patch_size": 16, "image_size": 48},
    "r26": {"stem": "r26", "patch_size": 32, "image_size": 64, "num_layers": 1},
}


def fits(layout, kind):
    if kind in ("r-ti", "r26"):
        return layout in ("google", "timm")
    return kind != "mean" or not layout.startswith("hf")


@pytest.mark.parametrize(
    ("layout", "kind"), [(n, kind) for n in LAYOUTS for kind in KINDS if fits(n, kind)]
)
def test_there_and_back_is_the_same_network(layout, kind):
    model, other = small(**KINDS[kind]), small(1, **KINDS[kind])
    if layout.startswith("big-vision") and kind != "mean":
        torch.nn.init.zeros_(model.positions.table[:, :1])  # it has no such row
    weights = vit_state_dict(model, layout)
    assert detect_vit_layout(weights) == layout
    assert sum(x.numel() for x in weights.values()) == sum(
        p.numel() for p in model.parameters()
    ) - (12 if layout.startswith("big-vision") and kind != "mean" else 0)
    load_vit_weights(other, weights)
    assert same(model, other)
    arrays = {name: x.numpy() for name, x in weights.items()}
    load_vit_weights(other, arrays, layout, resample="zoom")  # nothing to resample
    assert same(model, other)
    again = vit_state_dict(other, layout)
    assert again.keys() == weights.keys()
    assert all(torch.equal(x, weights[name]) for name, x in again.items())
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    assert all(x.any() for x in weights.values())  # copies


@pytest.mark.parametrize(
    ("layout", "kind"),
    [(n, k) for n in LAYOUTS for k in ("class", "pre-logits", "r-ti", "r26") if fits(n, k)],
)
def test_a_file_makes_a_model(layout, kind, tmp_path):
    model = small(**KINDS[kind])
    if layout.startswith("big-vision"):
        torch.nn.init.zeros_(model.positions.table[:, :1])
    path = tmp_path / ("a.npz" if layout in GOOGLE else "a.safetensors")
    save_vit_weights(model, path, layout)
    told = {**SMALL, **KINDS[kind], "pooling": "class"}
    given = {} if layout in GOOGLE else {"num_heads": told.pop("num_heads")}
    told = {"stem": "patch", "pre_logits": False, **told}
    assert vit_options(path) == told
    made = vit_from_weights(path, **given)
    assert same(made, model)
    assert not made.training
    assert made.config["activation"] == ("gelu-tanh" if layout in GOOGLE else "gelu")
    assert made.config["norm_eps"] == (1e-12 if layout.startswith("hf") else 1e-6)
    assert vit_from_weights(path, style="hf", **given).config["norm_eps"] == 1e-12


def test_big_vision_adds_the_class_tokens_position_to_the_token():
    model, other = small().double(), small(1).double()
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    weights = vit_state_dict(model, "big-vision")
    assert weights["params/pos_embedding"].shape == (1, 9, 12)
    load_vit_weights(other, weights)
    assert not other.positions.table[:, 0].any()
    assert_near(other(x), model(x), 1e-12)


@pytest.mark.parametrize("image_size", [12, (8, 28)])
def test_timms_tables_without_a_class_row_too(image_size):
    model, other = (small(seed, image_size=image_size) for seed in (0, 1))
    torch.nn.init.zeros_(model.positions.table[:, :1])
    weights = vit_state_dict(model, "timm")
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    load_vit_weights(other, weights)
    assert same(model, other)


def test_a_table_of_a_square_is_not_taken_for_another_grid():
    # 2 x 5 patches are 3 x 3 and a class token: the number of a model's patches does not decide.
    wide = small(image_size=(8, 20))
    with pytest.raises(ValueError, match=r"pos_embed \(1, 10, 12\) in place of \(1, 11, 12\)"):
        load_vit_weights(wide, vit_state_dict(small(), "timm"))
    # 4 x 4 without a class token's row are not 3 x 5 with one.
    with pytest.raises(ValueError, match=r"pos_embedding \(1, 17, 12\) in place of \(1, 16, 12\)"):
        load_vit_weights(
            small(image_size=(12, 20)), vit_state_dict(small(image_size=16), "big-vision")
        )


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/"])
def test_prefixes_and_mixed_names_are_known_by_themselves(prefix):
    model, other = small(), small(1)
    weights = vit_state_dict(model, "google")
    table = "Transformer/posembed_input/pos_embedding"
    weights["Transformer/pos_embedding"] = weights.pop(table)
    weights["Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias"] = weights.pop(
        "Transformer/encoderblock_1/MlpBlock_3/Dense_0/bias"
    )
    weights = {f"{prefix}{name}": x for name, x in weights.items()}
    weights["opt/state/step"] = np.array(7)
    weights["opt/state/param_states/cls/grad_ema"] = np.zeros(3)
    assert detect_vit_layout(weights) == "google"
    load_vit_weights(other, weights)
    assert same(model, other)


def test_group_norms_of_four_axes():
    model, other = small(**KINDS["r-ti"]), small(1, **KINDS["r-ti"])
    weights = vit_state_dict(model, "google")
    assert weights["gn_root/scale"].shape == (32,)
    for part in ("scale", "bias"):
        weights[f"gn_root/{part}"] = weights[f"gn_root/{part}"][None, None, None]
    load_vit_weights(other, weights)
    assert same(model, other)


@pytest.mark.parametrize("kind", ["class", "r26"])
def test_from_googles_file_to_timms_names(kind, tmp_path):
    """What a file of Google's gives under timm's names is the same network, to the last bit."""
    published = small(**KINDS[kind])
    save_vit_weights(published, tmp_path / "a.npz", "google")
    ours = vit_from_weights(tmp_path / "a.npz", style="timm")
    save_vit_weights(ours, tmp_path / "a.safetensors", "timm")
    theirs = vit_from_weights(tmp_path / "a.safetensors", num_heads=3)
    assert theirs.config == ours.config
    assert same(theirs, published)
    x = torch.randn(2, 2, *2 * (theirs.config["image_size"],))
    assert torch.equal(theirs(x), ours(x))


def test_transformers_v4_names():
    model = small()
    names = vit_state_dict(model, "hf-v4")
    rows = model.blocks[1].mixer.heads.qkv_proj.weight.split(12)
    for part, expected in zip(("query", "key", "value"), rows, strict=True):
        weight = names[f"vit.encoder.layer.1.attention.attention.{part}.weight"]
        assert torch.equal(weight, expected)
    assert {n for n in names if n.startswith("vit.encoder.layer.1.") and "weight" in n} == {
        f"vit.encoder.layer.1.{part}.weight"
        for part in (
            "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense",
            "attention.attention.query", "attention.attention.key", "attention.attention.value",
            "attention.output.dense",
        )
    }  # fmt: skip


def test_timms_stem_alone_has_no_part_called_stem():
    names = vit_state_dict(small(**KINDS["r-ti"]), "timm")
    assert {name for name in names if "backbone" in name} == {
        f"patch_embed.backbone.{part}" for part in ("conv.weight", "norm.weight", "norm.bias")
    }


def test_hybrids_in_googles_names():
    weights = vit_state_dict(small(**KINDS["r26"]), "google")
    assert weights["conv_root/kernel"].shape == (7, 7, 2, 32)
    assert weights["block2/unit1/conv2/kernel"].shape == (3, 3, 64, 64)
    assert weights["block2/unit1/conv_proj/kernel"].shape == (1, 1, 128, 256)
    assert weights["block4/unit1/gn_proj/scale"].shape == (1024,)
    assert weights["block4/unit2/gn3/bias"].shape == (1024,)
    assert "block4/unit2/conv_proj/kernel" not in weights
    assert weights["embedding/kernel"].shape == (1, 1, 1024, 12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["zoom", "bilinear", "bicubic-antialias", "bicubic"])
def test_positions_are_resampled_on_request(layout, method):
    model, wide = small(), small(1, image_size=(16, 20))
    if layout.startswith("big-vision"):
        torch.nn.init.zeros_(model.positions.table[:, :1])
    load_vit_weights(wide, vit_state_dict(model, layout), resample=method)
    table = model.positions.table
    expected = resample_grid(table[:, 1:].reshape(1, 3, 3, 12), (4, 5), method).reshape(1, 20, 12)
    assert torch.equal(wide.positions.table, torch.cat([table[:, :1], expected], 1))
    model.resample((16, 20), method)
    x = torch.randn(2, 2, 16, 20)
    assert torch.equal(wide(x), model(x))


def test_half_precision_is_widened_before_it_is_resampled():
    model, wide = small(), small(1, image_size=20)
    weights = {name: x.half() for name, x in vit_state_dict(model, "timm").items()}
    table = weights["pos_embed"].float()
    load_vit_weights(wide, weights, resample="zoom")
    expected = resample_grid(table[:, 1:].reshape(1, 3, 3, 12), (5, 5), "zoom").reshape(1, 25, 12)
    assert torch.equal(wide.positions.table[:, 1:], expected)
    assert wide.head.weight.dtype == torch.float32


def test_a_model_of_another_size_and_head_from_a_file():
    weights = vit_state_dict(small(pre_logits=True), "google")
    model = vit_from_weights(
        weights, head="replace", resample="zoom", num_classes=7, image_size=20, mixer="linear"
    )
    assert (model.grid, model.config["num_classes"], model.pre_logits) == ((5, 5), 7, None)
    assert torch.equal(model(torch.randn(3, 2, 20, 20)), torch.zeros(3, 7))


@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_head_is_replaced_by_one_of_zeros(pre_logits, theirs):
    model = small(1, num_classes=9, pre_logits=pre_logits)
    other = small(pre_logits=theirs)
    load_vit_weights(model, vit_state_dict(other, "google"), head="replace")
    assert model.head.weight.shape == (9, 12)
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert model.pre_logits is None
    assert model.config["pre_logits"] is False
    x = torch.randn(2, 2, 12, 12)
    assert torch.equal(model.forward_features(x), other.forward_features(x))


def test_transformers_headless_model():
    model, other = small(), small(1)
    weights = vit_state_dict(model, "hf-v5")
    weights = {n.removeprefix("vit."): x for n, x in weights.items() if "classifier" not in n}
    weights["pooler.dense.weight"], weights["pooler.dense.bias"] = torch.eye(12), torch.zeros(12)
    assert "num_classes" not in vit_options(weights)
    load_vit_weights(other, weights, head="replace")
    x = torch.randn(2, 2, 12, 12)
    assert torch.equal(model.forward_features(x), other.forward_features(x))


@pytest.mark.parametrize("mixer", ["linear", "performer"])
def test_weights_of_softmax_go_into_other_mixers_with_heads(mixer):
    model, other = small(), small(1, mixer=mixer)
    buffers = {name: x.clone() for name, x in other.named_buffers()}
    load_vit_weights(other, vit_state_dict(model, "timm"))
    theirs = dict(other.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())
    assert all(torch.equal(x, buffers[name]) for name, x in other.named_buffers())


def test_float64_takes_the_models_precision_and_its_device_is_kept():
    model, other = small().double(), small(1)
    load_vit_weights(other, vit_state_dict(model, "timm"))
    assert same(other, model.float())
