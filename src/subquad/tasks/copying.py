"""Learning to repeat a sequence of symbols: the task of section 4.1 of the paper.

Source: Katharopoulos et al. 2020, and the loss of the released experiment:
mean(mask * CE) / mean(mask) over the batch, so that a long sequence weighs more than a short one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.data.copy_task import copy_batch

HELD_OUT_SEED = 1_000_000_007  # of the batches that are only measured on
QUICK_BATCHES, FULL_BATCHES = 4, 20


class CopyTask:
    """Minimise the nats per copied symbol of a model from tokens (B, T) to logits (B, T, vocab).

    Args:
        model: any model of that kind with a vocabulary of ``num_symbols + 1``, such as
            :class:`subquad.models.DecoderLM`.
        batch_size: sequences in one micro-batch.
        seed: seed of the training sequences.
        max_len: length of the sequences.
        num_symbols: symbols to copy, besides the separator.

    Raises:
        ValueError: if a number is outside its range.
    """

    unit = "nats/token"
    sample_name = "sequences"

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        seed: int = 0,
        max_len: int = 128,
        num_symbols: int = 10,
    ) -> None:
        if not 0 <= seed < HELD_OUT_SEED:
            raise ValueError(f"seed must be from 0 to {HELD_OUT_SEED - 1}, got {seed}")
        self.model = model
        self.samples_per_step, self._seed = batch_size, seed
        self._sizes = {"max_len": max_len, "num_symbols": num_symbols}
        copy_batch(batch_size, seed=seed, step=0, **self._sizes)  # refuses sizes that do not work
        self.identity: dict[str, Any] = {"name": "copying", "seed": seed, **self._sizes}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return tokens, targets and loss mask (B, T) of micro-batch ``step``."""
        return tuple(copy_batch(self.samples_per_step, seed=self._seed, step=step, **self._sizes))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean nats per symbol that the mask counts."""
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
                batch = copy_batch(
                    self.samples_per_step, seed=HELD_OUT_SEED, step=step, **self._sizes
                )
                tokens, targets, mask = (t.to(device) for t in batch)
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
