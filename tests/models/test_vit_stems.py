"""Stems: patches as unfolded linear maps, residual networks and their constants, convolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import assert_near
from subquad.models.vit_backbone import GroupedBottleneck, StdConv2d, backbone
from subquad.models.vit_stems import STEMS, make_stem, reduction


def stem_of(name, patch_size, in_channels=3, style="google"):
    torch.manual_seed(0)
    return make_stem(name, in_channels, 8, patch_size, style=style)


def test_patches_are_a_linear_map_of_what_is_unfolded():
    stem, x = stem_of("patch", 4).double(), torch.randn(2, 3, 12, 8, dtype=torch.float64)
    unfolded = F.unfold(x, 4, stride=4).mT  # B, T, C P P: channels outermost, raster order
    expected = unfolded @ stem.proj.weight.flatten(1).mT + stem.proj.bias
    assert_near(stem(x).flatten(2).mT, expected, 1e-12)


@pytest.mark.parametrize(
    ("name", "patch_size"),
    [("patch", 16), ("conv", 4), ("conv", 2), ("r-ti", 8), ("r-ti", 32), ("r50-3", 16)],
)
def test_a_token_stands_for_a_patch(name, patch_size):
    x = torch.randn(1, 2, 2 * patch_size, patch_size)
    assert stem_of(name, patch_size, in_channels=2).eval()(x).shape == (1, 8, 2, 1)


@pytest.mark.parametrize(("name", "pixels"), [("r-ti", 4), ("r26", 32), ("r50", 32), ("r50-3", 16)])
def test_features_of_a_network_stand_for_pixels(name, pixels):
    assert reduction(name) == pixels
    with torch.device("meta"):
        stem = make_stem(name, 3, 8, 32, style="google")
        assert stem(torch.empty(1, 3, 64, 96)).shape == (1, 8, 2, 3)
        assert stem.backbone(torch.empty(1, 3, 64, 96)).shape[2:] == (64 // pixels, 96 // pixels)


def test_weights_are_standardised_when_used_not_when_stored():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    for style in ("google", "timm"):
        conv = StdConv2d(2, 4, 3, style=style).double()
        with torch.no_grad():
            conv.weight.mul_(1e-4)  # so small that the constants count
        stored, used = conv.weight.detach().clone(), []
        for w in stored:
            mean = w.mean()
            variance = (w - mean).square().mean()
            scale = variance.sqrt() + 1e-5 if style == "google" else (variance + 1e-8).sqrt()
            used.append((w - mean) / scale)
        assert_near(conv(x), F.conv2d(x, torch.stack(used), padding=1), 1e-12)
        assert torch.equal(conv.weight, stored)
        assert abs(torch.stack(used).std() - 1) > 0.05
        assert torch.autograd.gradcheck(conv, (x.clone().requires_grad_(),))


@pytest.mark.parametrize(("side", "size"), [(8, 3), (7, 3), (8, 7), (9, 7), (8, 1), (7, 1)])
def test_padding_where_it_strides_is_tensorflows(side, size):
    conv = StdConv2d(1, 1, size, stride=2, style="google").double()
    x = torch.randn(1, 1, side, side, dtype=torch.float64)
    y, weights, out = conv(x)[0, 0], conv.standardized()[0, 0], -(-side // 2)
    assert y.shape == (out, out)
    before = max((out - 1) * 2 + size - side, 0) // 2
    for i in range(out):
        for j in range(out):
            total = torch.zeros((), dtype=torch.float64)
            for u in range(size):
                for v in range(size):
                    a, b = 2 * i + u - before, 2 * j + v - before
                    if 0 <= a < side and 0 <= b < side:
                        total += weights[u, v] * x[0, 0, a, b]
            assert abs(y[i, j] - total) < 1e-12 * (1 + abs(total))


def test_the_maximum_does_not_see_its_padding():
    network = backbone(3, (), style="google").eval()
    nn.init.constant_(network.norm.bias, 0.5)
    x = torch.randn(1, 3, 16, 16)
    y = network.norm(network.conv(x)).relu()
    assert y.shape[2:] == (8, 8)
    out = network(x)
    assert torch.equal(out[0, :, 3, 3], y[0, :, 6:, 6:].amax((1, 2)))
    assert torch.equal(out[0, :, 0, 1], y[0, :, 0:3, 2:5].amax((1, 2)))


def test_a_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    block, x = GroupedBottleneck(128, 32, stride=1, style="google"), torch.randn(1, 128, 4, 4)
    assert isinstance(block.shortcut, nn.Identity)
    assert torch.equal(block(x), x.relu())
    assert not isinstance(GroupedBottleneck(64, 32, stride=1, style="timm").shortcut, nn.Identity)
    norms = [m.eps for m in block.modules() if isinstance(m, nn.GroupNorm)]
    assert norms == [1e-6] * 3
    timm = backbone(3, (1,), style="timm")
    assert {m.eps for m in timm.modules() if isinstance(m, nn.GroupNorm)} == {1e-5}


def test_convolutions_each_halve_the_sides():
    stem, x = stem_of("conv", 4).eval(), torch.randn(2, 3, 8, 12)
    y = F.max_pool2d(F.conv2d(x, stem.convs[0].weight, padding=1).relu(), 3, 2, 1)
    y = F.max_pool2d(F.conv2d(y, stem.proj.weight, padding=1).relu(), 3, 2, 1)
    assert torch.equal(stem(x), y)
    assert y.shape == (2, 8, 2, 3)
    assert len(stem_of("conv", 2).convs) == 0


@pytest.mark.parametrize(
    ("name", "patch_size", "message"),
    [
        ("resnet", 16, f"stem must be one of {', '.join(STEMS)}; got 'resnet'"),
        ("patch", 0, "patch_size must be at least 1, got 0"),
        ("conv", 6, 'patch_size must be a power of 2 from 2 on with stem="conv", got 6'),
        ("conv", 1, 'patch_size must be a power of 2 from 2 on with stem="conv", got 1'),
        ("r26", 16, 'patch_size must be a multiple of 32 with stem="r26", got 16'),
        ("r-ti", 6, 'patch_size must be a multiple of 4 with stem="r-ti", got 6'),
    ],
)
def test_what_does_not_fit_is_refused(name, patch_size, message, unhooked):
    with pytest.raises(ValueError, match=message):
        stem_of(name, patch_size)
    with pytest.raises(ValueError, match="stem_style must be one of google, timm; got 'hf'"):
        stem_of("r-ti", 8, style="hf")
