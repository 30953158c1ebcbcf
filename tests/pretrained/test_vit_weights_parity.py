"""Vision Transformers against transformers' and timm's own, on random weights."""

import importlib
import importlib.util

import pytest
import torch

from helpers import assert_near
from subquad.models.vision_transformer import VisionTransformer
from subquad.pretrained import (
    load_vit_weights,
    save_vit_weights,
    vit_from_weights,
    vit_state_dict,
)

pytestmark = pytest.mark.slow
SIZES = {"d_model": 48, "num_layers": 3, "num_heads": 4, "d_ff": 80, "num_classes": 7}


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    """Let a torchvision built for CUDA be imported beside torch for the CPU.

    timm needs it, and where it is installed transformers imports it.
    """
    library = None
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # it asks for operators that this torch has not
            library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library


def random(model):
    """Draw weights that make all parts count."""
    torch.manual_seed(3)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(p, mean=float(p.mean() > 0.5), std=0.2)
    return model.eval()


def near(y, expected):
    assert y.abs().max() > 0.1
    assert (y - expected).abs().max() < 1e-5
    assert_near(y, expected, 1e-5)


def transformers_model(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=24, patch_size=8, num_channels=3, hidden_size=48, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=80, num_labels=7, **options,
    )  # fmt: skip
    return random(getattr(transformers, kind)(config))


def test_transformers_classifier():
    theirs = transformers_model("ViTForImageClassification")
    model = vit_from_weights(theirs.state_dict(), num_heads=4)
    x = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        near(model(x), theirs(x).logits)
        # And ours in theirs.
        other = random(VisionTransformer(image_size=24, patch_size=8, norm_eps=1e-12, **SIZES))
        theirs.load_state_dict(vit_state_dict(other, "hf-v5"), strict=True)
        near(other(x), theirs(x).logits)


def test_transformers_model_of_a_larger_image():
    theirs = transformers_model("ViTForImageClassification")
    x = torch.randn(2, 3, 32, 48)
    model = vit_from_weights(
        theirs.state_dict(), num_heads=4, image_size=(32, 48), resample="bicubic"
    )
    with torch.inference_mode():
        near(model(x), theirs(x, interpolate_pos_encoding=True).logits)


def test_transformers_pooler_is_pre_logits():
    theirs = transformers_model("ViTModel")
    model = VisionTransformer(
        image_size=24, patch_size=8, norm_eps=1e-12, pre_logits=True, **SIZES
    ).eval()
    weights = {f"vit.{name}": x for name, x in theirs.state_dict().items()}
    weights |= {"classifier.weight": torch.zeros(7, 48), "classifier.bias": torch.zeros(7)}
    load_vit_weights(model, weights)
    x = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        hidden = model.pre_logits(model.pool(model.forward_features(x))).tanh()
        near(hidden, theirs(x).pooler_output)


def test_transformers_reads_our_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = random(VisionTransformer(image_size=24, patch_size=8, norm_eps=1e-12, **SIZES))
    theirs = transformers_model("ViTForImageClassification")
    for layout in ("hf-v5", "hf-v4"):  # transformers renames the old names by itself
        theirs.config.save_pretrained(tmp_path)
        save_vit_weights(model, tmp_path / "model.safetensors", layout)
        read, told = transformers.ViTForImageClassification.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        x = torch.randn(2, 3, 24, 24)
        with torch.inference_mode():
            near(model(x), read.eval()(x).logits)


@pytest.fixture
def timm():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return importlib.import_module("timm")


NETWORKS = {
    "vit_tiny_patch16_224": (3, 48),
    "vit_small_patch32_224": (6, 96),
    "vit_tiny_r_s16_p8_224": (3, 64),
    "vit_small_r26_s32_224": (6, 64),
    "vit_base_r50_s16_224": (12, 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_timms_networks(timm, name, tmp_path):
    num_heads, size = NETWORKS[name]
    theirs = random(timm.create_model(name, img_size=size, num_classes=7))
    model = vit_from_weights(theirs.state_dict(), num_heads=num_heads)
    assert model.config["image_size"] == size
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = theirs(x)
        assert_near(model(x), expected, 1e-5)
        assert (model(x) - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max())
        # Ours in theirs, as a state dict and by timm's own reader of Google's files.
        again = timm.create_model(name, img_size=size, num_classes=7).eval()
        again.load_state_dict(vit_state_dict(model, "timm"), strict=True)
        assert torch.equal(again(x), expected)
        save_vit_weights(model, tmp_path / "a.npz", "google")
        again = timm.create_model(name, img_size=size, num_classes=7).eval()
        again.load_pretrained(str(tmp_path / "a.npz"))
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize("method", ["bicubic-antialias", "bilinear"])
def test_timms_resampling(timm, method, tmp_path):
    model = random(
        VisionTransformer.preset("Ti/16", "timm", image_size=64, num_classes=7, num_layers=2)
    )
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=7, depth=2).eval()
    if method == "bilinear":
        save_vit_weights(model, tmp_path / "a.npz", "google")
        theirs.load_pretrained(str(tmp_path / "a.npz"))
        weights = tmp_path / "a.npz"
    else:
        weights = vit_state_dict(model, "timm")
        filtered = timm.models.vision_transformer.checkpoint_filter_fn(dict(weights), theirs)
        theirs.load_state_dict(filtered)
    wide = vit_from_weights(weights, num_heads=3, style="timm", image_size=96, resample=method)
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        near(wide(x), theirs(x))


def test_timm_reads_our_big_vision_file(timm, tmp_path):
    model = random(
        VisionTransformer.preset("Ti/16", "timm", image_size=64, num_classes=7, num_layers=2)
    )
    save_vit_weights(model, tmp_path / "a.npz", "big-vision")
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=7, depth=2, no_embed_class=True
    ).eval()
    theirs.load_pretrained(str(tmp_path / "a.npz"))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        near(model(x), theirs(x))
        other = vit_from_weights(theirs.state_dict(), num_heads=3)
        near(other(x), theirs(x))


def test_timms_average_without_class_token(timm):
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=7, depth=2, class_token=False,
        global_pool="avg", fc_norm=False,
    )  # fmt: skip
    model = vit_from_weights(random(theirs).state_dict(), num_heads=3)
    assert model.config["pooling"] == "mean"
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        near(model(x), theirs(x))
