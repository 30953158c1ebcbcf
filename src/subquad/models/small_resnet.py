"""Small residual networks for small images, with one of several layers where a convolution was.

Axes: B batch, C channels, H and W height and width of the image, K classes. Sources: He et al. 2016
(basic blocks and bottlenecks; for images of 32 pixels a 3 x 3 stem and three stages), Bello 2021,
section 4 (a lambda layer in a convolution's place, an average after it where the block strides).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from subquad.layers.image_attention import (
    AxialImageAttention,
    GlobalImageAttention,
    LinearImageAttention,
    LocalImageAttention,
)
from subquad.layers.lambda_layer import LambdaLayer
from subquad.models.image_baselines import check_sizes
from subquad.models.resnet_blocks import ConvNorm, SqueezeExcitation
from subquad.models.vit_parts import sides_of
from subquad.ops.checks import check_choice, check_fraction

KINDS: dict[str, str] = {
    "C": "a 3 x 3 convolution",
    "S": "a 3 x 3 convolution, and squeeze-excitation of the block's output",
    "L": "a lambda layer",
    "G": "global self-attention with relative positions",
    "R": "local self-attention with relative positions",
    "A": "axial self-attention with relative positions",
    "E": "linear attention without positions",
}
Block = Literal["basic", "bottleneck"]
EXPANSION: dict[Block, int] = {"basic": 1, "bottleneck": 4}


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What the layers of a network share that stand where convolutions were."""

    num_heads: int
    head_dim: int
    intra_depth: int
    window: int | None
    attention_window: int
    attention_head_dim: int


class SmallResNet(nn.Module):
    """Classify images; (B, C, H, W) -> (B, K).

    Args:
        stages: a word a stage, a letter a block: C a convolution, S a convolution with
            squeeze-excitation, L a lambda layer, G global, R local and A axial self-attention, E
            linear attention. The first block of all stages but the first halves the sides, odd ones
            rounded up; the width doubles.
        num_classes: K.
        in_channels: C.
        image_size: H and W of the largest images, or one number for both.
        width: channels inside a block of the first stage, and of the stem.
        block: "basic", two layers of the block's kind, or "bottleneck", one between two 1 x 1
            convolutions, the last of which widens four times.
        stem_stride: of the stem's 3 x 3 convolution, 1 or 2.
        num_heads: queries of a token in a lambda layer.
        head_dim: width of a query there.
        intra_depth: slices of a lambda layer's keys and values.
        window: odd side of what position sees in a lambda layer; None for the whole image.
        attention_window: odd side of what local attention sees.
        attention_head_dim: width of an attention head; a layer narrower than that has one head.
        dropout: before the last layer.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if an option does not fit.
    """

    def __init__(
        self,
        stages: Sequence[str],
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int | Sequence[int],
        width: int = 16,
        block: Block = "bottleneck",
        stem_stride: int = 1,
        num_heads: int = 4,
        head_dim: int = 16,
        intra_depth: int = 1,
        window: int | None = None,
        attention_window: int = 7,
        attention_head_dim: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        grid = sides_of(image_size)
        self.config: dict[str, Any] = {
            "stages": list(stages), "num_classes": num_classes, "in_channels": in_channels,
            "image_size": list(grid), "width": width, "block": block, "stem_stride": stem_stride,
            "num_heads": num_heads, "head_dim": head_dim, "intra_depth": intra_depth,
            "window": window, "attention_window": attention_window,
            "attention_head_dim": attention_head_dim, "dropout": dropout,
        }  # fmt: skip
        _check(self.config)
        options = LayerOptions(
            num_heads=num_heads, head_dim=head_dim, intra_depth=intra_depth, window=window,
            attention_window=attention_window, attention_head_dim=attention_head_dim,
        )  # fmt: skip
        self.stem = ConvNorm(in_channels, width, 3, stride=stem_stride, activation="relu")
        grid = _halved(grid) if stem_stride == 2 else grid
        parts, channels = [], width
        for number, kinds in enumerate(stages):
            inner = width * 2**number
            stage = nn.Sequential()
            for place, kind in enumerate(kinds):
                stride = 2 if number and not place else 1
                stage.append(
                    ResidualBlock(channels, inner, kind, block=block, stride=stride, grid=grid,
                                  options=options)
                )  # fmt: skip
                channels, grid = EXPANSION[block] * inner, _halved(grid) if stride == 2 else grid
            parts.append(stage)
        self.stages = nn.ModuleList(parts)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits of the classes.

        Raises:
            ValueError: if the images have other channels, or are too large for a layer's table.
        """
        channels = self.config["in_channels"]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x must have the shape (B, {channels}, H, W), got {tuple(x.shape)}")
        y = self.stem(x)
        for stage in self.stages:
            y = stage(y)
        logits: Tensor = self.head(self.dropout(y.mean((2, 3))))
        return logits


class ResidualBlock(nn.Module):
    """Layers of one kind, alone or between two 1 x 1 convolutions; and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        kind: str,
        *,
        block: Block,
        stride: int,
        grid: tuple[int, int],
        options: LayerOptions,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION[block] * width
        if block == "bottleneck":
            last: ConvNorm | PooledNorm = ConvNorm(width, out_channels, 1)
            self.branch = nn.Sequential(
                ConvNorm(in_channels, width, 1, activation="relu"),
                spatial(kind, width, width, stride=stride, grid=grid, options=options),
                nn.ReLU(),
                last,
            )
        else:
            after = _halved(grid) if stride == 2 else grid
            last = spatial(kind, width, width, stride=1, grid=after, options=options)
            self.branch = nn.Sequential(
                spatial(kind, in_channels, width, stride=stride, grid=grid, options=options),
                nn.ReLU(),
                last,
            )
        nn.init.zeros_(last.norm.weight)
        self.squeeze = SqueezeExcitation(out_channels) if kind == "S" else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the rectified sum of shortcut and branch."""
        y: Tensor = self.shortcut(x) + self.squeeze(self.branch(x))
        return y.relu()


class PooledNorm(nn.Module):
    """A layer over images, an average that halves the sides where the block strides, and a norm.

    ``grid`` is the height and width of the largest images that the layer is given.
    """

    def __init__(
        self, layer: nn.Module, channels: int, *, stride: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Apply them in this order."""
        y: Tensor = self.norm(self.pool(self.layer(x)))
        return y


def spatial(
    kind: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    grid: tuple[int, int],
    options: LayerOptions,
) -> ConvNorm | PooledNorm:
    """Return a layer that lets pixels see each other, with its norm and without an activation.

    All but convolutions work at the resolution that they are given, ``grid``.
    """
    if kind in "CS":
        return ConvNorm(in_channels, out_channels, 3, stride=stride)
    channels = in_channels, out_channels
    heads = math.gcd(out_channels, max(1, out_channels // options.attention_head_dim))
    layer: nn.Module
    if kind == "L":
        layer = LambdaLayer(
            *channels,
            num_heads=options.num_heads,
            head_dim=options.head_dim,
            intra_depth=options.intra_depth,
            window=options.window,
            grid=grid if options.window is None else None,
        )
    elif kind == "G":
        layer = GlobalImageAttention(*channels, num_heads=heads, grid=grid)
    elif kind == "R":
        layer = LocalImageAttention(*channels, num_heads=heads, window=options.attention_window)
    elif kind == "A":
        layer = AxialImageAttention(*channels, num_heads=heads, grid=grid)
    else:
        layer = LinearImageAttention(*channels, num_heads=heads)
    return PooledNorm(layer, out_channels, stride=stride, grid=grid)


def _halved(grid: tuple[int, int]) -> tuple[int, int]:
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def _check(config: dict[str, Any]) -> None:
    stages = config["stages"]
    if not stages or not all(kinds and set(kinds) <= set(KINDS) for kinds in stages):
        raise ValueError(f"stages must be words of the letters {', '.join(KINDS)}, got {stages}")
    check_sizes(config, "num_classes", "in_channels", "width", "attention_head_dim")
    check_choice("block", config["block"], tuple(EXPANSION))
    check_choice("stem_stride", config["stem_stride"], (1, 2))
    check_fraction("dropout", config["dropout"])
