"""Learning to predict tokens of real sequences: masked ones from both sides, or the next one.

Source: Choromanski et al. 2021, section 4.4 (proteins; 15 % masked, or left to right); the masking
is that of Devlin et al. 2019, "BERT", section 3.1.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.data.token_rows import Ids, TokenRows, Vocabulary, shuffled, take_rows

Objective = Literal["masked", "causal"]
Unit = Literal["nats/token", "bits/byte"]

MASKS_SEED = 1_000_000_007  # of the places that are guessed in evaluations
QUICK_ROWS = 256
EVALUATION_TOKENS = 16_384  # in one forward pass of an evaluation, unless one row has more
LARGEST_EXPONENT = 80.0  # of a perplexity, lest it overflow


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens are to be guessed, and what stands in their places.

    Args:
        chosen: share of the tokens that are guessed, each by itself.
        masked: share of these that are replaced by the mask.
        replaced: share of these that are replaced by a letter drawn at random; the rest stays.

    Raises:
        ValueError: if a share does not lie from 0 to 1, or the last two are more than 1 together.
    """

    chosen: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        for name in ("chosen", "masked", "replaced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")
        if self.masked + self.replaced > 1:
            raise ValueError(
                "masked and replaced must be at most 1 together, "
                f"got {self.masked} and {self.replaced}"
            )


class LanguageModellingTask:
    """Minimise the nats per guessed token of a model from ids (B, T) to logits (B, T, W).

    Args:
        model: :class:`subquad.models.EncoderLM` for "masked", :class:`subquad.models.DecoderLM` for
            "causal", or another with their ``vocab_size`` and arguments.
        train: rows to learn from; each pass over them has an order of its own.
        validation: rows of the quick evaluations, the first ones of them.
        test: rows of the full one.
        vocabulary: of the rows.
        objective: "masked": guess the tokens that ``masking`` chose. "causal": guess each token
            from those before it in the row; of the first there is nothing to guess from, unless a
            boundary stands before it.
        masking: how tokens are masked.
        seq_len: longer rows are cut: at a random place to learn from, behind their beginning to be
            measured on. A causal row is one token longer.
        batch_size: rows in one micro-batch.
        seed: seed of the order, of the cuts and of the masks.
        unit: "nats/token" or "bits/byte".

    Raises:
        ValueError: if a number or a name is out of its range, a part is empty, or model,
            vocabulary and objective do not fit each other.
    """

    sample_name = "sequences"

    def __init__(
        self,
        model: nn.Module,
        *,
        train: TokenRows,
        validation: TokenRows,
        test: TokenRows,
        vocabulary: Vocabulary,
        objective: Objective,
        masking: Masking | None = None,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        unit: Unit = "nats/token",
    ) -> None:
        for name, value, known in (
            ("objective", objective, get_args(Objective)),
            ("unit", unit, get_args(Unit)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        for name, number, least in (
            ("seq_len", seq_len, 2),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        if seed >= MASKS_SEED:
            raise ValueError(f"seed must be below {MASKS_SEED}, got {seed}")
        _check_parts(model, vocabulary, objective, train=train, validation=validation, test=test)
        self.model = model
        self.unit: str = unit
        self.samples_per_step, self._seed, self._seq_len = batch_size, seed, seq_len
        self._train, self._validation, self._test = train, validation, test
        self._vocabulary, self._objective = vocabulary, objective
        self._masking = Masking() if masking is None else masking
        self._order: tuple[int, Ids] = (-1, np.empty(0, np.int64))
        self.identity: dict[str, Any] = {
            "name": "language modelling",
            "seed": seed,
            "objective": objective,
            "seq_len": seq_len,
            "rows": len(train.starts),
            "checksums": [_checksum(part) for part in (train, validation, test)],
            **({} if objective == "causal" else vars(self._masking)),
        }

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return micro-batch ``step``: ids, targets and which of them count (B, T).

        Masked ones have a fourth tensor: which tokens are no padding.
        """
        first, size = step * self.samples_per_step, len(self._train.starts)
        places = [
            int(self._epoch(i // size)[i % size])
            for i in range(first, first + self.samples_per_step)
        ]
        rng = np.random.default_rng((self._seed, step))
        return self._examples(self._train, np.array(places), rng, cut_at_random=True)

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean nats per guessed token; 0 if there is none."""
        nats, _, count = self._measure(batch)
        return nats / max(count, 1)

    def metric(self, loss: float) -> float:
        """Return nats in :attr:`unit`."""
        return loss / math.log(2) if self.unit == "bits/byte" else loss

    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return loss, accuracy and perplexity on the test rows, or on some of validation."""
        return self.measure(self._test) if full else self.measure(self._validation, QUICK_ROWS)

    @torch.no_grad()
    def measure(self, rows: TokenRows, at_most: int | None = None) -> dict[str, float]:
        """Return "loss" (in :attr:`unit`), "accuracy" and "perplexity" (of a token) on rows.

        The masks are always the same: neither the model nor its seed changes what is guessed.

        Args:
            rows: any rows of the task's vocabulary, such as those of families held out.
            at_most: take the first so many; None for all.

        Raises:
            ValueError: if no token of them is to be guessed.
        """
        device, was_training = next(self.model.parameters()).device, self.model.training
        total = len(rows.starts) if at_most is None else min(at_most, len(rows.starts))
        nats, right, count = 0.0, 0, 0
        at_once = max(1, EVALUATION_TOKENS // self._seq_len)
        self.model.eval()
        try:
            for i, first in enumerate(range(0, total, at_once)):
                places = np.arange(first, min(first + at_once, total))
                rng = np.random.default_rng((MASKS_SEED, i))
                batch = self._examples(rows, places, rng, cut_at_random=False)
                part_nats, part_right, part_count = self._measure([t.to(device) for t in batch])
                nats, right = nats + float(part_nats), right + int(part_right)
                count += part_count
        finally:
            self.model.train(was_training)
        if not count:
            raise ValueError(f"rows must hold a token to guess, got none in {total} rows")
        mean = nats / count
        return {
            "loss": self.metric(mean),
            "accuracy": right / count,
            "perplexity": math.exp(min(mean, LARGEST_EXPONENT)),
        }

    def _measure(self, batch: Any) -> tuple[Tensor, Tensor, int]:
        """Return the summed nats of the guessed tokens, how many are right, and how many there are.

        Only their logits are looked at, so that nothing hangs on the others.
        """
        tokens, targets, counts, *key_mask = batch
        logits = self.model(tokens, key_mask=key_mask[0]) if key_mask else self.model(tokens)
        logits, wanted = logits[counts], targets[counts]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits, wanted, reduction="sum")
        return nats, (logits.argmax(-1) == wanted).sum(), len(wanted)

    def _examples(
        self, rows: TokenRows, places: Ids, rng: np.random.Generator, *, cut_at_random: bool
    ) -> tuple[Tensor, ...]:
        causal, words = self._objective == "causal", self._vocabulary
        ids = take_rows(
            rows,
            places,
            self._seq_len + causal,
            padding=words.padding,
            rng=rng if cut_at_random else None,
        )
        if causal:
            tokens, targets = ids[:, :-1], ids[:, 1:]
            arrays = [tokens, targets, targets < words.letters]
        else:
            chosen = (rng.random(ids.shape) < self._masking.chosen) & (ids < words.letters)
            arrays = [self._masked(ids, chosen, rng), ids, chosen]
            if words.padding is not None:
                arrays.append(ids != words.padding)
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    def _masked(self, ids: Ids, chosen: Any, rng: np.random.Generator) -> Ids:
        assert self._vocabulary.mask is not None
        kind = rng.random(ids.shape)
        drawn = rng.integers(0, self._vocabulary.letters, ids.shape)
        masked, replaced = self._masking.masked, self._masking.masked + self._masking.replaced
        seen = np.where(kind < masked, self._vocabulary.mask, np.where(kind < replaced, drawn, ids))
        return np.where(chosen, seen, ids)

    def _epoch(self, number: int) -> Ids:
        """Return the order of the rows in pass ``number``; the last one asked for is kept."""
        if self._order[0] != number:
            self._order = (number, shuffled(len(self._train.starts), self._seed, number))
        return self._order[1]


def unigram(train: TokenRows, test: TokenRows, vocabulary: Vocabulary) -> dict[str, float]:
    """Return accuracy and perplexity of guessing by how often each letter is in ``train``.

    The paper's empirical baseline: always the most frequent letter; the perplexity is that of the
    frequencies, each count one higher so that none is 0.
    """
    seen, wanted = (
        np.bincount(rows.tokens, minlength=vocabulary.size)[: vocabulary.letters]
        for rows in (train, test)
    )
    log_shares = np.log((seen + 1) / (seen + 1).sum())
    mean = -float((wanted * log_shares).sum() / wanted.sum())
    return {
        "loss": mean,
        "accuracy": float(wanted[seen.argmax()] / wanted.sum()),
        "perplexity": math.exp(mean),
    }


def _check_parts(
    model: nn.Module, vocabulary: Vocabulary, objective: Objective, **parts: TokenRows
) -> None:
    size = getattr(model, "vocab_size", None)
    if size != vocabulary.size:
        raise ValueError(f"model must have the vocabulary's {vocabulary.size} ids, got {size}")
    if objective == "masked" and vocabulary.mask is None:
        raise ValueError("vocabulary must have a mask for the objective masked, got None")
    for name, rows in parts.items():
        if not len(rows.starts):
            raise ValueError(f"{name} must hold at least one row, got none")


def _checksum(rows: TokenRows) -> str:
    return f"{zlib.crc32(rows.lengths.data, zlib.crc32(rows.tokens.data)):08x}"
