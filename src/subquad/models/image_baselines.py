"""Networks that classify images without attention: what a Vision Transformer is measured against.

Axes: B batch, C channels, H and W height and width, N patches, D width, K classes. Sources: He et
al. 2016, section 4.2 (residual networks for small images); Tolstikhin et al. 2021, "MLP-Mixer";
Hochreiter and Schmidhuber 1997 (the LSTM).
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from subquad.layers.feed_forward import FeedForward
from subquad.models.resnet_blocks import ConvNorm
from subquad.models.vit_parts import sides_of
from subquad.ops.checks import check_divisible, check_positive


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch-norm beside a shortcut; the first one may stride."""

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, width, 3, stride=stride, activation="relu")
        self.second = ConvNorm(width, width, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = ConvNorm(in_channels, width, 1, stride=stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Return the sum of both ways, cut off at 0."""
        y: Tensor = (self.shortcut(x) + self.second(self.first(x))).relu()
        return y


class BasicResNet(nn.Module):
    """A residual network for small images: three stages, each half as large and twice as wide.

    Args:
        in_channels: C.
        num_classes: K.
        width: channels of the first stage.
        blocks: of each stage.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, width: int = 16, blocks: int = 1
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "num_classes": num_classes, "width": width,
            "blocks": blocks,
        }  # fmt: skip
        check_sizes(self.config, *self.config)
        layers = nn.Sequential(ConvNorm(in_channels, width, 3, activation="relu"))
        channels = width
        for stage in range(3):
            for i in range(blocks):
                wide, stride = width << stage, 2 if stage and not i else 1
                layers.append(BasicBlock(channels, wide, stride=stride))
                channels = wide
        self.layers = layers
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits, from the mean of the last features.

        Raises:
            ValueError: if the images have other channels.
        """
        channels = self.config["in_channels"]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x must have the shape (B, {channels}, H, W), got {tuple(x.shape)}")
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


class PixelMLP(nn.Module):
    """A network of plain layers over all pixels at once; it has no idea which are neighbours.

    Args:
        image_size: H and W, or one number for both.
        in_channels: C.
        num_classes: K.
        width: of the hidden layers.
        num_layers: hidden layers.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_channels: int,
        num_classes: int,
        width: int = 256,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "in_channels": in_channels, "num_classes": num_classes,
            "width": width, "num_layers": num_layers,
        }  # fmt: skip
        check_sizes(self.config, "in_channels", "num_classes", "width", "num_layers")
        self.image_shape = (in_channels, *sides_of(image_size))
        layers = nn.Sequential()
        inputs = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        for _ in range(num_layers):
            layers.extend([nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU()])
            inputs = width
        self.layers = layers
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits.

        Raises:
            ValueError: if the images have another shape.
        """
        check_images(x, self.image_shape)
        logits: Tensor = self.head(self.layers(x.flatten(1)))
        return logits


class MixerBlock(nn.Module):
    """A network across the N patches, the same for all channels, then one across the channels."""

    def __init__(self, num_patches: int, d_model: int, token_ff: int, channel_ff: int) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.tokens = FeedForward(num_patches, token_ff, activation="gelu")
        self.channels = FeedForward(d_model, channel_ff, activation="gelu")

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Mix, each on top of what came in."""
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channels(self.channel_norm(x))
        return y


class MLPMixer(nn.Module):
    """Patches mixed by plain layers, a fixed weight for each pair of places.

    Args:
        image_size: H and W, or one number for both.
        patch_size: side of a patch; divides both.
        in_channels: C.
        num_classes: K.
        d_model: D.
        num_layers: blocks.
        token_ff: hidden width of the networks across patches, by default D / 2.
        channel_ff: hidden width of those across channels, by default 4 D.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int,
        in_channels: int,
        num_classes: int,
        d_model: int = 64,
        num_layers: int = 4,
        token_ff: int | None = None,
        channel_ff: int | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "patch_size": patch_size, "in_channels": in_channels,
            "num_classes": num_classes, "d_model": d_model, "num_layers": num_layers,
            "token_ff": token_ff, "channel_ff": channel_ff,
        }  # fmt: skip
        names = ("patch_size", "in_channels", "num_classes", "d_model", "num_layers")
        check_sizes(self.config, *names)
        height, width = sides_of(image_size)
        for side in (height, width):
            check_divisible("image_size", side, patch_size)
        self.image_shape = (in_channels, height, width)
        self.proj = nn.Conv2d(in_channels, d_model, patch_size, patch_size)
        num_patches = height // patch_size * (width // patch_size)
        token_ff = max(1, d_model // 2) if token_ff is None else token_ff
        channel_ff = 4 * d_model if channel_ff is None else channel_ff
        self.blocks = nn.Sequential(
            *(MixerBlock(num_patches, d_model, token_ff, channel_ff) for _ in range(num_layers))
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits, from the mean of all patches.

        Raises:
            ValueError: if the images have another shape.
        """
        check_images(x, self.image_shape)
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class RowLSTM(nn.Module):
    """An LSTM that reads an image row by row, from the top; a row's C W values are one token.

    Args:
        image_size: H and W, or one number for both.
        in_channels: C.
        num_classes: K.
        hidden_size: width of the state.
        num_layers: LSTMs, each over the outputs of the one below.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_channels: int,
        num_classes: int,
        hidden_size: int = 128,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "image_size": image_size, "in_channels": in_channels, "num_classes": num_classes,
            "hidden_size": hidden_size, "num_layers": num_layers,
        }  # fmt: skip
        check_sizes(self.config, "in_channels", "num_classes", "hidden_size", "num_layers")
        self.image_shape = (in_channels, *sides_of(image_size))
        row = in_channels * self.image_shape[2]
        self.lstm = nn.LSTM(row, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits, from what the last LSTM says behind the last row.

        Raises:
            ValueError: if the images have another shape.
        """
        check_images(x, self.image_shape)
        outputs, _ = self.lstm(x.transpose(1, 2).flatten(2))
        logits: Tensor = self.head(outputs[:, -1])
        return logits


def check_sizes(config: dict[str, Any], *names: str) -> None:
    """Check that these options are ints of at least 1."""
    for name in names:
        check_positive(name, config[name])


def check_images(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that images (B, C, H, W) are of the shape that a network was built for.

    Raises:
        ValueError: if they are not.
    """
    if x.dim() != 4 or tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"x must have the shape (B, {wanted}), got {tuple(x.shape)}")
