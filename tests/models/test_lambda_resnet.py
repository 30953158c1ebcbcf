"""LambdaResNets: the paper's counts to the unit, the pyramid, presets and errors."""

import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.layers import LambdaLayer
from subquad.models import LambdaResNet, load_model, save_model
from subquad.models.lambda_resnet import BLOCKS
from subquad.models.multiply_adds import multiply_adds
from subquad.models.resnet_blocks import Bottleneck, StochasticDepth

COUNTS = {
    # The sheet counts these to the unit.
    "resnet50-CCCC": 25_557_032,
    "resnet50-LCCC": 25_490_792,
    "resnet50-LLCC": 24_993_000,
    "resnet50-LLLC": 21_727_656,
    "resnet50-LLLL": 14_995_848,
    "resnet50-CLLL": 15_062_088,
    "resnet50-CCLL": 15_559_880,
    "resnet50-CCCL": 18_825_224,
    "lambda_resnet26t": 10_958_272,
    "lambda_resnet26rpt_256": 10_988_688,
    "lambda_resnet50ts": 21_536_832,
}
MILLIONS = {
    # The paper's, in tenths of a million.
    "101": 36.9,
    "152": 51.4,
    "resnet-rs-101-CCCC": 44.6,
    "resnet-rs-101-SSSS": 63.6,
    "resnet-rs-152-CCCC": 60.2,
    "resnet-rs-152-SSSS": 86.6,
    "resnet-rs-101-SSLL": 26.0,
    "resnet-rs-152-SSLL": 35.1,
}


def small(**options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "width": 8, "window": 3, "head_dim": 4, **options}
    return LambdaResNet(("C", "S", "CL", "LL"), **options)


def count(name, **changes):
    with torch.device("meta"):
        model = LambdaResNet.preset(name, **changes)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_paper_to_the_unit(name):
    assert count(name) == COUNTS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_those_of_the_papers_tables(name):
    assert round(count(name) / 1e6, 1) == MILLIONS[name]


def test_deeper_ones_have_more():
    counts = [count(str(depth)) for depth in BLOCKS]
    assert counts == sorted(counts)
    assert count("resnet50-LLLL", window=7, intra_depth=4) == 16_040_616
    assert count("resnet50-LLLL", window=23, intra_depth=4) == 16_532_136


@pytest.mark.parametrize(
    ("options", "giga"),
    [
        ({"window": 3}, 2.610),
        ({"window": 7}, 2.915),
        ({"window": 15}, 4.257),
        ({"window": 23}, 6.576),  # d-li14 has it too
        ({"window": 31}, 9.870),
        ({"window": 7, "intra_depth": 4}, 4.391),
        ({"window": None, "image_size": 224, "lambda_bias": False}, 16.988),
    ],
)
def test_multiply_adds_are_those_of_the_formulas(options, giga):
    with torch.device("meta"):
        model = LambdaResNet.preset("resnet50-LLLL", **options)
    assert round(multiply_adds(model, 3, 224, 224) / 1e9, 3) == giga


@pytest.mark.parametrize(("name", "giga"), [("resnet50-CCCC", 4.089), ("resnet50-CCLL", 4.441)])
def test_multiply_adds_of_convolutions_and_hybrids(name, giga):
    with torch.device("meta"):
        model = LambdaResNet.preset(name)
    assert round(multiply_adds(model, 3, 224, 224) / 1e9, 3) == giga


def test_multiply_adds_leave_the_model_as_it_is():
    model = small().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert multiply_adds(model, 3, 32, 32) > 0
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    assert multiply_adds(plain, 2, 4, 4) == 2 * 9 * 12 + 60


def test_the_hybrids_hold_lambdas_where_the_paper_says():
    with torch.device("meta"):
        stages = LambdaResNet.preset("101").config["stages"]
    assert stages[0] == "SSS"
    assert stages[3] == "LLL"
    assert [n + 1 for n, kind in enumerate(stages[2]) if kind == "L"] == [6, 12, 18]
    with torch.device("meta"):
        stages = LambdaResNet.preset("152").config["stages"]
    assert [n + 1 for n, kind in enumerate(stages[2]) if kind == "L"] == [5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 70), (97, 32)])
@pytest.mark.parametrize("options", [{}, {"stem": "rs", "shortcut": "pool", "pooling": 2}])
def test_the_pyramid_at_any_size(height, width, options):
    model = small(**options).eval()
    pyramid = model.forward_features(torch.randn(2, 3, height, width))
    assert [x.shape[1] for x in pyramid] == [32, 64, 128, 256]
    h, w = height, width
    for _ in range(2):
        h, w = (h + 1) // 2, (w + 1) // 2
    for x in pyramid:
        assert x.shape[2:] == (h, w)
        h, w = (h + 1) // 2, (w + 1) // 2
    assert model(torch.randn(2, 3, height, width)).shape == (2, 5)


def test_gradients_reach_every_weight():
    model = small(zero_init=False).double()
    model(torch.randn(4, 3, 40, 40).double()).square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_zero_gamma_starts_with_shortcuts_alone():
    model = small().eval()
    block = model.stages[2][1]
    x = torch.randn(2, 128, 5, 5)
    assert_near(block(x), x.relu(), 1e-6)


def test_a_global_context_has_a_largest_image():
    model = small(window=None, image_size=64, lambda_bias=False).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert model(torch.randn(1, 3, 48, 40)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"at most \(4, 4\), that of the table, got \(5, 5\)"):
        model(torch.randn(1, 3, 80, 80))
    grids = {(m.table.shape[2] + 1) // 2 for m in model.modules() if isinstance(m, LambdaLayer)}
    assert grids == {4, 2}


def test_stochastic_depth_drops_examples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 1, 1)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y[:, 0], y[:, 1])
    assert abs(y.mean() - 1) < 0.03
    assert torch.equal(layer.eval()(x), x)
    model = small(drop_path=0.3)
    rates = [m.drop_path.rate for m in model.modules() if isinstance(m, Bottleneck)]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)


def test_saving_and_loading(tmp_path):
    model = small(activation="silu").eval()
    save_model(model, tmp_path)
    x = torch.randn(2, 3, 40, 40)
    again = load_model(tmp_path)
    assert isinstance(again, LambdaResNet)
    assert torch.equal(again(x), model(x))


def test_half_precision_and_channels_last():
    model, x = small().eval(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert_near(model.to(memory_format=torch.channels_last)(x), expected, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model(x), expected, 3e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("C", "C", "C")}, "stages must be four words of the letters C, S, L"),
        ({"stages": ("C", "C", "", "L")}, "stages must be four words of the letters C, S, L"),
        ({"stages": ("C", "C", "X", "L")}, "stages must be four words of the letters C, S, L"),
        ({"stem": "big"}, "stem must be one of plain, tiered, rs; got 'big'"),
        ({"shortcut": "none"}, "shortcut must be one of conv, pool; got 'none'"),
        ({"pooling": 4}, "pooling must be one of 2, 3; got 4"),
        ({"activation": "tanh"}, "activation must be one of relu, silu; got 'tanh'"),
        ({"checkpointing": "mixers"}, "checkpointing must be False or True, got 'mixers'"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"window": None}, "one of window and image_size must be given, got None and None"),
        ({"image_size": 64}, "one of window and image_size must be given, got 3 and 64"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, unhooked):
    stages = options.pop("stages", ("C", "C", "C", "L"))
    with pytest.raises(ValueError, match=message):
        LambdaResNet(stages, **{"window": 3, **options})


def test_what_is_no_preset_or_no_image_is_refused(unhooked):
    for name in ("51", "resnet51-CCCC", "resnet50-CCC", "resnet50-CCCX", "timm"):
        with pytest.raises(ValueError, match=f"name must be a depth of 50, .*; got '{name}'"):
            LambdaResNet.preset(name)
    for wrong in (torch.zeros(1, 4, 32, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(ValueError, match=r"x must have the shape \(B, 3, H, W\)"):
            small()(wrong)


def test_a_network_is_resampled_saved_and_loaded(tmp_path, unhooked):
    model = small(window=None, image_size=64, lambda_bias=False).eval()
    model.resample(96)
    save_model(model, tmp_path)
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    with pytest.raises(ValueError, match="resample needs a network without windows, got window=3"):
        small().resample(96)


def test_multiply_adds_of_what_cannot_be_counted_are_refused():
    with pytest.raises(ValueError, match=r"layers that can be counted, got 0, a Conv1d"):
        multiply_adds(nn.Sequential(nn.Conv1d(2, 3, 3)), 2, 9)
    with pytest.raises(ValueError, match=r"model must take input of \(4, 32, 32\)"):
        multiply_adds(nn.Sequential(nn.Conv2d(3, 3, 3)), 4, 32, 32)
