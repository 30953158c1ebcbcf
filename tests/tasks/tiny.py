"""A task that trains in milliseconds, and a server that trains it in processes made to be killed.

As a program it reads lines of JSON from standard input. For each it forks a process that trains,
prints the process's id and then how it ended. Torch is imported once, so a run starts at once.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from subquad.tasks.config import TrainConfig
from subquad.tasks.training import fit

INTERRUPTED = 3
SETTINGS = {"batch_size": 4, "lr": 1e-2, "log_every": 5, "eval_every": 20, "checkpoint_every": 7}


class TinyModel(nn.Module):
    """Dropout, so that the random state counts, and a buffer that training changes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = {"width": width}
        self.layers = nn.Sequential(
            nn.Linear(8, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class TinyTask:
    """Regression on made-up data; ``delay`` seconds a batch, the loss NaN from ``nan_from`` on."""

    unit = "bits"
    sample_name = "rows"
    samples_per_step = 4

    def __init__(
        self, *, seed: int = 0, width: int = 16, delay: float = 0.0, nan_from: int | None = None
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: nn.Module = TinyModel(width)
        self.identity = {"name": "tiny", "seed": seed}
        self.seed, self.delay, self.nan_from = seed, delay, nan_from
        self.seen: list[int] = []
        self.evaluations: list[bool] = []

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        time.sleep(self.delay)
        self.seen.append(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        x = torch.randn(4, 8, generator=generator)
        y = x.sum(dim=1, keepdim=True)
        if self.nan_from is not None and step >= self.nan_from:
            y = y * float("nan")
        return x, y

    def loss(self, *batch: torch.Tensor) -> torch.Tensor:
        x, y = batch
        return (self.model(x) - y).square().mean()

    def metric(self, loss: float) -> float:
        return 2 * loss

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        self.evaluations.append(full)
        self.model.eval()
        torch.rand(3)  # rude: fit must not let this reach the training
        device = next(self.model.parameters()).device
        x, y = torch.ones(4, 8, device=device), torch.full((4, 1), 8.0, device=device)
        value = float((self.model(x) - y).square().mean())
        self.model.train()
        return {"loss": value, "accuracy": 0.5}


def die_in_write(where: str, number: int) -> None:
    """Let the process be killed in the middle of writing checkpoint ``number``."""
    write_bytes, replace, count = Path.write_bytes, Path.replace, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(self: Path, data: bytes) -> int:
        nonlocal count
        if "checkpoint" in self.name:
            count += 1
            if count == number and where == "half":
                write_bytes(self, data[: len(data) // 2])
                die()
        return write_bytes(self, data)

    def dying_replace(self: Path, target: Path) -> Path:
        if "checkpoint" in self.name and count == number and where == "before rename":
            die()
        result = replace(self, target)
        if "checkpoint" in self.name and count == number and where == "after rename":
            die()
        return result

    Path.write_bytes, Path.replace = dying_write, dying_replace


def slow_sync(seconds: float) -> None:
    """Make each fsync slow, so that a kill at a random moment often comes inside a write."""
    fsync = os.fsync

    def sleeping_fsync(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    os.fsync = sleeping_fsync


def train(order: dict) -> int:
    """Do one run as ``order`` says and return the exit status."""
    if "die" in order:
        die_in_write(*order["die"])
    slow_sync(order.get("sync_seconds", 0.0))
    task = TinyTask(delay=order.get("delay", 0.0))
    config = TrainConfig(**{**SETTINGS, **order["config"]})
    result = fit(task, config, Path(order["run_dir"]), quiet=True)
    return INTERRUPTED if result.interrupted else 0


def serve() -> None:
    """Answer orders until standard input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = train(json.loads(line))
            finally:
                os._exit(status)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{ended}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
