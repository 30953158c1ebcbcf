"""The residual network before a hybrid Vision Transformer: no batch-norm, any batch size.

Convolutions have their weights standardised when they are used, not when they are stored; groups
of channels are normalised; padding is TensorFlow's "SAME". Two published forms differ in what they
add to a variance, ``STYLES``. Axes: B batch, C channels, H and W height and width.
Source: Kolesnikov et al. 2020, "Big Transfer"; Qiao et al. 2019 (weight standardisation).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.ops.checks import check_choice

StemStyle = Literal["google", "timm"]
WIDTH, EXPANSION, GROUPS = 64, 4, 32


class Constants(NamedTuple):
    """What is added for stability: to a variance or to its root, and in GroupNorm."""

    variance: float
    deviation: float
    group_norm: float


STYLES: dict[str, Constants] = {
    "google": Constants(0.0, 1e-5, 1e-6),
    "timm": Constants(1e-8, 0.0, 1e-5),
}


class StdConv2d(nn.Conv2d):
    """A convolution without bias, its weights of each output brought to mean 0 and variance 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        style: StemStyle,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.constants = STYLES[style]

    def standardized(self) -> Float[Tensor, "D C K K"]:
        """Return the weights that are used, computed in float32 or wider."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        variance, mean = torch.var_mean(
            self.weight.to(dtype), dim=(1, 2, 3), correction=0, keepdim=True
        )
        scale = (variance + self.constants.variance).sqrt() + self.constants.deviation
        return ((self.weight.to(dtype) - mean) / scale).to(self.weight.dtype)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Convolve; sides become side / stride, rounded up."""
        size, stride = self.kernel_size[0], self.stride[0]
        return F.conv2d(_same(x, size, stride, 0.0), self.standardized(), None, stride)


class GroupedBottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each with its norm; a shortcut; ReLU behind each."""

    def __init__(self, in_channels: int, width: int, *, stride: int, style: StemStyle) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = StdConv2d(in_channels, width, 1, style=style)
        self.norm1 = _norm(width, style)
        self.conv2 = StdConv2d(width, width, 3, stride=stride, style=style)
        self.norm2 = _norm(width, style)
        self.conv3 = StdConv2d(width, out_channels, 1, style=style)
        self.norm3 = _norm(out_channels, style)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                StdConv2d(in_channels, out_channels, 1, stride=stride, style=style),
                _norm(out_channels, style),
            )
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the activation of shortcut and branch."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y))
        out: Tensor = (self.shortcut(x) + y).relu()
        return out


class Backbone(nn.Module):
    """A 7 x 7 convolution and a maximum, both striding, then stages; all but the first stride."""

    def __init__(self, in_channels: int, stages: Sequence[int], *, style: StemStyle) -> None:
        super().__init__()
        self.conv = StdConv2d(in_channels, WIDTH, 7, stride=2, style=style)
        self.norm = _norm(WIDTH, style)
        self.stages = nn.ModuleList()
        channels = WIDTH
        for i, count in enumerate(stages):
            blocks = nn.Sequential()
            for b in range(count):
                stride = 2 if i > 0 and b == 0 else 1
                blocks.append(GroupedBottleneck(channels, WIDTH << i, stride=stride, style=style))
                channels = EXPANSION * WIDTH << i
            self.stages.append(blocks)
        self.out_channels = channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the last stage's features."""
        x = self.norm(self.conv(x)).relu()
        x = F.max_pool2d(_same(x, 3, 2, -torch.inf), 3, 2)
        for stage in self.stages:
            x = stage(x)
        return x


def backbone(in_channels: int, stages: Sequence[int], *, style: StemStyle) -> Backbone:
    """Return a residual network with so many blocks in its stages.

    Raises:
        ValueError: if ``style`` is unknown.
    """
    check_choice("stem_style", style, tuple(STYLES))
    return Backbone(in_channels, stages, style=style)


def _norm(channels: int, style: StemStyle) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=STYLES[style].group_norm)


def _same(x: Tensor, size: int, stride: int, value: float) -> Tensor:
    """Pad as TensorFlow does for "SAME": what is odd goes below and to the right."""
    pads = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[2:]]
    (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in pads)
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x
