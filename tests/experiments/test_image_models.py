import pytest
import torch
from torch.testing import assert_close

from subquad.experiments.image_models import (
    Network,
    new_network,
    set_batch_norm_momentum,
    trained_network,
)
from subquad.models import LambdaResNet
from subquad.models.saving import save_model
from subquad.models.vision_transformer import VisionTransformer

SMALL = {"classes": 4, "channels": 3, "image_size": 32}


def wanted(**options):
    return Network(**{**SMALL, **options})


@pytest.mark.parametrize("name", ["small-vit", "small-resnet", "small-lambda"])
def test_the_small_ones_tell_images_of_their_size(name):
    torch.manual_seed(0)
    model = new_network(name, wanted(channels=1)).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(("side", "patch"), [(64, 8), (32, 4), (28, 2), (96, 8), (100, 4), (18, 2)])
def test_the_small_transformer_halves_sides_while_it_may(side, patch):
    assert new_network("small-vit", wanted(image_size=side)).patch_size == patch


def test_presets_options_and_mixers_reach_the_network():
    with torch.device("meta"):
        vit = new_network(
            "vit:S/16", wanted(mixer="linear", dropout=0.1, drop_path=0.2, checkpointing=True)
        )
        resnet = new_network("lambda:resnet50-CCLL", wanted(dropout=0.3, drop_path=0.1))
        plain = new_network("lambda:50", wanted())
    found = {"mixer": "linear", "dropout": 0.1, "drop_path": 0.2, "checkpointing": True}
    found |= {"image_size": 32, "num_classes": 4, "patch_size": 16, "d_model": 384}
    assert found.items() <= vit.config.items()
    assert type(vit.blocks[0].mixer).__name__ == "LinearAttention"
    assert resnet.config["stages"] == ["CCC", "CCCC", "LLLLLL", "LLL"]
    assert (resnet.config["dropout"], resnet.config["drop_path"]) == (0.3, 0.1)
    assert not plain.config["checkpointing"]


@pytest.mark.parametrize("side", [64, 320])
def test_global_contexts_are_as_large_as_the_images(side):
    with torch.device("meta"):
        model = new_network("lambda:lambda_resnet26rpt_256", wanted(image_size=side)).eval()
        assert model.config["image_size"] == side
        assert model(torch.empty(1, 3, side, side)).shape == (1, 4)


def network(family):
    torch.manual_seed(0)
    if family is VisionTransformer:
        return family(
            image_size=16, patch_size=4, num_classes=7, d_model=16, num_layers=1, num_heads=2
        )
    return family(("C", "C", "C", "L"), num_classes=7, width=8, window=3)


@pytest.mark.parametrize("family", [VisionTransformer, LambdaResNet])
def test_a_trained_one_gets_a_head_of_zeros_and_keeps_the_rest(tmp_path, family):
    old = network(family)
    save_model(old, tmp_path)
    new = trained_network(str(tmp_path), wanted(dropout=0.2)).eval()
    assert new(torch.randn(2, 3, 32, 32)).tolist() == [[0.0] * 4] * 2
    assert (new.config["num_classes"], new.config["dropout"]) == (4, 0.2)
    kept = {k: v for k, v in new.state_dict().items() if "head" not in k and "positions" not in k}
    assert_close(kept, {k: old.state_dict()[k] for k in kept}, rtol=0, atol=0)
    if family is VisionTransformer:
        assert new.grid == (8, 8)


def test_global_tables_of_lambda_layers_are_resampled(tmp_path):
    save_model(
        LambdaResNet(
            ("C", "C", "L", "L"), num_classes=7, width=8, window=None, image_size=32,
            lambda_bias=False,
        ),
        tmp_path,
    )  # fmt: skip
    new = trained_network(str(tmp_path), wanted(image_size=64))
    assert new.config["image_size"] == 64
    assert new(torch.randn(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small-vti", {}, "model must be one of small-vit, small-resnet"),
        ("vit:Q/16", {}, "name must be a size of Ti, S"),
        ("lambda:51", {}, "name must be a depth of 50"),
        ("small-resnet", {"mixer": "linear"}, "mixer must be left out but for Vision Transform"),
        ("small-vit", {"image_size": 14}, "image_size must be even and at least 16 for small-vit"),
        ("small-vit", {"image_size": 33}, "image_size must be even and at least 16 for small-vit"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        new_network(name, wanted(**options))


def test_trained_ones_that_do_not_fit_are_refused(tmp_path):
    save_model(network(VisionTransformer), tmp_path)
    with pytest.raises(ValueError, match="channels must be those of the trained model, 3, got 1"):
        trained_network(str(tmp_path), wanted(channels=1))
    with pytest.raises(ValueError, match="mixer must be left out with a trained model, got 'lin"):
        trained_network(str(tmp_path), wanted(mixer="linear"))
    with pytest.raises(ValueError, match="start_from must name a VisionTransformer or a LambdaRes"):
        trained_network("mnist-linear", wanted())


def test_momentum_reaches_every_batch_norm():
    model = network(LambdaResNet)
    set_batch_norm_momentum(model, 0.25)
    momenta = [getattr(m, "momentum", None) for m in model.modules()]
    assert set(momenta) == {None, 0.25}
