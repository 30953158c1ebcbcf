"""Published Vision Transformers by name: parameters, multiply-adds, exaFLOPs, styles."""

from functools import cache

import pytest
import torch
from torch import nn

from subquad.models import VisionTransformer
from subquad.models.multiply_adds import multiply_adds
from subquad.models.vit_presets import KNOWN, preset_options

COUNTS = [
    # The sheet's numbers, to the unit.
    ("Ti/16", {}, 5_717_416),
    ("S/16", {}, 22_050_664),
    ("S/32", {}, 22_878_952),
    ("B/16", {}, 86_567_656),
    ("B/32", {}, 88_224_232),
    ("L/16", {}, 304_326_632),
    ("L/32", {}, 306_535_400),
    ("H/14", {}, 632_045_800),
    ("B/16", {"num_classes": 21_843}, 102_595_923),
    ("L/16", {"num_classes": 21_843}, 325_690_707),
    ("B/16", {"image_size": 384}, 86_859_496),
    ("B/32", {"image_size": 384}, 88_297_192),
    ("L/16", {"image_size": 384}, 304_715_752),
    ("L/32", {"image_size": 384}, 306_632_680),
]
BODIES = {"B/16": 85_798_656, "L/16": 303_301_632, "H/14": 630_764_800}
MILLIONS = [
    ("R+Ti/16", 224, 6.34),
    ("R26+S/32", 224, 36.43),
    ("R50+B/16", 384, 98.95),
    ("R50+L/32", 384, 329.09),
]
GIGA = [
    ("Ti/16", 224, "1.25"), ("S/32", 224, "1.14"), ("S/16", 224, "4.60"), ("B/32", 224, "4.41"),
    ("B/16", 224, "17.56"), ("L/32", 224, "15.38"), ("L/16", 224, "61.55"), ("H/14", 224, "167.3"),
    ("B/32", 384, "13.0"), ("B/16", 384, "55.5"), ("L/32", 384, "45.3"), ("L/16", 384, "191.1"),
]  # fmt: skip
# Pre-training on 303 million images: epochs, and the paper's exaFLOPs.
EXAFLOPS = [
    ("B/16", 7, 224), ("L/32", 7, 196), ("L/16", 7, 783), ("L/16", 14, 1567), ("H/14", 14, 4262),
    ("R50+B/16", 7, 274), ("R50+L/32", 7, 246),
]  # fmt: skip


def on_meta(name, style="google", **changes):
    with torch.device("meta"):
        return VisionTransformer.preset(name, style, **changes)


def count(module):
    return sum(p.numel() for p in module.parameters())


@cache
def giga_multiply_adds(name, side=224):
    return multiply_adds(on_meta(name, image_size=side), 3, side, side) / 1e9


@pytest.mark.parametrize(("name", "changes", "expected"), COUNTS)
def test_parameters_to_the_unit(name, changes, expected):
    assert count(on_meta(name, **changes)) == expected


@pytest.mark.parametrize("name", BODIES)
def test_parameters_without_a_head_and_with_a_hidden_layer(name):
    model = on_meta(name, pre_logits=True)
    width = model.config["d_model"]
    assert count(model) - count(model.head) - count(model.pre_logits) == BODIES[name]
    assert count(model.pre_logits) == width * width + width


@pytest.mark.parametrize(("name", "side", "millions"), MILLIONS)
def test_parameters_of_hybrids(name, side, millions):
    assert round(count(on_meta(name, image_size=side)) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "side", "giga"), GIGA)
def test_multiply_adds(name, side, giga):
    found = giga_multiply_adds(name, side)
    assert f"{found:.{len(giga.split('.')[1])}f}" == giga


@pytest.mark.parametrize(("name", "epochs", "expected"), EXAFLOPS)
def test_exaflops_of_pretraining_are_the_papers_to_a_hundredth(name, epochs, expected):
    # Two FLOPs a multiply-add, and a backward pass that costs two forward passes.
    found = 6 * giga_multiply_adds(name) * 303e6 * epochs / 1e9
    assert abs(found / expected - 1) < 0.01


def test_exaflops_of_b32_are_above_the_papers_rounded_ones():
    assert round(6 * giga_multiply_adds("B/32") * 303e6 * 7 / 1e9, 1) == 56.1


def test_the_stem_alone_makes_49_tokens():
    model = on_meta("R+Ti/16")
    assert model.grid == (7, 7)
    assert model.stem.proj.kernel_size == (8, 8)
    assert abs(giga_multiply_adds("R+Ti/16") - 0.44) < 0.01


def test_multiply_adds_of_mixers():
    # Of linear attention with B/16: each head's sums over keys, their use and the denominators.
    counts = [
        multiply_adds(on_meta("B/16", num_layers=1, **changes), 3, 224, 224)
        for changes in ({}, {"mixer": "linear"}, {"positions": "relative"})
    ]
    plain = counts[0] - 2 * 197**2 * 768
    assert counts[1] - plain == 12 * 197 * 64 * (2 * 64 + 1)
    assert counts[2] - plain == 197 * 768 * (2 * 197 + 2 * 197 - 1)


def test_styles_are_those_of_three_codes():
    for style, activation, eps in (
        ("google", "gelu-tanh", 1e-6), ("timm", "gelu", 1e-6), ("hf", "gelu", 1e-12),
    ):  # fmt: skip
        model = on_meta("R26+S/32", style)
        assert {block.feed_forward.activation for block in model.blocks} == {activation}
        norms = {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
        assert norms == {eps}
        groups = {m.eps for m in model.modules() if isinstance(m, nn.GroupNorm)}
        assert groups == {1e-6 if style == "google" else 1e-5}


def test_all_known_names_build_and_any_patch_size_does():
    for name in KNOWN:
        assert on_meta(name).config["num_classes"] == 1000
    assert on_meta("L/7").grid == (32, 32)
    assert preset_options("H/14")["patch_size"] == 14


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b/16", "got 'b/16', did you mean B/16?"),
        ("B16", "got 'B16', did you mean B/16?"),
        ("R50+B/14", r"got 'R50\+B/14', did you mean R50\+B/16?"),
        ("ViT-L_16", "name must be a size of Ti, S, B, L, H and a patch as in B/16"),
        ("G/14", "name must be a size of Ti, S, B, L, H"),
        ("B/0", "name must be a size of Ti, S, B, L, H"),
    ],
)
def test_what_is_no_preset_is_refused(name, message, unhooked):
    with pytest.raises(ValueError, match=message):
        VisionTransformer.preset(name)
    with pytest.raises(ValueError, match="style must be one of google, timm, hf; got 'jax'"):
        VisionTransformer.preset("B/16", "jax")
