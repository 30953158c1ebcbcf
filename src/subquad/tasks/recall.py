"""Learning to answer with the value that belongs to a key: associative recall."""

from torch import nn

from subquad.data.associative_recall import RecallBatch, recall_batch
from subquad.tasks.marked_tokens import MarkedTokensTask


class RecallTask(MarkedTokensTask):
    """Minimise the nats per answer of a model from tokens (B, T) to logits (B, T, vocab).

    Args:
        model: any model of that kind with a vocabulary of ``num_keys + num_values``, such as
            :class:`subquad.models.DecoderLM`.
        batch_size: sequences in one micro-batch.
        seed: seed of the training sequences.
        num_pairs: keys with their values in a sequence, each asked once.
        num_keys: keys to draw from.
        num_values: values to draw from.

    Raises:
        ValueError: if a number is outside its range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        seed: int = 0,
        num_pairs: int = 16,
        num_keys: int = 32,
        num_values: int = 32,
    ) -> None:
        sizes = {"num_pairs": num_pairs, "num_keys": num_keys, "num_values": num_values}

        def draw(seed: int, step: int) -> RecallBatch:
            return recall_batch(batch_size, seed=seed, step=step, **sizes)

        super().__init__(model, draw, batch_size=batch_size, seed=seed, name="recall", sizes=sizes)
