"""Learning to repeat a sequence of symbols: the task of section 4.1 of the paper.

Source: Katharopoulos et al. 2020, and the loss of the released experiment:
mean(mask * CE) / mean(mask) over the batch, so that a long sequence weighs more than a short one.
"""

from torch import nn

from subquad.data.copy_task import CopyBatch, copy_batch
from subquad.tasks.marked_tokens import MarkedTokensTask


class CopyTask(MarkedTokensTask):
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

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        seed: int = 0,
        max_len: int = 128,
        num_symbols: int = 10,
    ) -> None:
        sizes = {"max_len": max_len, "num_symbols": num_symbols}

        def draw(seed: int, step: int) -> CopyBatch:
            return copy_batch(batch_size, seed=seed, step=step, **sizes)

        super().__init__(model, draw, batch_size=batch_size, seed=seed, name="copying", sizes=sizes)
