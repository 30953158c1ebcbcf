"""Small residual networks: every kind of layer, counts by hand, sizes, saving and errors."""

import pytest
import torch

from helpers import assert_near
from subquad.layers import LambdaLayer
from subquad.layers.image_attention import GlobalImageAttention, LocalImageAttention
from subquad.models import SmallResNet, load_model, save_model
from subquad.models.multiply_adds import multiply_adds
from subquad.models.small_resnet import KINDS


def small(stages=("C", "C"), **options):
    torch.manual_seed(0)
    options = {
        "num_classes": 5, "in_channels": 2, "image_size": (9, 12), "width": 8, "head_dim": 4,
        "num_heads": 2, "attention_window": 3, "attention_head_dim": 4, **options,
    }  # fmt: skip
    return SmallResNet(stages, **options)


def stirred(model):
    """Give the norms that begin at 0 something to say."""
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.add_(0.5)
    return model


def images(height=9, width=12, batch=4):
    return torch.randn(batch, 2, height, width, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight(kind, block):
    model = stirred(small((kind, kind + "C"), block=block).double())
    y = model(images())
    assert y.shape == (4, 5)
    y.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_classified_by_itself(kind):
    model, x = stirred(small((kind, kind)).double()).eval(), images()
    assert_near(model(x)[1:2], model(x[1:2]), 1e-12)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_each_stage_but_the_first_halves_the_sides_and_doubles_the_channels(stem_stride):
    model = small(("C", "LC", "G"), stem_stride=stem_stride).double()
    y, height, width = model.stem(images()), 9, 12
    if stem_stride == 2:
        height, width = 5, 6
    assert y.shape == (4, 8, height, width)
    for number, stage in enumerate(model.stages):
        y = stage(y)
        if number:
            height, width = (height + 1) // 2, (width + 1) // 2
        assert y.shape == (4, 32 * 2**number, height, width)


def test_a_block_begins_as_its_shortcut():
    model, x = small(("CLG",)).double().eval(), torch.randn(2, 32, 9, 12).double()
    for block in list(model.stages[0])[1:]:
        assert_near(block(x), x.relu(), 1e-12)


def test_a_plain_network_by_hand():
    """One bottleneck without a stride, width 8, on 9 x 12 pixels."""
    model = small(("C",), in_channels=1)
    convolutions = 9 * 8 + 8 * 8 + 9 * 8 * 8 + 8 * 32 + 8 * 32  # stem, branch, shortcut
    norms = 2 * (8 + 8 + 8 + 32 + 32)
    head = 32 * 5 + 5
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + head
    assert multiply_adds(model, 1, 9, 12) == 9 * 12 * convolutions + 32 * 5


@pytest.mark.parametrize(
    ("kind", "parameters", "products"),
    [
        # Of one layer of 8 channels on 9 x 12 = 108 pixels: weights, and multiply-adds a pixel
        # beyond those of the projections. Two heads of 4.
        ("L", 8 * (2 * 4 + 4 + 4) + 2 * 8 + 2 * 4 + 17 * 23 * 4, 4 * 4 * (1 + 108) + 2 * 4 * 8),
        ("G", 8 * 24 + (17 + 23) * 4, 2 * 108 * 8 + (9 + 12) * 8),
        ("R", 8 * 24 + 2 * 3 * 2, 2 * 9 * 8 + 3 * 8),
        ("A", 2 * 8 * 24 + (17 + 23) * 4, (9 + 12) * 3 * 8 + 8 * 24),
        ("E", 8 * 24, 2 * 4 * 8 + 8),
    ],
)
def test_parameters_and_multiply_adds_of_each_layer_by_hand(kind, parameters, products):
    plain, other = small(("C",)), small((kind,))
    convolution = 9 * 8 * 8
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, other)]
    assert counts[1] - counts[0] == parameters - convolution
    projections = 8 * (2 * 4 + 4 + 4) if kind == "L" else 8 * 24
    difference = multiply_adds(other, 2, 9, 12) - multiply_adds(plain, 2, 9, 12)
    assert difference == 108 * (projections + products - convolution)


def test_options_reach_the_layers():
    model = small(("L", "R"), window=5, intra_depth=2, num_heads=4, attention_window=5)
    lambdas = next(m for m in model.modules() if isinstance(m, LambdaLayer))
    assert (lambdas.is_local, lambdas.intra_depth, lambdas.num_heads) == (True, 2, 4)
    assert lambdas.table.shape == (4, 2, 5, 5)
    local = next(m for m in model.modules() if isinstance(m, LocalImageAttention))
    assert (local.window, local.num_heads) == (5, 4)
    narrow = small(("G",), attention_head_dim=64)
    assert next(m for m in narrow.modules() if isinstance(m, GlobalImageAttention)).num_heads == 1


def test_a_saved_network_comes_back(tmp_path):
    model = stirred(small(("S", "L", "A"), stem_stride=2)).eval()
    save_model(model, tmp_path)
    found = load_model(tmp_path)
    assert found.config == model.config
    x = images().float()
    assert torch.equal(found(x), model(x))


def test_smaller_images_are_taken_and_larger_ones_refused():
    model = small(("L", "G", "A")).eval()
    assert model(torch.randn(1, 2, 5, 7)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"x must lie on a grid of at most \(9, 12\), .* \(10, 12"):
        model(torch.randn(1, 2, 10, 12))


def test_images_of_other_channels_are_refused(unhooked):
    with pytest.raises(
        ValueError, match=r"x must have the shape \(B, 2, H, W\), got \(1, 3, 9, 12"
    ):
        small()(torch.zeros(1, 3, 9, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("CX",)}, "stages must be words of the letters C, S, L, G, R, A, E, got"),
        ({"stages": ()}, "stages must be words of the letters"),
        ({"stages": ("C", "")}, "stages must be words of the letters"),
        ({"image_size": (1, 2, 3)}, "image_size must be a side, or height and width, got"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"stem_stride": 3}, "stem_stride must be one of 1, 2; got 3"),
        ({"block": "wide"}, "block must be one of basic, bottleneck; got 'wide'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"stages": ("L",), "window": 4}, "window must be odd, got 4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, unhooked):
    with pytest.raises(ValueError, match=message):
        small(**options)
