"""What each benchmark is told: frozen objects, checked when they are made. No torch here."""

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]
POWERS = tuple(2**n for n in range(9, 17))  # the lengths of the paper's Figure 1


def at_least(minimum: int, **values: int | None) -> None:
    """Refuse numbers below ``minimum``; None passes.

    Raises:
        ValueError: naming the first that is too small.
    """
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def above_zero(**values: float) -> None:
    """Refuse numbers that are not above 0.

    Raises:
        ValueError: naming the first.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How long to measure, and where.

    Args:
        repetitions: rounds, each of which times everything once.
        seconds: budget for the rounds of one setting; at least three rounds are made.
        limit: longest call, in seconds; what is predicted to take longer is left out.
        threads: threads of torch, None for its own choice.
        device: "cpu" or "cuda".
        has_memory: measure peak memory too, in processes of their own.
    """

    repetitions: int = 9
    seconds: float = 20.0
    limit: float = 10.0
    threads: int | None = None
    device: Device = "cpu"
    has_memory: bool = True

    def __post_init__(self) -> None:
        at_least(1, repetitions=self.repetitions, threads=self.threads)
        above_zero(seconds=self.seconds, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(TimingOptions):
    """Sizes of ``bench attention`` and ``bench peers``: B, H, T, K = V = ``head_dim``."""

    lengths: tuple[int, ...] = POWERS
    heads: int = 8
    head_dim: int = 64
    batch: int = 1
    dtype: DType = "float32"
    is_causal: bool = True
    mechanisms: tuple[str, ...] = ()  # none named: all

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, heads=self.heads, head_dim=self.head_dim, batch=self.batch)
        if not self.lengths or sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f"lengths must rise and be at least one, got {list(self.lengths)}")
        at_least(1, lengths=self.lengths[0])


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(TimingOptions):
    """Models and batches of ``bench decode``; ``positions`` is how many places are sampled."""

    models: tuple[str, ...] = ("mnist", "cifar10")
    batches: tuple[int, ...] = (1, 64, 1024)
    mixers: tuple[str, ...] = ("linear", "softmax")
    positions: int = 7
    has_recompute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, positions=self.positions)
        for batch in self.batches:
            at_least(1, batches=batch)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TimingOptions):
    """The pixel model whose training step ``bench train`` times."""

    layers: int = 4
    width: int = 128
    heads: int = 8
    seq_len: int = 784
    batch: int = 16
    dtype: DType = "float32"
    positions: str = "sinusoidal-concat"
    mixers: tuple[str, ...] = ("linear", "softmax")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, layers=self.layers, width=self.width, heads=self.heads, batch=self.batch)
        at_least(2, seq_len=self.seq_len)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads = {self.heads}, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class PerformerOptions:
    """Sizes of the attention that ``bench performer`` times on the CPU; the batch is 1."""

    lengths: tuple[int, ...] = (256, 512, 768, 1024, 2048, 4096)
    heads: int = 8
    head_dim: int = 64
    num_features: int = 256
    repetitions: int = 9
    seconds: float = 20.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.lengths or sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f"lengths must rise and be at least one, got {list(self.lengths)}")
        at_least(
            1, lengths=self.lengths[0], heads=self.heads, head_dim=self.head_dim,
            num_features=self.num_features, repetitions=self.repetitions, threads=self.threads,
        )  # fmt: skip
        if self.seconds <= 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """Input (batch_size, seq_len, d_model) of ``bench encoder``, and the encoder that takes it."""

    batch_size: int = 10
    seq_len: int = 4000
    d_model: int = 768
    num_layers: int = 12
    num_heads: int = 12
    d_ff: int = 3072

    def __post_init__(self) -> None:
        at_least(
            1, batch=self.batch_size, seq_len=self.seq_len, width=self.d_model,
            layers=self.num_layers, heads=self.num_heads, d_ff=self.d_ff,
        )  # fmt: skip
        if self.d_model % self.num_heads:
            raise ValueError(
                f"width must be a multiple of heads = {self.num_heads}, got {self.d_model}"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """One forward pass of ``size`` with each of ``mixers``; the rest as for ``TimingOptions``."""

    size: EncoderSize = EncoderSize()
    mixers: tuple[str, ...] = ("linear", "softmax")
    threads: int | None = None
    device: Device = "cpu"
    has_memory: bool = True

    def __post_init__(self) -> None:
        at_least(1, threads=self.threads)
        if not self.mixers:
            raise ValueError("mixers must be at least one, got none")
