"""The options of the Performer's experiments that train new models. No torch here."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from subquad.experiments.options import ImageData, RowsOptions, at_least

ATTENTIONS = {
    "softmax": "exact softmax attention",
    "relu": "generalised attention with relu, what the paper calls Performer-ReLU",
    "favor+": "positive random features, what the paper calls Performer-softmax",
    "elu+1": "linear attention, elu(x) + 1",
    "linformer": "keys and values mixed into slots; it has no causal form",
}
CAUSAL = tuple(name for name in ATTENTIONS if name != "linformer")
# Those that the paper compares (appendix D.3), as ops/generalized_features.py names them.
FUNCTIONS = ("sigmoid", "exp", "relu", "abs", "gelu", "cos", "tanh", "identity")

ProteinData = Literal["made-up", "proteins"]
TextData = Literal["source", "gcide"]
DrawingData = Literal["none", "made-up", "clipart"]


@dataclass(frozen=True, kw_only=True)
class AttentionsOptions(RowsOptions):
    """Options of all of them; --max-steps and --minutes are those of a row."""

    num_features: int | None = None
    """Random directions a head (default: K ln K for heads of width K)."""
    redraw_every: int | None = 100
    """Training steps between two draws of FAVOR+'s directions; those of relu stay."""
    data_folder: Path | None = None
    """Folder that holds the data's files (default: where subquad data put them)."""

    def __post_init__(self) -> None:
        at_least(self, "num_features", 1)
        at_least(self, "redraw_every", 1)


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(AttentionsOptions):
    """Options of those on sequences of letters."""

    seq_len: int
    """Longest sequence; what is longer is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "seq_len", 8)


@dataclass(frozen=True, kw_only=True)
class ProteinOptions(LanguageOptions):
    """Options of performer-protein."""

    data: ProteinData
    """The sequences; see subquad data."""
    bidirectional: str
    """Which rows guess masked residues, with commas between; empty for none."""
    unidirectional: str
    """Which rows guess the next residue, with commas between; empty for none."""
    concatenated: bool = False
    """Instead of these rows, train softmax and relu on sequences joined to --joined-len."""
    joined_len: int = 8192
    """Length of the blocks that joined sequences are cut into."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "joined_len", 8)
        _check_names("bidirectional", self.bidirectional, ATTENTIONS)
        _check_names("unidirectional", self.unidirectional, CAUSAL)
        if not listed(self.bidirectional) and not listed(self.unidirectional):
            raise ValueError("bidirectional or unidirectional must name a row, got none")


@dataclass(frozen=True, kw_only=True)
class KernelsOptions(LanguageOptions):
    """Options of performer-kernels."""

    data: ProteinData
    """The sequences; see subquad data."""
    functions: str
    """Which kernel functions have a row, with commas between."""
    swept: str
    """Which of them have rows with other numbers of features too; empty for none."""
    sizes: tuple[int, ...]
    """These numbers of features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("functions", self.functions, FUNCTIONS)
        _check_names("swept", self.swept, FUNCTIONS)
        if not listed(self.functions):
            raise ValueError("functions must name at least one, got none")
        if min(self.sizes, default=1) < 1 or self.num_features in self.sizes:
            raise ValueError(
                f"sizes must be at least 1 and other than num_features = {self.num_features}, "
                f"got {self.sizes}"
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions(LanguageOptions):
    """Options of performer-text."""

    data: TextData
    """The text; see subquad data."""
    attentions: str
    """Which rows, with commas between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attentions(self.attentions)


@dataclass(frozen=True, kw_only=True)
class PerformerPixelsOptions(AttentionsOptions):
    """Options of performer-pixels."""

    data: ImageData
    """The images; see subquad data."""
    half_size: bool = False
    """Shrink them to half width and height by 2 x 2 means."""
    attentions: str
    """Which rows, with commas between."""
    drawings: DrawingData
    """The larger pictures, one a step: clipart are 64 x 64 in colour; none leaves them out."""
    drawing_minutes: float
    """Minutes of a row on drawings; with --max-steps it gets as many steps as the others."""
    image_tests: int
    """Test images to test on, always the same ones."""
    drawing_tests: int
    """Test drawings to test on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "image_tests", 1)
        at_least(self, "drawing_tests", 1)
        _check_attentions(self.attentions)
        if not self.drawing_minutes > 0:
            raise ValueError(f"drawing_minutes must be above 0, got {self.drawing_minutes:g}")


def listed(names: str) -> tuple[str, ...]:
    """Return the names that stand in an option, with commas between, in their order."""
    return tuple(word.strip() for word in names.split(",") if word.strip())


def _check_attentions(names: str) -> None:
    _check_names("attentions", names, CAUSAL)
    if not listed(names):
        raise ValueError("attentions must name at least one, got none")


def _check_names(option: str, names: str, known: Collection[str]) -> None:
    for name in listed(names):
        if name not in known:
            raise ValueError(f"{option} must be among {', '.join(known)}, got {name!r}")
    if len(set(listed(names))) < len(listed(names)):
        raise ValueError(f"{option} must name none twice, got {names!r}")
