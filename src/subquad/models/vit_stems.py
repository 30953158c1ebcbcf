"""Images to tokens: patches, patches of a residual network's features, small convolutions.

Axes: B batch, C channels of the image, H and W its sides, D width of a token, h and w the grid.
Sources: Dosovitskiy et al. 2021, section 3.1 (patches, hybrids); Kolesnikov et al. 2020 (the
residual network: weights standardised, groups normalised); Hassani et al. 2021 (convolutions).
"""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from subquad.models.vit_backbone import StemStyle as StemStyle
from subquad.models.vit_backbone import backbone
from subquad.ops.checks import check_choice, check_positive

StemName = Literal["patch", "conv", "r-ti", "r26", "r50", "r50-3"]

# Blocks of each stage; none: the first convolution and the maximum alone.
STAGES: dict[str, tuple[int, ...]] = {
    "r-ti": (), "r26": (2, 2, 2, 2), "r50": (3, 4, 6, 3), "r50-3": (3, 4, 9),
}  # fmt: skip
STEMS: tuple[StemName, ...] = ("patch", "conv", "r-ti", "r26", "r50", "r50-3")
PATCH_SIZES = {"patch": 16, "conv": 4, "r-ti": 32, "r26": 32, "r50": 32, "r50-3": 16}
CONV_WIDTH = 64


class PatchStem(nn.Module):
    """One linear map of each patch, as a convolution that strides by its own size."""

    def __init__(self, in_channels: int, d_model: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, d_model, patch_size, patch_size)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return a token for each patch."""
        tokens: Tensor = self.proj(x)
        return tokens


class HybridStem(nn.Module):
    """A residual network, and one linear map of each patch of its features."""

    def __init__(
        self, in_channels: int, d_model: int, patch_size: int, *, name: str, style: StemStyle
    ) -> None:
        super().__init__()
        self.backbone = backbone(in_channels, STAGES[name], style=style)
        side = patch_size // reduction(name)
        self.proj = nn.Conv2d(self.backbone.out_channels, d_model, side, side)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return a token for each patch of features."""
        tokens: Tensor = self.proj(self.backbone(x))
        return tokens


class ConvStem(nn.Module):
    """Layers of a 3 x 3 convolution, a ReLU and a maximum over 3 x 3 at every second place.

    The last convolution, ``proj``, makes tokens; those before it, ``convs``, are 64 channels wide.
    None has a bias, as published.
    """

    def __init__(self, in_channels: int, d_model: int, patch_size: int) -> None:
        super().__init__()
        widths = [in_channels] + [CONV_WIDTH] * (patch_size.bit_length() - 2)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.proj = nn.Conv2d(widths[-1], d_model, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return a token for each place of the last maximum."""
        for conv in (*self.convs, self.proj):
            x = self.pool(conv(x).relu())
        return x


def reduction(name: str) -> int:
    """Return how many pixels a side of one feature of a stem's network stands for."""
    return 4 << max(0, len(STAGES[name]) - 1) if name in STAGES else 1


def make_stem(
    name: StemName, in_channels: int, d_model: int, patch_size: int, *, style: StemStyle
) -> nn.Module:
    """Return a stem of (B, C, H, W) to (B, D, H / patch_size, W / patch_size).

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a name or a number does not fit.
    """
    check_choice("stem", name, STEMS)
    check_positive("in_channels", in_channels)
    check_positive("d_model", d_model)
    check_positive("patch_size", patch_size)
    if name == "patch":
        return PatchStem(in_channels, d_model, patch_size)
    if name == "conv":
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(
                f'patch_size must be a power of 2 from 2 on with stem="conv", got {patch_size}'
            )
        return ConvStem(in_channels, d_model, patch_size)
    if patch_size % reduction(name):
        raise ValueError(
            f'patch_size must be a multiple of {reduction(name)} with stem="{name}", '
            f"got {patch_size}"
        )
    return HybridStem(in_channels, d_model, patch_size, name=name, style=style)
