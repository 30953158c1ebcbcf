"""LambdaResNets: residual networks whose blocks hold convolutions or lambda layers.

Axes: B batch, C channels, H and W height and width of the image, K classes. Source: Bello 2021,
"LambdaNetworks", sections 4 and 5; for the family of hybrids Bello et al. 2021, "Revisiting
ResNets" (stem, shortcut, squeeze-excitation); timm's layouts for the names that begin with lambda_.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from subquad.layers.checkpointing import run
from subquad.models.resnet_blocks import (
    ACTIVATIONS,
    EXPANSION,
    KINDS,
    STEM_WIDTH,
    STEMS,
    Activation,
    BlockOptions,
    Bottleneck,
    LambdaStage,
    Stem,
)
from subquad.ops.checks import check_choice, check_positive

BLOCKS = {
    50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
    270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4),
}  # fmt: skip
# Which blocks of the third stage hold a lambda layer: every so manieth, up to the last one named.
EVERY = {
    50: (3, 3), 101: (6, 18), 152: (5, 30), 200: (5, 30), 270: (8, 48), 350: (10, 60),
    420: (10, 80),
}  # fmt: skip
RS = {"stem": "rs", "shortcut": "pool"}
TIMM = {"stem": "tiered", "pooling": 2, "window": 9}
PRESETS: dict[str, dict[str, Any]] = {
    "lambda_resnet26t": {"stages": ("CC", "CC", "CL", "LL"), **TIMM},
    "lambda_resnet26rpt_256": {
        "stages": ("CC", "CC", "CL", "LL"), **TIMM,
        "window": None, "image_size": 256, "lambda_bias": False,
    },
    "lambda_resnet50ts": {
        "stages": ("CCC", "CCCL", "CLCLCL", "CLC"), **TIMM, "activation": "silu",
    },
}  # fmt: skip
PATTERN = re.compile(r"resnet(-rs-)?(\d+)-([CSL]{4})")


class LambdaResNet(nn.Module):
    """Classify images; (B, C, H, W) -> (B, K).

    Args:
        stages: the four stages, a letter a block: C a convolution, S a convolution with
            squeeze-excitation, L a lambda layer. The first block of all stages but the first halves
            the sides.
        num_classes: K.
        in_channels: C.
        stem: "plain" (7 x 7 and a maximum), "tiered" (timm's three convolutions and a maximum) or
            "rs" (three convolutions and a fourth that strides).
        shortcut: where a block strides, a strided convolution ("conv") or an average before one
            ("pool").
        pooling: side of the average after a lambda layer that strides.
        activation: "relu" or "silu".
        width: channels inside a block of the first stage; doubled from stage to stage.
        num_heads: queries of a token in a lambda layer.
        head_dim: width of a query.
        intra_depth: slices of a lambda layer's keys and values.
        window: side of what position sees; None for all of an image of ``image_size``.
        image_size: of the largest image, if ``window`` is None.
        lambda_bias: a constant to each row of the position lambdas, as published code has.
        drop_path: share of residual branches that training drops, rising from 0 to this.
        dropout: before the last layer.
        zero_init: start with all residual branches at 0.
        checkpointing: keep only the inputs of blocks for the backward pass, which then runs each
            block again.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if an option does not fit.
    """

    def __init__(
        self,
        stages: Sequence[str],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "plain",
        shortcut: Literal["conv", "pool"] = "conv",
        pooling: Literal[2, 3] = 3,
        activation: Activation = "relu",
        width: int = 64,
        num_heads: int = 4,
        head_dim: int = 16,
        intra_depth: int = 1,
        window: int | None = 23,
        image_size: int | None = None,
        lambda_bias: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        zero_init: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "stages": list(stages), "num_classes": num_classes, "in_channels": in_channels,
            "stem": stem, "shortcut": shortcut, "pooling": pooling, "activation": activation,
            "width": width, "num_heads": num_heads, "head_dim": head_dim,
            "intra_depth": intra_depth, "window": window, "image_size": image_size,
            "lambda_bias": lambda_bias, "drop_path": drop_path, "dropout": dropout,
            "zero_init": zero_init, "checkpointing": checkpointing,
        }  # fmt: skip
        _check(self.config)
        options = BlockOptions(
            activation=activation, shortcut=shortcut, pooling=pooling, num_heads=num_heads,
            head_dim=head_dim, intra_depth=intra_depth, window=window, lambda_bias=lambda_bias,
        )  # fmt: skip
        self.stem = Stem(in_channels, stem, activation)
        self.stages = _stages(
            stages, options, width=width, image_size=image_size, drop_path=drop_path
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(EXPANSION * _width(width, len(stages) - 1), num_classes)
        self._reset(zero_init)

    def _reset(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if zero_init and isinstance(module, Bottleneck):
                nn.init.zeros_(module.widen.norm.weight)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "LambdaResNet":
        """Build a published network.

        Args:
            name: "50", "101", "152", "200", "270", "350", "420": the hybrids of the paper's curve;
                "resnet50-CCLL" and the like: a ResNet of a depth, a letter a stage; "resnet-rs-101-
                SSSS" and the like: with the stem and shortcut of the hybrids; "lambda_resnet26t",
                "lambda_resnet26rpt_256", "lambda_resnet50ts": timm's.
            changes: options in place of the preset's.

        Raises:
            ValueError: if there is no such preset, or an option does not fit.
        """
        return cls(**{**preset_options(name), **changes})

    def resample(self, image_size: int) -> None:
        """Stretch the tables of global contexts to another largest image, linearly.

        The tables are new parameters: an optimiser made before does not know them.

        Raises:
            TypeError: if ``image_size`` is not an int.
            ValueError: if it is below 1, or the network has windows.
        """
        check_positive("image_size", image_size)
        if self.config["image_size"] is None:
            raise ValueError(
                f"resample needs a network without windows, got window={self.config['window']}"
            )
        for i, stage in enumerate(self.stages):
            for b, block in enumerate(cast(nn.Sequential, stage)):
                assert isinstance(block, Bottleneck)
                if isinstance(block.spatial, LambdaStage):
                    side = _side(image_size, i, b)
                    block.spatial.lambdas.resample((side, side))
        self.config["image_size"] = image_size

    def forward_features(
        self, x: Float[Tensor, "B C H W"]
    ) -> list[Float[Tensor, "B channels h w"]]:
        """Return the pyramid C2 to C5, at a 4th, 8th, 16th and 32nd of the image's sides.

        Raises:
            ValueError: if a shape does not fit, or the image is larger than ``image_size``.
        """
        if x.dim() != 4 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"x must have the shape (B, {self.config['in_channels']}, H, W), "
                f"got {tuple(x.shape)}"
            )
        x = self.stem(x)
        pyramid = []
        for stage in self.stages:
            for block in cast(nn.Sequential, stage):
                x = run(block, x, again=self.config["checkpointing"])
            pyramid.append(x)
        return pyramid

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits of the classes."""
        means = self.forward_features(x)[-1].mean((2, 3))
        logits: Tensor = self.head(self.dropout(means))
        return logits


def preset_options(name: str) -> dict[str, Any]:
    """Return the options of a preset; see ``LambdaResNet.preset``.

    Raises:
        ValueError: if there is none of that name.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    if name in map(str, BLOCKS):
        return {"stages": _hybrid(int(name)), **RS}
    match = PATTERN.fullmatch(name)
    if match and int(match[2]) in BLOCKS:
        counts = BLOCKS[int(match[2])]
        stages = tuple(kind * count for kind, count in zip(match[3], counts, strict=True))
        return {"stages": stages, **(RS if match[1] else {})}
    depths = ", ".join(map(str, BLOCKS))
    raise ValueError(
        f"name must be a depth of {depths}, resnet50-CCLL or resnet-rs-50-CCLL with any of these "
        f"depths and letters C, S, L, or one of {', '.join(PRESETS)}; got {name!r}"
    )


def _hybrid(depth: int) -> tuple[str, ...]:
    first, second, third, fourth = BLOCKS[depth]
    step, last = EVERY[depth]
    kinds = ["L" if n % step == 0 and n <= last else "C" for n in range(1, third + 1)]
    return "S" * first, "S" * second, "".join(kinds), "L" * fourth


def _stages(
    stages: Sequence[str],
    options: BlockOptions,
    *,
    width: int,
    image_size: int | None,
    drop_path: float,
) -> nn.ModuleList:
    """Return the blocks, stage by stage; more branches are dropped from block to block."""
    built = nn.ModuleList()
    channels, done, count = STEM_WIDTH, 0, sum(map(len, stages))
    for i, kinds in enumerate(stages):
        blocks = nn.Sequential()
        for b, kind in enumerate(kinds):
            side = None if image_size is None or kind != "L" else _side(image_size, i, b)
            blocks.append(
                Bottleneck(
                    channels, _width(width, i), kind,  # type: ignore[arg-type]
                    stride=2 if _strides(i, b) else 1,
                    grid=None if side is None else (side, side),
                    drop_path=drop_path * done / max(1, count - 1), options=options,
                )
            )  # fmt: skip
            channels, done = EXPANSION * _width(width, i), done + 1
        built.append(blocks)
    return built


def _strides(stage: int, block: int) -> bool:
    return stage > 0 and block == 0


def _width(first: int, stage: int) -> int:
    """Return the channels inside the blocks of a stage."""
    return first << stage


def _side(image_size: int, stage: int, block: int) -> int:
    """Return the side of what a lambda layer is given: before the stride, where its block has one.

    The stem has halved the image's side twice.
    """
    side = image_size
    for _ in range(2 + stage - _strides(stage, block)):
        side = (side + 1) // 2
    return side


def _check(config: dict[str, Any]) -> None:
    stages = config["stages"]
    if len(stages) != 4 or not all(kinds and set(kinds) <= set(KINDS) for kinds in stages):
        raise ValueError(
            f"stages must be four words of the letters {', '.join(KINDS)}, got {stages}"
        )
    for name in ("num_classes", "in_channels", "width"):
        check_positive(name, config[name])
    for name, known in (
        ("stem", tuple(STEMS)), ("shortcut", ("conv", "pool")), ("pooling", (2, 3)),
        ("activation", tuple(ACTIVATIONS)),
    ):  # fmt: skip
        check_choice(name, config[name], known)
    if not isinstance(config["checkpointing"], bool):
        raise ValueError(f"checkpointing must be False or True, got {config['checkpointing']!r}")
    for name in ("drop_path", "dropout"):
        if not 0 <= config[name] < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {config[name]:g}")
    window, image_size = config["window"], config["image_size"]
    if (window is None) == (image_size is None):
        raise ValueError(
            f"one of window and image_size must be given, got {window} and {image_size}"
        )
    if image_size is not None:
        check_positive("image_size", image_size)
