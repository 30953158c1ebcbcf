"""Learning to predict the marked tokens of made-up sequences: what copying and recall share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HELD_OUT_SEED = 1_000_000_007  # of the batches that are only measured on
QUICK_BATCHES, FULL_BATCHES = 4, 20

# (seed, step) to tokens, targets and loss mask (B, T), a pure function.
Draw = Callable[[int, int], tuple[Tensor, ...]]


class MarkedTokensTask:
    """Minimise the nats per marked token of a model from tokens (B, T) to logits (B, T, vocab).

    Args:
        model: any model of that kind, such as :class:`subquad.models.DecoderLM`.
        draw: makes the batches; it is called once here, and refuses sizes that do not work.
        batch_size: sequences in one micro-batch.
        seed: seed of the training sequences.
        name: of the task, for checkpoints.
        sizes: of the sequences, for checkpoints.

    Raises:
        ValueError: if a number is outside its range.
    """

    unit = "nats/token"
    sample_name = "sequences"

    def __init__(
        self,
        model: nn.Module,
        draw: Draw,
        *,
        batch_size: int,
        seed: int,
        name: str,
        sizes: dict[str, int],
    ) -> None:
        if not 0 <= seed < HELD_OUT_SEED:
            raise ValueError(f"seed must be from 0 to {HELD_OUT_SEED - 1}, got {seed}")
        self.model = model
        self.samples_per_step, self._seed, self._draw = batch_size, seed, draw
        draw(seed, 0)
        self.identity: dict[str, Any] = {"name": name, "seed": seed, **sizes}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return tokens, targets and loss mask (B, T) of micro-batch ``step``."""
        return tuple(self._draw(self._seed, step))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean nats per token that the mask counts."""
        tokens, targets, mask = batch
        return _loss(self.model(tokens), targets, mask)

    def metric(self, loss: float) -> float:
        """Return ``loss``: it is in nats per token."""
        return loss

    @torch.no_grad()
    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return mean loss and accuracy over held-out batches, always the same."""
        device, was_training = next(self.model.parameters()).device, self.model.training
        batches = FULL_BATCHES if full else QUICK_BATCHES
        loss, right, count = 0.0, 0, 0
        self.model.eval()
        try:
            for step in range(batches):
                tokens, targets, mask = (t.to(device) for t in self._draw(HELD_OUT_SEED, step))
                logits = self.model(tokens)
                loss += float(_loss(logits, targets, mask)) / batches
                right += int(((logits.argmax(-1) == targets) & mask).sum())
                count += int(mask.sum())
        finally:
            self.model.train(was_training)
        return {"loss": loss, "accuracy": right / count}


def _loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (nats * mask.flatten()).mean() / mask.float().mean()
