"""The options of each experiment of many rows. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from subquad.experiments.options import CopyRowsOptions, ImageData, at_least
from subquad.experiments.spec import MIXER_HELP


@dataclass(frozen=True, kw_only=True)
class CompareCopyOptions(CopyRowsOptions):
    """Options of compare-copy."""

    mixers: str
    """Which rows, with commas between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"mixers must be at least one, none twice, got {self.mixers!r}")
        for name in self.names:
            if name not in MIXER_HELP:
                raise ValueError(f"mixers must be among {', '.join(MIXER_HELP)}, got {name!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """The mixers, in the order given."""
        return tuple(word.strip() for word in self.mixers.split(",") if word.strip())


@dataclass(frozen=True, kw_only=True)
class FeatureMapsOptions(CopyRowsOptions):
    """Options of feature-maps; --max-steps and --minutes are those of a row."""

    image_steps: int
    """Training steps of a row on images; with --minutes it gets these instead."""
    data: ImageData
    """The images, shrunk to half width and height; see subquad data."""
    data_folder: Path | None = None
    """Folder that holds the data's files (default: where subquad data put them)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "image_steps", 1)
        warmup = self.train.warmup_steps
        if self.train.minutes is None and self.image_steps <= warmup:
            raise ValueError(
                f"image_steps must be above warmup_steps = {warmup}, got {self.image_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class HybridShareOptions(CopyRowsOptions):
    """Options of hybrid-share."""

    num_pairs: int
    """Keys with their values in a sequence of associative recall, each asked once."""
    num_keys: int = 32
    """Keys to draw from."""
    num_values: int = 32
    """Values to draw from."""
    softmax_window: int | None = None
    """What softmax heads see on one side, the token itself included; None for all tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("num_pairs", 1),
            ("num_keys", self.num_pairs),
            ("num_values", 1),
            ("softmax_window", 1),
        ):
            at_least(self, name, least)
        heads = self.model.num_layers * self.model.num_heads
        if heads % 8:
            raise ValueError(
                "the heads of all layers must be a multiple of 8, so that 12.5 % of them are "
                f"whole heads, got {self.model.num_layers} layers of {self.model.num_heads}"
            )
