"""What ``subquad bench lsh-rounds`` is told. No torch here."""

from dataclasses import dataclass
from typing import Literal

from subquad.bench.options import Device, at_least

Queries = Literal["clustered", "normal"]
QUERIES: tuple[Queries, ...] = ("clustered", "normal")


@dataclass(frozen=True, kw_only=True)
class LshOptions:
    """Sizes of the attention whose error is measured, and how often rotations are drawn.

    Args:
        rounds: of hashing, rising.
        draws: sets of rotations for each number of rounds; the error's spread is over these.
        seq_len, heads, head_dim: T, H, K = V; the batch is 1.
        num_buckets: of a round, an even number.
        chunk_size: tokens in a chunk.
        is_causal: token i sees tokens before it only.
        seed: of queries, values and rotations.
        threads: threads of torch, None for its own choice.
        device: "cpu" or "cuda".
    """

    rounds: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    draws: int = 5
    seq_len: int = 1024
    heads: int = 4
    head_dim: int = 64
    num_buckets: int = 64
    chunk_size: int = 32
    is_causal: bool = True
    seed: int = 0
    threads: int | None = None
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if not self.rounds or sorted(set(self.rounds)) != list(self.rounds):
            raise ValueError(f"rounds must rise and be at least one, got {list(self.rounds)}")
        at_least(
            1, rounds=self.rounds[0], draws=self.draws, heads=self.heads, head_dim=self.head_dim,
            chunk_size=self.chunk_size, threads=self.threads,
        )  # fmt: skip
        at_least(2, seq_len=self.seq_len, num_buckets=self.num_buckets)
        at_least(0, seed=self.seed)
        if self.num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {self.num_buckets}")
