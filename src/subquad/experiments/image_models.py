"""The networks that ``subquad train-images`` knows by name, new ones and trained ones."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from subquad.experiments.checkpoints import find_model
from subquad.models.lambda_resnet import LambdaResNet
from subquad.models.lambda_resnet import preset_options as resnet_options
from subquad.models.saving import load_model
from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_presets import preset_options as vit_options

SMALL_WIDTH = 32
SMALL_RESNETS = {
    "small-resnet": ("CC", "CC", "CC", "CC"),
    "small-lambda": ("CC", "CC", "LL", "LL"),
}
NAMES = (
    "small-vit", *SMALL_RESNETS, "vit:PRESET (vit:S/16, vit:R26+S/32, ...)",
    "lambda:PRESET (lambda:50, lambda:resnet50-CCLL, ...)",
)  # fmt: skip
SMALL_PATCHES = 8  # at least so many patches on a side


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a network is built for.

    Args:
        classes: how many.
        channels: of the images.
        image_size: side of the images.
        mixer: of Vision Transformers; None for softmax.
        dropout, drop_path: None leaves them as the model has them.
        checkpointing: whether the backward pass runs each block again, to save memory.
    """

    classes: int
    channels: int
    image_size: int
    mixer: str | None = None
    dropout: float | None = None
    drop_path: float | None = None
    checkpointing: bool = False

    def changes(self) -> dict[str, Any]:
        """Return the options that both families share, those left as they are left out."""
        shares = {"dropout": self.dropout, "drop_path": self.drop_path}
        return {
            "checkpointing": self.checkpointing,
            **{name: value for name, value in shares.items() if value is not None},
        }


def new_network(name: str, wanted: Network) -> VisionTransformer | LambdaResNet:
    """Return a new network.

    Raises:
        ValueError: if there is none of that name, or it does not fit the images.
    """
    family, _, preset = name.partition(":")
    options = {
        "num_classes": wanted.classes, "in_channels": wanted.channels, **wanted.changes(),
    }  # fmt: skip
    if name == "small-vit" or family == "vit":
        given = _small_vit(wanted.image_size) if family != "vit" else vit_options(preset)
        if wanted.mixer is not None:
            options["mixer"] = wanted.mixer
        return VisionTransformer(**{**given, **options, "image_size": wanted.image_size})
    if wanted.mixer is not None:
        raise ValueError(
            f"mixer must be left out but for Vision Transformers, got {wanted.mixer!r}"
        )
    if name in SMALL_RESNETS:
        return LambdaResNet(SMALL_RESNETS[name], width=SMALL_WIDTH, window=7, **options)
    if family == "lambda":
        given = resnet_options(preset)
        if "image_size" in given:  # the largest that global contexts see
            given["image_size"] = wanted.image_size
        return LambdaResNet(**{**given, **options})
    raise ValueError(f"model must be one of {', '.join(NAMES)}; got {name!r}")


def trained_network(name: str, wanted: Network) -> VisionTransformer | LambdaResNet:
    """Return a trained network, for other classes: its head is new, and all zeros.

    Tables of positions are resampled where the images have another size.

    Args:
        name: a run's folder, or the name of a packaged model.
        wanted: what it is to be used for; a mixer must not be asked for.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is no network of ours for images, or takes images of other channels.
    """
    if wanted.mixer is not None:
        raise ValueError(f"mixer must be left out with a trained model, got {wanted.mixer!r}")
    found = load_model(find_model(name))
    if not isinstance(found, VisionTransformer | LambdaResNet):
        raise ValueError(
            "start_from must name a VisionTransformer or a LambdaResNet, "
            f"got a {type(found).__name__}"
        )
    if found.config["in_channels"] != wanted.channels:
        raise ValueError(
            f"channels must be those of the trained model, {found.config['in_channels']}, "
            f"got {wanted.channels}"
        )
    model = type(found)(**{**found.config, **wanted.changes()})
    model.load_state_dict(found.state_dict())
    _new_head(model, wanted.classes)
    if isinstance(model, VisionTransformer):
        if model.config["image_size"] != wanted.image_size:
            model.resample(wanted.image_size)
    elif model.config["image_size"] not in (None, wanted.image_size):
        model.resample(wanted.image_size)
    return model


def set_batch_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Let a batch have this share in the running statistics of all batch norms."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = momentum


def _new_head(model: VisionTransformer | LambdaResNet, classes: int) -> None:
    if isinstance(model, VisionTransformer):
        model.reset_head(classes)
        return
    model.head = nn.Linear(model.head.in_features, classes)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    model.config["num_classes"] = classes


def _small_vit(image_size: int) -> dict[str, Any]:
    """Return a network of four layers; its stem of convolutions halves the sides while it may."""
    patch = 1
    while image_size % (2 * patch) == 0 and image_size // (2 * patch) >= SMALL_PATCHES:
        patch *= 2
    if patch == 1:
        raise ValueError(
            f"image_size must be even and at least {2 * SMALL_PATCHES} for small-vit, "
            f"got {image_size}"
        )
    return {
        "patch_size": patch, "stem": "conv", "pooling": "sequence", "d_model": 128,
        "num_layers": 4, "num_heads": 4, "d_ff": 256,
    }  # fmt: skip
