"""The options of the Vision Transformer's experiments. No torch here."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from subquad.experiments.language_options import listed
from subquad.experiments.options import (
    ImageData,
    TrainedOptions,
    TrainedRowsOptions,
    at_least,
)
from subquad.experiments.spec import MIXER_HELP, MixerName

Pooling = Literal["class", "mean", "sequence"]
PatchPositions = Literal["none", "learned", "learned-2d", "coordinates", "relative"]
PositionPlace = Literal["stem", "layers", "shared"]
Stem = Literal["patch", "conv"]


@dataclass(frozen=True, kw_only=True)
class ViTOptions:
    """The network: a small Vision Transformer."""

    patch_size: int
    """Pixels along one side of a patch; must divide the images' sides."""
    num_layers: int
    """Number of layers."""
    num_heads: int
    """Attention heads a layer; must divide d-model."""
    d_model: int
    """Width of the model."""
    d_ff: int | None = None
    """Width of the feed-forward network's hidden layer (default: 4 d-model)."""
    pooling: Pooling = "class"
    """What the head reads: a class token, or a mean of all tokens, plain or learned (sequence)."""
    positions: PatchPositions = "learned"
    """How the places of patches enter."""
    position_place: PositionPlace | None = None
    """Once before the first layer, in every layer a table of its own, or one table shared (default:
    stem, or layers for relative positions)."""
    stem: Stem = "patch"
    """What makes tokens of pixels: one linear map a patch, or a few convolutions."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    drop_path: float = 0.0
    """Share of the last layer's residual branches dropped in training; less in earlier layers."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "num_layers", "num_heads", "d_model", "d_ff"):
            at_least(self, name, 1)
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model ({self.d_model}), got {self.num_heads}"
            )
        for name in ("dropout", "drop_path"):
            share(self, name)

    def arguments(self) -> dict[str, Any]:
        """Return what ``VisionTransformer`` takes, but for images, classes and mixer."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PictureOptions(TrainedOptions):
    """What experiments that classify images share: data, variation, training."""

    seed: int = 0
    """Seed of the weights, and of the order of the images and their variation."""
    data: ImageData
    """The images; see subquad data."""
    data_folder: Path | None = None
    """Folder that holds the data's files (default: where subquad data put them)."""
    half_size: bool = False
    """Shrink the images to half width and height by 2 x 2 means."""
    shift: int = 0
    """Move training images by up to so many pixels, down and across."""
    mirror: bool = False
    """Mirror half of the training images, left and right."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        at_least(self, "shift", 0)
        share(self, "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class ViTFashionOptions(PictureOptions):
    """Options of vit-fashion."""

    mixer: MixerName
    """The attention of every layer."""
    model: ViTOptions


@dataclass(frozen=True, kw_only=True)
class PictureRowsOptions(PictureOptions, TrainedRowsOptions):
    """Options of those that train many models, one a row; --max-steps and --minutes are a row's."""


@dataclass(frozen=True, kw_only=True)
class ViTMixersOptions(PictureRowsOptions):
    """Options of vit-fashion-mixers."""

    mixers: str
    """Which mixers have a row, with commas between."""
    resnet_width: int
    """Channels of the convolutional network's first stage; 0 leaves the network out."""
    model: ViTOptions

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "resnet_width", 0)
        check_mixers(self.mixers)


@dataclass(frozen=True, kw_only=True)
class ViTResolutionOptions(PictureRowsOptions):
    """Options of vit-resolution."""

    mixers: str
    """Which mixers, with commas between."""
    patch_sizes: tuple[int, ...]
    """Patches whose models are trained: they must divide the images' sides."""
    timed_upsampled: bool
    """Time models on images of twice the sides besides, a patch a pixel; none is trained."""
    model: ViTOptions
    """The same for all but for its patches."""
    timed_batch: int
    """Images at once where time and memory are measured."""
    repetitions: int
    """Rounds of timing; each times all mixers once."""
    seconds: float
    """Budget for the rounds of one number of patches; at least three are made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixers(self.mixers)
        for name in ("timed_batch", "repetitions"):
            at_least(self, name, 1)
        if not self.patch_sizes or len(set(self.patch_sizes)) < len(self.patch_sizes):
            raise ValueError(
                f"patch_sizes must be at least one, none twice, got {self.patch_sizes}"
            )
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds:g}")


@dataclass(frozen=True, kw_only=True)
class InductiveBiasOptions(PictureRowsOptions):
    """Options of vit-inductive-bias."""

    networks: str
    """Which networks, with commas between."""
    train_images: tuple[int, ...]
    """How many training images the rows get."""
    model: ViTOptions
    """The Vision Transformer; the hybrid has the same with a stem of convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("networks", self.networks, NETWORKS)
        sizes = self.train_images
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"train_images must be above 0 and none twice, got {sizes}")


BIDIRECTIONAL = (*MIXER_HELP, "linformer")  # which has no causal form
NETWORKS = {
    "vit": "Vision Transformer",
    "hybrid": "the same with a stem of convolutions",
    "resnet": "residual network of convolutions",
    "mlp": "plain layers over all pixels",
    "mixer": "MLP-Mixer",
    "lstm": "LSTM over the rows of the image",
}


def check_mixers(names: str) -> None:
    """Refuse an unknown mixer, one named twice, and none at all.

    Raises:
        ValueError: naming it.
    """
    check_names("mixers", names, BIDIRECTIONAL)


def check_names(option: str, names: str, known: Collection[str]) -> None:
    """Refuse an option that names something unknown, or something twice, or nothing.

    Raises:
        ValueError: if it does.
    """
    for name in listed(names):
        if name not in known:
            raise ValueError(f"{option} must be among {', '.join(known)}, got {name!r}")
    if not listed(names) or len(set(listed(names))) < len(listed(names)):
        raise ValueError(f"{option} must be at least one, none twice, got {names!r}")


def share(options: object, name: str) -> None:
    """Refuse what is not at least 0 and below 1.

    Raises:
        ValueError: if it is not.
    """
    value = getattr(options, name)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value:g}")
