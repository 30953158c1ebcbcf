"""The options of the experiments that train networks with lambda layers. No torch here."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from subquad.experiments.language_options import listed
from subquad.experiments.options import at_least
from subquad.experiments.vit_options import PictureRowsOptions

Drawings = Literal["clipart", "made-up", "none"]


@dataclass(frozen=True, kw_only=True)
class SmallResNetOptions:
    """The network: a residual network of bottlenecks, three stages."""

    blocks: int
    """Bottlenecks a stage."""
    width: int
    """Channels inside a bottleneck of the first stage; doubled from stage to stage."""
    stem_stride: int = 2
    """1, or 2: the first convolution halves the sides."""
    num_heads: int = 4
    """Queries of a pixel in a lambda layer."""
    head_dim: int = 16
    """Width of such a query."""
    window: int = 15
    """Side of what position sees in a lambda layer."""
    attention_window: int = 7
    """Side of what local attention sees."""
    attention_head_dim: int = 8
    """Width of an attention head."""

    def __post_init__(self) -> None:
        for name in ("blocks", "width", "num_heads", "head_dim", "attention_head_dim"):
            at_least(self, name, 1)
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {self.stem_stride}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width ({self.width}), got {self.num_heads}")
        for name in ("window", "attention_window"):
            side = getattr(self, name)
            if side < 1 or side % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 1, got {side}")

    def arguments(self) -> dict[str, Any]:
        """Return what ``SmallResNet`` takes, but for stages, images and classes."""
        return {name: value for name, value in asdict(self).items() if name != "blocks"}


@dataclass(frozen=True, kw_only=True)
class LambdaRowsOptions(PictureRowsOptions):
    """What the experiments share."""

    network: SmallResNetOptions


@dataclass(frozen=True, kw_only=True)
class LambdaCompareOptions(LambdaRowsOptions):
    """Options of lambda-compare."""

    layers: str
    """Networks that have one layer in all stages, with commas between."""
    placements: str
    """Words of three letters C and L, a stage each, with commas between; empty for none."""
    drawings: Drawings
    """The second set of images, shrunk to 32 pixels: drawings, made-up ones, or none."""
    has_memory: bool = True
    """Measure the peak memory of a training step too, in a process of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not listed(self.layers) or len(set(listed(self.layers))) < len(listed(self.layers)):
            raise ValueError(f"layers must be at least one, none twice, got {self.layers!r}")
        for name in listed(self.layers):
            if name not in LAYERS:
                raise ValueError(f"layers must be among {', '.join(LAYERS)}, got {name!r}")
        for word in listed(self.placements):
            if len(word) != 3 or set(word) != {"C", "L"}:
                raise ValueError(
                    f"placements must be words of three letters, both C and L among them, "
                    f"got {word!r}"
                )


@dataclass(frozen=True, kw_only=True)
class LambdaAblationsOptions(LambdaRowsOptions):
    """Options of lambda-ablations."""

    ablations: str
    """What is changed, a row each, with commas between; "default" is the layer as it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = listed(self.ablations)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"ablations must be at least one, none twice, got {self.ablations!r}")
        for name in names:
            if name not in ABLATIONS:
                raise ValueError(f"ablations must be among {', '.join(ABLATIONS)}, got {name!r}")


# By the name of a row: the letter of its layer in SmallResNet, and options that differ.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": ("C", {}),
    "squeeze-excitation": ("S", {}),
    "linear attention": ("E", {}),
    "global attention": ("G", {}),
    "axial attention": ("A", {}),
    "local attention": ("R", {}),
    "lambda": ("L", {}),
    "lambda u4 r7": ("L", {"intra_depth": 4, "window": 7}),
}

# By the name of a row: what of the lambda layers is other than by default.
ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "scope 3": {"window": 3},
    "scope 7": {"window": 7},
    "scope global": {"window": None},
    "content only": {"has_position": False},
    "position only": {"has_content": False},
    "softmax on queries too": {"queries": "softmax"},
    "L2 norm on keys": {"keys": "l2"},
    "keys as they are": {"keys": "none"},
    "no batch-norm": {"batch_norm": False},
    "k 8": {"head_dim": 8},
    "h 8": {"num_heads": 8},
    "u 4 with scope 7": {"intra_depth": 4, "window": 7},
}
