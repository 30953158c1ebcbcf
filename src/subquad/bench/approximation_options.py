"""What ``subquad approx`` is told: features, draws, sizes of random input. No torch here."""

import math
from dataclasses import dataclass

from subquad.bench.options import above_zero, at_least

ESTIMATORS = ("trigonometric", "positive", "hyperbolic")
# Of directions: "regularized" are orthogonal ones of length sqrt(K).
DIRECTIONS = ("iid", "orthogonal", "regularized", "hadamard")


@dataclass(frozen=True, kw_only=True)
class ApproximationOptions:
    """Which random features are held against softmax, and how thoroughly.

    Args:
        num_features: numbers M of features a token, rising, each even: "positive" draws M
            directions for them, the others M / 2.
        estimators: some of ``ESTIMATORS``.
        directions: some of ``DIRECTIONS``.
        draws: of directions, for each kind and number; bias and variance are over these.
        is_causal: query i sees keys j <= i only.
        scale: factor on q . k; None for 1 / sqrt(K).
        max_queries: of a longer sequence so many queries, evenly spread, are looked at.
        seed: of the directions.
        threads: threads of torch, None for its own choice.

    Raises:
        ValueError: if a number or a name does not fit.
    """

    num_features: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    estimators: tuple[str, ...] = ESTIMATORS
    directions: tuple[str, ...] = DIRECTIONS
    draws: int = 10
    is_causal: bool = False
    scale: float | None = None
    max_queries: int = 256
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        counts = list(self.num_features)
        if not counts or sorted(set(counts)) != counts:
            raise ValueError(f"num_features must rise and be at least one, got {counts}")
        for count in counts:
            if count < 2 or count % 2:
                raise ValueError(f"num_features must be even and at least 2, got {count}")
        for name, known in (("estimators", ESTIMATORS), ("directions", DIRECTIONS)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"{name} must be at least one, none twice, got {list(chosen)}")
            for word in chosen:
                if word not in known:
                    raise ValueError(f"{name} must be among {', '.join(known)}, got {word!r}")
        at_least(2, draws=self.draws)
        at_least(1, max_queries=self.max_queries, threads=self.threads)
        at_least(0, seed=self.seed)
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be a finite number above 0, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class RandomInput:
    """Random q, k and v: H heads of T tokens, each query and key of the length ``norm``.

    Args:
        seq_len, heads, head_dim: T, H, K = V.
        norm: length of each query and key, before the scale; their directions are uniform. Trained
            models have lengths of a few up to tens; normal vectors have about sqrt(K).
        seed: of all three.
    """

    seq_len: int = 256
    heads: int = 1
    head_dim: int = 64
    norm: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, seq_len=self.seq_len, heads=self.heads, head_dim=self.head_dim)
        at_least(0, seed=self.seed)
        above_zero(norm=self.norm)
        if not math.isfinite(self.norm):
            raise ValueError(f"norm must be finite, got {self.norm}")
