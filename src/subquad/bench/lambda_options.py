"""What ``subquad bench lambda`` is told. No torch here."""

from dataclasses import dataclass

from subquad.bench.options import at_least


@dataclass(frozen=True, kw_only=True)
class LambdaOptions:
    """Sizes of the lambda layer that is timed on the CPU, forward and backward.

    Args:
        sides: of the square images with a global context, rising.
        windows: of the local contexts, odd; none measures none.
        local_side: of the image with local contexts.
        batch, channels, heads, head_dim: B, D = C, H, K.
        batch_of_growth: images at once where growth with the side is measured.
        repetitions, seconds: rounds, and the budget of one setting.
        limit: memory in GB that a form may need; what needs more is left out.
        longest: seconds that a call may be expected to take.
        has_memory: measure peak memory too.
        threads: threads of torch, None for its own choice.
    """

    sides: tuple[int, ...] = (32, 64, 128, 256)
    windows: tuple[int, ...] = (7, 23)
    local_side: int = 56
    batch: int = 8
    batch_of_growth: int = 1
    channels: int = 64
    heads: int = 4
    head_dim: int = 16
    repetitions: int = 7
    seconds: float = 30.0
    limit: float = 8.0
    longest: float = 30.0
    has_memory: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.sides or sorted(set(self.sides)) != list(self.sides):
            raise ValueError(f"sides must rise and be at least one, got {list(self.sides)}")
        if any(window % 2 == 0 for window in self.windows):
            raise ValueError(f"windows must be odd, got {list(self.windows)}")
        at_least(
            1, sides=self.sides[0], windows=min(self.windows, default=1),
            local_side=self.local_side, batch=self.batch, batch_of_growth=self.batch_of_growth,
            channels=self.channels, heads=self.heads, head_dim=self.head_dim,
            repetitions=self.repetitions, threads=self.threads,
        )  # fmt: skip
        if self.channels % self.heads:
            raise ValueError(f"heads must divide channels ({self.channels}), got {self.heads}")
        for name in ("seconds", "limit", "longest"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
