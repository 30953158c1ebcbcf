"""The parts of a residual network of bottlenecks, with a lambda layer where a convolution was.

Axes: B batch, C and D channels, H and W height and width. Sources: He et al. 2016 (bottlenecks),
He et al. 2019 (stem and shortcut of ResNet-D), Hu et al. 2018 (squeeze-excitation), Huang et al.
2016 (stochastic depth), Bello 2021, section 4 (lambda blocks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from subquad.layers.lambda_layer import LambdaLayer
from subquad.layers.stochastic_depth import StochasticDepth

Kind = Literal["C", "S", "L"]
KINDS: dict[str, str] = {
    "C": "a 3 x 3 convolution",
    "S": "a 3 x 3 convolution, and squeeze-excitation of the block's output",
    "L": "a lambda layer",
}
Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
STEMS: dict[str, tuple[tuple[int, ...], bool]] = {
    # Widths of the 3 x 3 convolutions (none: one of 7 x 7), and whether a maximum is pooled after.
    "plain": ((), True),
    "tiered": ((24, 32, 64), True),
    "rs": ((32, 32, 64), False),
}
STEM_WIDTH, EXPANSION = 64, 4
SQUEEZE = 4  # output channels over those that squeeze-excitation looks at them through


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What all blocks of a network share."""

    activation: Activation
    shortcut: Literal["conv", "pool"]
    pooling: Literal[2, 3]
    num_heads: int
    head_dim: int
    intra_depth: int
    window: int | None
    lambda_bias: bool


class ConvNorm(nn.Module):
    """A convolution without bias, batch-norm, and an activation unless it is None."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.Identity() if activation is None else ACTIVATIONS[activation]()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Apply them in this order."""
        y: Tensor = self.activation(self.norm(self.conv(x)))
        return y


class SqueezeExcitation(nn.Module):
    """Scale channels by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // SQUEEZE, 1)
        self.expand = nn.Conv2d(channels // SQUEEZE, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the channels, each times a number from 0 to 1."""
        means = x.mean((2, 3), keepdim=True)
        scales: Tensor = self.expand(self.reduce(means).relu()).sigmoid()
        return x * scales


class LambdaStage(nn.Module):
    """A lambda layer, an average that halves the sides where the block strides, norm, activation.

    The lambda layer works at the resolution that it is given.
    """

    def __init__(
        self, width: int, *, stride: int, grid: Sequence[int] | None, options: BlockOptions
    ) -> None:
        super().__init__()
        self.lambdas = LambdaLayer(
            width,
            num_heads=options.num_heads,
            head_dim=options.head_dim,
            intra_depth=options.intra_depth,
            window=options.window,
            grid=grid,
            bias=options.lambda_bias,
        )
        self.pool = nn.Identity() if stride == 1 else _halving(options.pooling)
        self.norm = nn.BatchNorm2d(width)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Apply them in this order."""
        y: Tensor = self.activation(self.norm(self.pool(self.lambdas(x))))
        return y


class Bottleneck(nn.Module):
    """1 x 1 to ``width``, a convolution or a lambda layer, 1 x 1 to 4 ``width``; and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        kind: Kind,
        *,
        stride: int,
        grid: Sequence[int] | None,
        drop_path: float,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        out_channels, act = EXPANSION * width, options.activation
        self.narrow = ConvNorm(in_channels, width, 1, activation=act)
        self.spatial: nn.Module = (
            LambdaStage(width, stride=stride, grid=grid, options=options)
            if kind == "L"
            else ConvNorm(width, width, 3, stride=stride, activation=act)
        )
        self.widen = ConvNorm(width, out_channels, 1)
        self.squeeze = SqueezeExcitation(out_channels) if kind == "S" else nn.Identity()
        self.drop_path = StochasticDepth(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _shortcut(in_channels, out_channels, stride, options)
        self.activation = ACTIVATIONS[act]()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the activation of shortcut and branch."""
        branch = self.drop_path(self.squeeze(self.widen(self.spatial(self.narrow(x)))))
        y: Tensor = self.activation(self.shortcut(x) + branch)
        return y


class Stem(nn.Module):
    """An image to a quarter of its sides, and 64 channels."""

    def __init__(self, in_channels: int, name: str, activation: Activation) -> None:
        super().__init__()
        widths, pools = STEMS[name]
        if not widths:
            convs = [ConvNorm(in_channels, STEM_WIDTH, 7, stride=2, activation=activation)]
        else:
            sizes = (in_channels, *widths)
            convs = [
                ConvNorm(a, b, 3, stride=2 if i == 0 else 1, activation=activation)
                for i, (a, b) in enumerate(zip(sizes, widths, strict=False))
            ]
        self.convs = nn.Sequential(*convs)
        self.pool: nn.Module = (
            nn.MaxPool2d(3, 2, 1)
            if pools
            else ConvNorm(STEM_WIDTH, STEM_WIDTH, 3, stride=2, activation=activation)
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 64 h w"]:
        """Return the features that the first stage takes."""
        y: Tensor = self.pool(self.convs(x))
        return y


def _halving(size: int) -> nn.Module:
    """Return an average over 2 x 2 or 3 x 3 pixels at every second place, odd sides rounded up."""
    if size == 3:
        return nn.AvgPool2d(3, 2, 1)
    return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)


def _shortcut(in_channels: int, out_channels: int, stride: int, options: BlockOptions) -> nn.Module:
    if options.shortcut == "conv" or stride == 1:
        return ConvNorm(in_channels, out_channels, 1, stride=stride)
    return nn.Sequential(_halving(2), ConvNorm(in_channels, out_channels, 1))
