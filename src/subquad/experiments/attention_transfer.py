"""The task of a swapped model: first attention transfer, then language modelling."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subquad.data.image_set import Bytes
from subquad.data.token_rows import TokenRows, Vocabulary, sequence_rows
from subquad.pretrained.saving import SwapOptions
from subquad.pretrained.transfer import LanguageModel, Teacher, mask_argument
from subquad.tasks.language_modelling import LanguageModellingTask

BATCH = 32  # rows of an evaluation


class TransferTask(LanguageModellingTask):
    """Match softmax attention for some steps, then learn to predict tokens.

    Args:
        teacher: what the attention is matched with; None where there are no such steps.
        transfer_steps: how many micro-batches are matched, the first ones.
        options: as ``LanguageModellingTask``; its model must be a ``LanguageModel``.

    Raises:
        ValueError: if ``transfer_steps`` is negative, or there are some but no teacher.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        teacher: Teacher | None = None,
        transfer_steps: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if transfer_steps < 0 or (transfer_steps and teacher is None):
            raise ValueError(
                f"transfer_steps must be at least 0, and 0 without a teacher, got {transfer_steps}"
            )
        self._teacher, self._transfer_steps = teacher, transfer_steps
        self._language_model = model
        swapped = [
            str(module.extra_repr())
            for name, module in model.named_modules()
            if name.endswith(".subquad")
        ]
        self.identity |= {"transfer_steps": transfer_steps, "mixers": swapped}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return a micro-batch, and last whether attention is matched, (B,) bool."""
        found = super().batch(step)
        return (*found, torch.full((len(found[0]),), step < self._transfer_steps))

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the relative error of attention, or the mean nats per guessed token."""
        *examples, matches = batch
        if self._teacher is None or not bool(matches[0]):
            return super().loss(*examples)
        tokens, _, _, *key_mask = examples
        return self._teacher.transfer_loss(
            self._language_model.pretrained,
            self._language_model.ids[tokens],
            mask_argument(key_mask[0] if key_mask else None),
        )


class MatchTask(TransferTask):
    """Match attention alone, of a model without a head that guesses tokens, such as MiniLM.

    Args:
        original: the model before the swap.
        options: as ``TransferTask``.
    """

    sample_name = "sequences"

    def __init__(self, model: LanguageModel, *, original: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.unit: Any = "relative error"
        self._original = original.eval().requires_grad_(False)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the relative squared error of the attention outputs, the mean over layers."""
        assert self._teacher is not None
        return self._teacher.transfer_loss(self._language_model.pretrained, *self._inputs(batch))

    @torch.no_grad()
    def measure(self, rows: TokenRows, at_most: int | None = None) -> dict[str, float]:
        """Return "loss", the relative squared error of the last hidden states, as after no swap."""
        model, total = self._language_model.pretrained, len(rows.starts)
        was_training = self.model.training
        self.model.eval()
        self._original.to(self._language_model.ids.device)
        wrong, size = 0.0, 0.0
        try:
            for first in range(0, total if at_most is None else min(at_most, total), BATCH):
                places = np.arange(first, min(first + BATCH, total))
                rng = np.random.default_rng(0)
                ids, mask = self._inputs(self._examples(rows, places, rng, cut_at_random=False))
                found, wanted = (
                    one(input_ids=ids, attention_mask=mask).last_hidden_state
                    for one in (model, self._original)
                )
                kept = slice(None) if mask is None else mask.bool()
                wrong += float((found - wanted)[kept].square().sum())
                size += float(wanted[kept].square().sum())
        finally:
            self.model.train(was_training)
        return {"loss": wrong / size}

    def _inputs(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return the unmasked tokens, as the model knows them, and which are no padding."""
        _, tokens, _, *key_mask = batch
        table = self._language_model.ids
        mask = mask_argument(key_mask[0].to(table.device)) if key_mask else None
        return table[tokens.to(table.device)], mask


def language_model(
    pretrained: Any, swap: SwapOptions | None, ids: Tensor, *, transfers: bool
) -> tuple[LanguageModel, Teacher | None]:
    """Return a swapped copy of a model, and its teacher if one is wanted; None swaps nothing."""
    model = copy.deepcopy(pretrained)
    if swap is None:
        return LanguageModel(model, ids), None
    teacher = Teacher(pretrained) if transfers else None
    return LanguageModel(swap.apply(model), ids), teacher


def framed_rows(sequences: tuple[Bytes, ...], begin: int, end: int) -> TokenRows:
    """Return a row for each sequence, between two tokens that need not be the same."""
    rows = sequence_rows(sequences, begin)
    tokens = rows.tokens.copy()
    tokens[rows.starts + rows.lengths - 1] = end
    return TokenRows(tokens, rows.starts, rows.lengths)


# Our tokens of AntiBERTy: the residues in the order of the alphabet, then its special ones.
ANTIBERTY = Vocabulary(letters=20, size=24, boundary=20, mask=22, padding=23)
ANTIBERTY_END = 21
ANTIBERTY_IDS = torch.from_numpy(np.concatenate([np.arange(5, 25), [2, 3, 4, 0]]))


def antiberty_rows(sequences: tuple[Bytes, ...]) -> TokenRows:
    """Return chains as rows of ``ANTIBERTY``, with both ends."""
    return framed_rows(sequences, 20, ANTIBERTY_END)
