"""The options of vit-positions and vit-finetune. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from subquad.experiments.options import ImageData, at_least
from subquad.experiments.vit_options import PictureRowsOptions, ViTOptions, share


@dataclass(frozen=True, kw_only=True)
class ViTPositionsOptions(PictureRowsOptions):
    """Options of vit-positions; the rows set positions and pooling."""

    model: ViTOptions
    low_lr: float
    """Second, lower learning rate, at which class token and mean are compared besides."""
    few_shot_data: ImageData
    """Images to tell apart from a few of each class, by the features of a trained model."""
    few_shot_folder: Path | None = None
    """Folder that holds their files (default: where subquad data put them)."""
    few_shot_draws: int = 10
    """Draws of these few, whose shares right are averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "few_shot_draws", 1)
        if not 0 < self.low_lr < self.train.lr:
            raise ValueError(
                f"low_lr must be above 0 and below lr = {self.train.lr:g}, got {self.low_lr:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ViTFinetuneOptions(PictureRowsOptions):
    """Options of vit-finetune; the options of training are those of pre-training, and of models
    without any."""

    model: ViTOptions
    finetune_data: ImageData
    """Images to fine-tune on, of the same size and channels as those of --data."""
    finetune_folder: Path | None = None
    """Folder that holds their files (default: where subquad data put them)."""
    enlarge: int = 2
    """How many times larger the sides of images are in fine-tuning."""
    finetune_steps: int
    """Steps of fine-tuning at the higher resolution, and of learning the same from scratch."""
    finetune_lr: float = 0.03
    """Learning rate of fine-tuning."""
    second_lr: float = 0.1
    """Another one, in a row of its own."""
    finetune_warmup: int = 0
    """Steps in which it rises from 0."""
    masked_patch_size: int
    """Pixels along a side of a patch in the rows of masked patches; a multiple of 4."""
    masked_steps: int
    """Steps of pre-training by masked patches."""
    masked_lr: float
    """Learning rate of that."""
    label_steps: int
    """Steps of learning from a share of the labels."""
    small_share: float = 0.01
    """The smaller share of the labels, the same number of each class."""
    large_share: float = 0.1
    """The larger one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("enlarge", 2), ("finetune_steps", 1), ("finetune_warmup", 0), ("masked_steps", 1),
            ("label_steps", 1), ("masked_patch_size", 1),
        ):  # fmt: skip
            at_least(self, name, least)
        for name in ("finetune_lr", "second_lr", "masked_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if self.masked_patch_size % 4:
            raise ValueError(
                f"masked_patch_size must be a multiple of 4, got {self.masked_patch_size}"
            )
        for name in ("small_share", "large_share"):
            share(self, name)
        if not 0 < self.small_share < self.large_share:
            raise ValueError(
                f"small_share must be above 0 and below large_share = {self.large_share:g}, "
                f"got {self.small_share:g}"
            )
        warmup = max(self.train.warmup_steps, self.finetune_warmup)
        shortest = min(self.finetune_steps, self.masked_steps, self.label_steps)
        if shortest <= warmup:
            raise ValueError(
                "finetune_steps, masked_steps and label_steps must be above the longest warm-up "
                f"({warmup}), got {shortest}"
            )
