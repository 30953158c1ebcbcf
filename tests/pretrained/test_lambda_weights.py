"""Weights of lambda networks in other libraries' layouts, against what these compute."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import assert_near, published_weights
from subquad.layers import LambdaLayer
from subquad.models import LambdaResNet
from subquad.pretrained.lambda_weights import lambda_weights, load_lambda_weights

ORACLES = Path(__file__).parents[1] / "oracles"


def same_as_published(model, name, layout, tolerance):
    oracle = json.loads((ORACLES / f"{name}.json").read_text())
    weights = published_weights(oracle["keys"], oracle["fill_seed"])
    load_lambda_weights(model, {key: x.float() for key, x in weights.items()}, layout)
    seed, shape = 1000 * oracle["fill_seed"] + 999, oracle["input_shape"]
    x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        y = model.eval()(torch.from_numpy(x)).flatten()
    assert len(y) == oracle["output_size"]
    assert_near(y[:32], torch.tensor(oracle["output_first_32"]), tolerance)
    assert abs(y.norm() - oracle["output_norm"]) < tolerance * oracle["output_norm"]
    back = lambda_weights(model, layout)
    assert {key: list(x.shape) for key, x in back.items()} == oracle["keys"]
    for key, x in back.items():
        assert_near(x, weights[key].to(x.dtype), 0.0)


@pytest.mark.parametrize(
    ("name", "size"), [("lambda_resnet26t", "256x256"), ("lambda_resnet50ts", "192x192")]
)
def test_timms_networks(name, size):
    model = LambdaResNet.preset(name)
    same_as_published(model, f"timm-{name}-{size}", "timm", 1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("global", {"grid": (7, 7)}),
        ("local-r5", {"window": 5, "bias": True}),
        ("local-r3-u4", {"window": 3, "bias": True, "intra_depth": 4}),
    ],
)
def test_lucidrains_layer(name, options):
    layer = LambdaLayer(24, 32, head_dim=6, **options)
    same_as_published(layer, f"lambda-networks-{name}", "lambda-networks", 1e-5)


TIMM = {"stem": "tiered", "pooling": 2}


def small(**options):
    torch.manual_seed(0)
    options = {"width": 8, "head_dim": 4, "window": 3, "num_classes": 3, **options}
    return LambdaResNet(("C", "C", "CL", "LL"), **options)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("timm", TIMM),
        ("timm", {**TIMM, "window": None, "image_size": 64, "lambda_bias": False}),
        ("d-li14", {}),
        ("d-li14", {"intra_depth": 2}),
    ],
)
def test_there_and_back_is_the_same_network(layout, options):
    model, other = small(**options).eval(), small(**options).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    weights = lambda_weights(model, layout)
    assert sum(x.numel() for x in weights.values()) == sum(
        x.numel() for x in model.state_dict().values()
    )
    load_lambda_weights(other, weights, layout)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(other(x), model(x))
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    assert all(x.any() for name, x in weights.items() if name.endswith("conv.weight"))  # copies


def test_the_indices_in_timms_older_files_are_passed_over():
    model = small(**TIMM, window=None, image_size=64, lambda_bias=False)
    weights = lambda_weights(model, "timm")
    name = "stages.2.1.self_attn.rel_pos_indices"
    load_lambda_weights(model, {**weights, name: torch.zeros(2, 16, 16).long()}, "timm")
    with pytest.raises(ValueError, match=r"unexpected: stages\.2\.1\.self_attn\.rel_pos"):
        load_lambda_weights(model, {**weights, name + "_x": torch.zeros(1)}, "timm")


def test_d_li14s_names_are_torchvisions_with_lambdas_in_conv2():
    weights = lambda_weights(small(), "d-li14")
    assert weights["conv1.weight"].shape == (64, 3, 7, 7)
    assert weights["layer1.0.conv2.weight"].shape == (8, 8, 3, 3)
    assert weights["layer3.1.conv2.conv_qkv.weight"].shape == (4 * 4 + 4 + 8, 32, 1, 1)
    assert weights["layer3.1.conv2.lambda_conv.weight"].shape == (4, 1, 1, 3, 3)
    assert weights["layer3.1.bn2.weight"].shape == (32,)
    assert weights["layer2.0.downsample.0.weight"].shape == (64, 32, 1, 1)
    assert weights["fc.weight"].shape == (3, 256)


def test_one_error_lists_all_that_is_wrong_and_nothing_is_loaded():
    model = small()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    weights = {name: torch.ones_like(x) for name, x in lambda_weights(model, "d-li14").items()}
    del weights["conv1.weight"], weights["fc.bias"]
    weights["more"] = torch.zeros(1)
    weights["bn1.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"layout d-li14; missing: conv1\.weight, fc\.bias; ") as e:
        load_lambda_weights(model, weights, "d-li14")
    assert "unexpected: more; of another shape: bn1.weight (3,) in place of (64,)" in str(e.value)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("layout", ["timm", "d-li14"])
def test_weights_that_are_not_finite_are_refused(layout):
    model = small(**(TIMM if layout == "timm" else {}))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    weights = lambda_weights(model, layout)
    name = {"timm": "stages.0.0.conv2_kxk.conv.weight", "d-li14": "layer1.0.conv2.weight"}[layout]
    weights[name].view(-1)[1] = torch.nan
    with pytest.raises(ValueError, match=rf"must be finite in torch.float32, got .* in {name}$"):
        load_lambda_weights(model, weights, layout)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_models_that_do_not_fit_the_layout_are_refused(unhooked):
    with pytest.raises(TypeError, match="model must be a LambdaResNet for the layout timm, got La"):
        lambda_weights(LambdaLayer(8, window=3), "timm")
    with pytest.raises(TypeError, match="must be a LambdaLayer for the layout lambda-networks"):
        lambda_weights(small(), "lambda-networks")
    with pytest.raises(ValueError, match="model must have the stem 'tiered' for the layout timm"):
        lambda_weights(small(), "timm")
    with pytest.raises(ValueError, match="model must have the shortcut 'conv'"):
        lambda_weights(small(shortcut="pool"), "d-li14")
    with pytest.raises(ValueError, match="no squeeze-excitation for the layout d-li14"):
        lambda_weights(LambdaResNet(("C", "S", "C", "L"), width=8), "d-li14")
    with pytest.raises(ValueError, match=r"must have a window or, .*, got a table of 7 x 7"):
        lambda_weights(small(window=None, image_size=64, lambda_bias=False), "d-li14")
    with pytest.raises(ValueError, match=r"a square grid .*, got a table of 7 x 9"):
        lambda_weights(LambdaLayer(8, grid=(4, 5)), "lambda-networks")
    with pytest.raises(ValueError, match=r"with a bias where .*, got a window and no bias"):
        lambda_weights(small(lambda_bias=False), "d-li14")
    with pytest.raises(ValueError, match=r"with a bias where .*, got no window and a bias"):
        lambda_weights(small(**TIMM, window=None, image_size=64), "timm")
    with pytest.raises(ValueError, match="must have the intra_depth 1 for the layout timm, got 2"):
        lambda_weights(small(**TIMM, intra_depth=2), "timm")
    with pytest.raises(ValueError, match="must have the pooling 3 for the layout d-li14, got 2"):
        lambda_weights(small(pooling=2), "d-li14")
    with pytest.raises(ValueError, match="must have the activation 'relu' for the layout d-li14"):
        lambda_weights(small(activation="silu"), "d-li14")
    with pytest.raises(ValueError, match="must have lambda layers of two axes with batch_norm"):
        lambda_weights(LambdaLayer(8, window=3, batch_norm=False), "lambda-networks")
    with pytest.raises(ValueError, match="layout must be one of timm, d-li14, lambda-networks"):
        lambda_weights(small(), "keras")
