"""What ``subquad bench`` takes on the command line. No torch here."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from subquad.bench.lambda_options import LambdaOptions
from subquad.bench.lsh_options import LshOptions
from subquad.bench.options import (
    POWERS,
    AttentionOptions,
    DecodeOptions,
    Device,
    DType,
    EncoderOptions,
    EncoderSize,
    PerformerOptions,
    TrainOptions,
)
from subquad.bench.vit_options import ViTOptions

ATTENTION, DECODE, TRAIN = AttentionOptions(), DecodeOptions(), TrainOptions()
ENCODER, SIZE, LSH = EncoderOptions(), EncoderSize(), LshOptions()
PERFORMER, LAMBDA, VIT = PerformerOptions(), LambdaOptions(), ViTOptions()
PEER_LENGTHS = ",".join(str(n) for n in POWERS if n <= 2**14)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """How long to measure, and where; every benchmark takes these."""

    repetitions: int = ATTENTION.repetitions
    """Rounds; in each, everything is timed once, in turn."""
    seconds: float = ATTENTION.seconds
    """Budget for the rounds of one setting; at least three rounds are made."""
    limit: float = ATTENTION.limit
    """Longest call, in seconds; what would take longer is left out, and the table says so."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Device = "cpu"
    """Where to compute."""
    memory: bool = True
    """Measure peak memory too, in processes of their own."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file, and figures beside it."""

    def __post_init__(self) -> None:
        check_out(self.out)

    def shared(self) -> dict[str, Any]:
        """Return the options that every benchmark takes."""
        return {
            "repetitions": self.repetitions, "seconds": self.seconds, "limit": self.limit,
            "threads": self.threads, "device": self.device, "has_memory": self.memory,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionFlags(CommonFlags):
    """Options of bench attention and bench peers."""

    lengths: str = ",".join(str(n) for n in POWERS)
    """Sequence lengths, rising, with commas between."""
    heads: int = ATTENTION.heads
    """Heads."""
    head_dim: int = ATTENTION.head_dim
    """Width of a head, for keys and values."""
    batch: int = ATTENTION.batch
    """Samples at once."""
    dtype: DType = ATTENTION.dtype
    """Precision of q, k and v."""
    bidirectional: bool = False
    """Let every token see all others; without it attention is causal."""
    mechanisms: str = ""
    """Which, with commas between (default: all); linear means linear-cpu, linear-torch-64, ..."""

    def options(self) -> AttentionOptions:
        """Return them as the benchmark takes them."""
        return AttentionOptions(
            lengths=numbers("--lengths", self.lengths), heads=self.heads, head_dim=self.head_dim,
            batch=self.batch, dtype=self.dtype, is_causal=not self.bidirectional,
            mechanisms=words_of(self.mechanisms), **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerFlags(AttentionFlags):
    """Options of bench peers."""

    lengths: str = PEER_LENGTHS
    """Sequence lengths, rising, with commas between; some packages need multiples of 128."""
    memory: bool = False
    """Not measured here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeFlags(CommonFlags):
    """Options of bench decode."""

    models: str = ",".join(DECODE.models)
    """The paper's models: mnist, cifar10, or both with a comma between."""
    mixers: str = ",".join(DECODE.mixers)
    """linear, softmax, or both."""
    batches: str = ",".join(str(n) for n in DECODE.batches)
    """Images generated at once, with commas between."""
    positions: int = DECODE.positions
    """How many positions are sampled."""
    recompute: bool = True
    """Also time softmax that recomputes the prefix for each pixel."""

    def options(self) -> DecodeOptions:
        """Return them as the benchmark takes them."""
        return DecodeOptions(
            models=words_of(self.models), mixers=words_of(self.mixers),
            batches=numbers("--batches", self.batches), positions=self.positions,
            has_recompute=self.recompute, **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(CommonFlags):
    """Options of bench train."""

    layers: int = TRAIN.layers
    """Layers."""
    width: int = TRAIN.width
    """Width of the model."""
    heads: int = TRAIN.heads
    """Heads."""
    seq_len: int = TRAIN.seq_len
    """Bytes of an image: 784 for MNIST, 3072 for CIFAR-10."""
    batch: int = TRAIN.batch
    """Images in a step."""
    dtype: DType = TRAIN.dtype
    """float32, or mixed precision with another."""
    positions: str = TRAIN.positions
    """Position encoding, for instance sinusoidal-concat, rotary, learned-rotary."""
    mixers: str = ",".join(TRAIN.mixers)
    """Mixers to compare, with commas between."""
    profile: bool = False
    """Print the torch profiler's top operators of each mixer instead."""

    def options(self) -> TrainOptions:
        """Return them as the benchmark takes them."""
        return TrainOptions(
            layers=self.layers, width=self.width, heads=self.heads, seq_len=self.seq_len,
            batch=self.batch, dtype=self.dtype, positions=self.positions,
            mixers=words_of(self.mixers), **self.shared(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFlags:
    """Options of bench encoder."""

    layers: int = SIZE.num_layers
    """Layers."""
    width: int = SIZE.d_model
    """Width of the model."""
    heads: int = SIZE.num_heads
    """Heads."""
    d_ff: int = SIZE.d_ff
    """Width of the feed-forward network inside."""
    seq_len: int = SIZE.seq_len
    """Tokens of a sample."""
    batch: int = SIZE.batch_size
    """Samples at once."""
    mixers: str = ",".join(ENCODER.mixers)
    """Mixers to compare, with commas between."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Device = "cpu"
    """Where to compute."""
    memory: bool = True
    """Measure peak memory too, by another pass; on a CPU in a process of its own."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file."""

    def __post_init__(self) -> None:
        check_out(self.out)

    def options(self) -> EncoderOptions:
        """Return them as the benchmark takes them."""
        size = EncoderSize(
            batch_size=self.batch, seq_len=self.seq_len, d_model=self.width,
            num_layers=self.layers, num_heads=self.heads, d_ff=self.d_ff,
        )  # fmt: skip
        return EncoderOptions(
            size=size, mixers=words_of(self.mixers), threads=self.threads, device=self.device,
            has_memory=self.memory,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LshFlags:
    """Options of bench lsh-rounds."""

    rounds: str = ",".join(str(n) for n in LSH.rounds)
    """Rounds of hashing, rising, with commas between."""
    draws: int = LSH.draws
    """Sets of random rotations for each number of rounds."""
    seq_len: int = LSH.seq_len
    """Tokens; exact attention takes the square of them."""
    heads: int = LSH.heads
    """Heads."""
    head_dim: int = LSH.head_dim
    """Width of a head, for queries and values."""
    num_buckets: int = LSH.num_buckets
    """Buckets of a round, an even number."""
    chunk_size: int = LSH.chunk_size
    """Tokens in a chunk."""
    bidirectional: bool = False
    """Let every token see all others; without it attention is causal."""
    seed: int = LSH.seed
    """Seed of queries, values and rotations."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    device: Device = "cpu"
    """Where to compute."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file, and a figure beside it."""

    def __post_init__(self) -> None:
        check_out(self.out)

    def options(self) -> LshOptions:
        """Return them as the benchmark takes them."""
        return LshOptions(
            rounds=numbers("--rounds", self.rounds), draws=self.draws, seq_len=self.seq_len,
            heads=self.heads, head_dim=self.head_dim, num_buckets=self.num_buckets,
            chunk_size=self.chunk_size, is_causal=not self.bidirectional, seed=self.seed,
            threads=self.threads, device=self.device,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerformerFlags:
    """Options of bench performer."""

    lengths: str = ",".join(str(n) for n in PERFORMER.lengths)
    """Sequence lengths, rising, with commas between."""
    heads: int = PERFORMER.heads
    """Heads."""
    head_dim: int = PERFORMER.head_dim
    """Width of a head, for keys and values."""
    num_features: int = PERFORMER.num_features
    """Random features of a head."""
    repetitions: int = PERFORMER.repetitions
    """Rounds; in each, everything is timed once, in turn."""
    seconds: float = PERFORMER.seconds
    """Budget for the rounds of one setting; at least three rounds are made."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file."""
    device: ClassVar[str] = "cpu"

    def __post_init__(self) -> None:
        check_out(self.out)

    def options(self) -> PerformerOptions:
        """Return them as the benchmark takes them."""
        return PerformerOptions(
            lengths=numbers("--lengths", self.lengths), heads=self.heads, head_dim=self.head_dim,
            num_features=self.num_features, repetitions=self.repetitions, seconds=self.seconds,
            threads=self.threads,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LambdaFlags:
    """Options of bench lambda."""

    sides: str = ",".join(str(n) for n in LAMBDA.sides)
    """Sides of the images with a global context, rising, with commas between."""
    windows: str = ",".join(str(n) for n in LAMBDA.windows)
    """Windows of the local contexts, odd, with commas between; empty for none."""
    local_side: int = LAMBDA.local_side
    """Side of the image with local contexts."""
    batch: int = LAMBDA.batch
    """Images at once."""
    batch_of_growth: int = LAMBDA.batch_of_growth
    """Images at once where growth with the side is measured."""
    channels: int = LAMBDA.channels
    """Channels, in and out."""
    heads: int = LAMBDA.heads
    """Queries of a token."""
    head_dim: int = LAMBDA.head_dim
    """Width of a query and a key."""
    repetitions: int = LAMBDA.repetitions
    """Rounds; in each, every form is timed once, in turn."""
    seconds: float = LAMBDA.seconds
    """Budget for the rounds of one setting; at least three rounds are made."""
    limit: float = LAMBDA.limit
    """Gigabytes that a form may need; what needs more is left out, and the table says so."""
    longest: float = LAMBDA.longest
    """Seconds that a call may be expected to take; what would take longer is left out."""
    memory: bool = True
    """Measure peak memory too, in processes of their own."""
    threads: int | None = None
    """Threads of torch (default: its own choice)."""
    out: Path | None = None
    """Write the numbers and the environment to this JSON file."""
    device: ClassVar[str] = "cpu"

    def __post_init__(self) -> None:
        check_out(self.out)

    def options(self) -> LambdaOptions:
        """Return them as the benchmark takes them."""
        return LambdaOptions(
            sides=numbers("--sides", self.sides),
            windows=numbers("--windows", self.windows) if self.windows.strip() else (),
            local_side=self.local_side, batch=self.batch, batch_of_growth=self.batch_of_growth,
            channels=self.channels, heads=self.heads, head_dim=self.head_dim,
            repetitions=self.repetitions, seconds=self.seconds, limit=self.limit,
            longest=self.longest, has_memory=self.memory, threads=self.threads,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTFlags(CommonFlags):
    """Options of bench vit."""

    preset: str = VIT.preset
    """Size and patch: Ti, S, B, L or H, and the side of a patch in pixels."""
    image_sizes: str = ",".join(str(n) for n in VIT.image_sizes)
    """Sides of the images that whole models see, rising, with commas between; or empty."""
    block_tokens: str = ",".join(str(n) for n in VIT.block_tokens)
    """Tokens that one block alone sees, rising, with commas between; or empty."""
    mixers: str = ",".join(VIT.mixers)
    """Mixers in the place of attention, with commas between; ratios are to softmax."""
    repeats: bool = VIT.repeats
    """Also measure training with mixers that keep their inputs alone, and run again backward."""
    batch: int = VIT.batch
    """Images at once."""
    dtype: DType = VIT.dtype
    """Arithmetic; bfloat16 and float16 are autocast."""
    repetitions: int = VIT.repetitions
    """Rounds; in each, everything is timed once, in turn."""
    seconds: float = VIT.seconds
    """Budget for the rounds of one size; at least three rounds are made."""
    limit: float = VIT.limit
    """Longest call, in seconds; what would take longer is left out, and the table says so."""

    def options(self) -> ViTOptions:
        """Return them as the benchmark takes them."""
        image_sizes, block_tokens = self.image_sizes, self.block_tokens
        return ViTOptions(
            **self.shared(), preset=self.preset, mixers=words_of(self.mixers), batch=self.batch,
            image_sizes=numbers("--image-sizes", image_sizes) if image_sizes.strip() else (),
            block_tokens=numbers("--block-tokens", block_tokens) if block_tokens.strip() else (),
            repeats=self.repeats, dtype=self.dtype,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """Options of bench compare."""

    first: Path
    """A result file, A."""
    second: Path
    """Another, B."""


def words_of(text: str) -> tuple[str, ...]:
    """Return the words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers between commas; ``name`` is for the error."""
    words: Sequence[str] = words_of(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r}")
    return tuple(int(word) for word in words)


def check_out(out: Path | None) -> None:
    """Require a name of a result file."""
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out must name a .json file, got {out}")
