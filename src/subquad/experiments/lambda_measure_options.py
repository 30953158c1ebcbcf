"""The options of the experiments that measure lambda layers and networks of them. No torch here."""

from dataclasses import dataclass
from typing import Literal

from subquad.experiments.options import at_least
from subquad.experiments.tables_report import MeasureOptions, numbers


@dataclass(frozen=True, kw_only=True)
class LambdaMeasureOptions(MeasureOptions):
    """What both of them share."""

    batch_size: int
    """Images at once."""
    repetitions: int
    """Rounds; each times everything that is compared once."""
    seconds: float
    """Budget in seconds for the rounds of one comparison; at least three are made."""
    has_memory: bool = True
    """Measure peak memory too, each in a process of its own."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "repetitions", "threads"):
            at_least(self, name, 1)
        self._above_zero("seconds")

    def _above_zero(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class LambdaSpeedOptions(LambdaMeasureOptions):
    """Options of lambda-speed."""

    placements: str
    """Patterns of a ResNet-50, C or L a stage, with commas between; empty for none."""
    depths: str
    """Of LambdaResNets, ResNets and ResNets with squeeze-excitation, rising; empty for none."""
    efficientnets: str
    """Numbers of EfficientNets, rising, each beside the LambdaResNet of its accuracy; or empty."""
    image_size: int = 224
    """Side of the images; where the paper has others than 224, they are scaled alike."""
    width: int = 64
    """Channels inside a block of the first stage; 64 in what is published."""
    channels_last: bool = False
    """How images and weights lie in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "image_size", 16)
        at_least(self, "width", 8)
        if self.width % 4:
            raise ValueError(f"width must be a multiple of the 4 heads, got {self.width}")
        if len(set(self.placements_named)) < len(self.placements_named):
            raise ValueError(f"placements must differ, got {self.placements!r}")
        for word in self.placements_named:
            if len(word) != 4 or set(word) - {"C", "L"}:
                raise ValueError(f"placements must be words of 4 letters C and L, got {word!r}")
        for name, known in (("depths", DEPTHS), ("efficientnets", tuple(range(8)))):
            wrong = [n for n in self._numbers(name) if n not in known]
            if wrong:
                among = ", ".join(map(str, known))
                raise ValueError(f"{name} must be among {among}, got {wrong[0]}")
        if not (self.placements_named or self.depths.strip() or self.efficientnets.strip()):
            raise ValueError("one of placements, depths and efficientnets must name something")

    @property
    def placements_named(self) -> tuple[str, ...]:
        """The patterns."""
        return tuple(word.strip() for word in self.placements.split(",") if word.strip())

    @property
    def depths_named(self) -> tuple[int, ...]:
        """The depths."""
        return self._numbers("depths")

    @property
    def efficientnets_named(self) -> tuple[int, ...]:
        """The EfficientNets' numbers."""
        return self._numbers("efficientnets")

    def _numbers(self, name: str) -> tuple[int, ...]:
        text: str = getattr(self, name)
        return numbers(name, text, least=0) if text.strip() else ()


DEPTHS = (50, 101, 152, 200, 270, 350, 420)


@dataclass(frozen=True, kw_only=True)
class LambdaMemoryOptions(LambdaMeasureOptions):
    """Options of lambda-memory."""

    sides: str
    """Sides of the square images, rising, with commas between."""
    base_side: int
    """One of them: where stacks are measured, and memory by the image."""
    channels: int = 64
    """Width of the layers; 64 where a ResNet-50 has its largest maps."""
    attention_heads: int = 8
    """Heads of the layers with attention."""
    heads: int = 4
    """Queries of a token in the lambda layers."""
    head_dim: int = 16
    """Width k of these queries; "half of k" has half of it."""
    limit: float = 6.0
    """Memory in GB that a layer may be expected to need; what needs more is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "batch_size", 2)  # memory by the image is a difference of two batches
        for name in ("channels", "attention_heads", "heads"):
            at_least(self, name, 1)
        at_least(self, "head_dim", 2)
        self._above_zero("limit")
        if self.base_side not in self.sides_named:
            raise ValueError(
                f"base_side must be among the sides {self.sides}, got {self.base_side}"
            )
        if self.channels % self.heads:
            raise ValueError(f"heads must divide channels ({self.channels}), got {self.heads}")
        if self.channels % (2 * self.attention_heads):
            raise ValueError(
                f"channels must be an even multiple of attention_heads ({self.attention_heads}), "
                f"got {self.channels}"
            )

    @property
    def sides_named(self) -> tuple[int, ...]:
        """The sides."""
        return numbers("sides", self.sides, least=4)
