"""The options that experiments share. Every field becomes an option of the command line.

No torch here: ``subquad run EXPERIMENT --help`` must answer at once. The classes of models and
tasks take plain arguments and know nothing of these.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from subquad.experiments.spec import MixerName, Scale
from subquad.tasks.config import Device, Optimizer, Precision, Schedule, TrainConfig

Norm = Literal["pre", "post"]
Positions = Literal[
    "none", "sinusoidal", "sinusoidal-concat", "learned", "rotary", "learned-rotary"
]
ImageData = Literal["embedded-mnist", "mnist", "fashion-mnist", "cifar10"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network."""

    num_layers: int
    """Number of layers."""
    num_heads: int
    """Attention heads a layer; must divide d-model."""
    d_model: int
    """Width of the model."""
    d_ff: int
    """Width of the feed-forward network's hidden layer."""
    dropout: float
    """Share of activations dropped in training."""
    norm: Norm
    """LayerNorm before each sub-layer (pre) or after it (post, as the paper's code)."""
    positions: Positions
    """How positions enter (sinusoidal-concat as the paper's code)."""
    position_width: int | None = None
    """Width of the concatenated positions (default: half of d-model)."""
    activation: Literal["relu", "gelu"] = "relu"
    """Between the two maps of the feed-forward network."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "d_model", "d_ff", "position_width"):
            at_least(self, name, 1)
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model ({self.d_model}), got {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout:g}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The training."""

    minutes: float | None = None
    """Train for about this long; turned into a number of steps when the run starts."""
    max_steps: int | None = None
    """Train for exactly this many steps (instead of --minutes)."""
    batch_size: int
    """Images (or sequences) in one step."""
    grad_accumulation: int = 1
    """Add up the gradients of this many batches before each update."""
    optimizer: Optimizer
    """radam is the one the paper's authors released."""
    lr: float
    """Learning rate."""
    schedule: Schedule
    """cosine falls to min-lr-ratio; step falls once, as the paper's copy task."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the highest one."""
    drop_at: float = 0.3
    """Where the schedule "step" falls, as a share of all steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    beta2: float = 0.999
    """Decay rate of the optimiser's running mean of squares."""
    clip_norm: float | None = None
    """Largest norm of all gradients together (radam clips each tensor to 1 besides)."""
    precision: Precision = "fp32"
    """Arithmetic of the matrix products."""
    log_every: int = 20
    """Steps between two lines of metrics.csv."""
    eval_every: int = 500
    """Steps between two quick evaluations on test data."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; a killed run goes on from the last one."""

    def __post_init__(self) -> None:  # the rest is checked by TrainConfig, which names two betas
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be at least 0 and below 1, got {self.beta2:g}")


UNROTATED = ("lambda", "lstm")


def suited_to(mixer: MixerName, model: ModelOptions) -> ModelOptions:
    """Return ``model`` with positions that ``mixer`` can take; some have nothing to rotate."""
    without_rotary: dict[Positions, Positions] = {
        "rotary": "sinusoidal", "learned-rotary": "learned",
    }  # fmt: skip
    if mixer not in UNROTATED or model.positions not in without_rotary:
        return model
    return replace(model, positions=without_rotary[model.positions])


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """The scale, which an experiment has and the demo has not."""

    scale: Scale
    """How much to compute; sets the defaults of all options below."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """A model of images: how it is trained, and what it draws in the end."""

    mixer: MixerName
    """The attention of every layer."""
    seed: int = 0
    """Seed of the weights, of the order of the images and of the samples."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    data: ImageData
    """The images; see subquad data."""
    data_folder: Path | None = None
    """Folder that holds the data's files (default: where subquad data put them)."""
    half_size: bool = False
    """Shrink the images to half width and height by 2 x 2 means."""
    samples: int = 64
    """Images to generate at the end."""
    completions: int = 16
    """Test images to complete from their top half at the end."""
    class_conditional: bool = False
    """Tell the model each image's class; subquad sample then takes --label."""
    num_mixtures: int = 10
    """Logistic distributions mixed for each pixel."""
    model: ModelOptions
    train: TrainOptions

    def __post_init__(self) -> None:
        at_least(self, "samples", 1)
        at_least(self, "completions", 0)
        at_least(self, "num_mixtures", 1)


@dataclass(frozen=True, kw_only=True)
class PixelOptions(ImageOptions, ScaleOptions):  # in this order, help lists the scale first
    """Options of the image experiments."""


@dataclass(frozen=True, kw_only=True)
class CopyOptions(ScaleOptions):
    """Options of the copy task."""

    mixer: MixerName
    """The attention of every layer."""
    seed: int = 0
    """Seed of the weights and of the sequences."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    max_len: int = 128
    """Length of the sequences."""
    num_symbols: int = 10
    """Symbols to copy, besides the separator."""
    model: ModelOptions
    train: TrainOptions

    def __post_init__(self) -> None:
        at_least(self, "max_len", 5)
        at_least(self, "num_symbols", 1)


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(ScaleOptions):
    """What the options of an experiment that trains share."""

    seed: int = 0
    """Seed of the weights and of the data's order."""
    device: Device = "auto"
    """auto takes the GPU where there is one."""
    train: TrainOptions


@dataclass(frozen=True, kw_only=True)
class TrainedRowsOptions(TrainedOptions):
    """Options of the experiments that train many models, one a row."""

    seed: int = 0
    """Seed of the weights and of the sequences, the same in all rows."""

    @property
    def mixer(self) -> str:
        """What stands for the mixer in names of folders: a run has all of its rows."""
        return "all"


@dataclass(frozen=True, kw_only=True)
class RowsOptions(TrainedRowsOptions):
    """Options of those whose models are new; see row_options."""

    model: ModelOptions


@dataclass(frozen=True, kw_only=True)
class CopyRowsOptions(RowsOptions):
    """Options of those whose rows learn to copy."""

    max_len: int
    """Length of the sequences to copy."""
    num_symbols: int = 10
    """Symbols to copy, besides the separator."""

    def __post_init__(self) -> None:
        at_least(self, "max_len", 8)
        at_least(self, "num_symbols", 1)


OptionsT = TypeVar("OptionsT", PixelOptions, CopyOptions, RowsOptions, TrainedRowsOptions)


def resolve_duration(options: OptionsT, preset: OptionsT) -> OptionsT:
    """Return ``options`` with one length of training: a new one takes the place of the preset's.

    Raises:
        ValueError: if both --minutes and --max-steps were given, or neither is left.
    """
    given, default = options.train, preset.train
    if given.minutes is not None and given.max_steps is not None:
        if given.minutes == default.minutes and default.max_steps is None:
            return replace(options, train=replace(given, minutes=None))
        if given.max_steps == default.max_steps and default.minutes is None:
            return replace(options, train=replace(given, max_steps=None))
        raise ValueError(
            f"only one of --minutes and --max-steps may be given, "
            f"got {given.minutes:g} and {given.max_steps}"
        )
    if given.minutes is None and given.max_steps is None:
        raise ValueError("one of --minutes and --max-steps must be given, got none")
    return options


def train_config(options: ImageOptions | CopyOptions | TrainedOptions) -> TrainConfig:
    """Return the settings of the training loop.

    Raises:
        ValueError: if one is out of its range.
    """
    settings = asdict(options.train)
    betas = (0.9, settings.pop("beta2"))
    return TrainConfig(**settings, betas=betas, seed=options.seed, device=options.device)


def at_least(options: object, name: str, least: int) -> None:
    """Refuse a number below ``least``; None passes.

    Raises:
        ValueError: if it is.
    """
    value = getattr(options, name)
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
