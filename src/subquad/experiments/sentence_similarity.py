"""Sentence similarities of MiniLM with FAVOR+ swapped in, against the number of features."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.data.fetch import cache_dir
from subquad.experiments.spec import Json
from subquad.pretrained.swapping import swap
from subquad.pretrained.weights import load_tokenizer

GROUP = "sentence similarities"
COUNTS = (32, 64, 128, 256, 512, 1024, 2048)  # directions of a head; its width is 32
DRAWS = 5

_WHO = ("A doctor", "The old fisherman", "My neighbour's daughter", "The committee")
_DOES = (
    "bought a loaf of bread at the market", "explained how the engine works",
    "sang a song about the sea", "lost the key to the garden shed",
    "wrote a long letter to the newspaper", "planted three apple trees",
)  # fmt: skip
_WHEN = ("before the rain began", "although nobody had asked for it")
SENTENCES = tuple(f"{a} {b} {c}." for a, b, c in itertools.product(_WHO, _DOES, _WHEN))


def similarity_rows(
    model: Any,
    sentences: Sequence[str] | None = SENTENCES,
    *,
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
) -> list[Json]:
    """Return a row for each number of features: the mean error of two sentences' cosine.

    Args:
        model: a BERT of sentences; it is swapped, and left so.
        sentences: None for made-up tokens, where there is no tokenizer.
        counts: numbers of features.
        draws: of the directions, over which the mean is taken.
    """
    ids, mask = _inputs(model, sentences)
    exact = _similarities(model, ids, mask)
    pairs = ~torch.eye(len(ids), dtype=torch.bool)
    rows = []
    for count in counts:
        errors = []
        for seed in range(draws):
            swap(model, num_features=count, seed=seed, redraw_every=None)
            errors.append((_similarities(model, ids, mask) - exact).abs()[pairs].mean())
        found = {"num_features": count, "distance": float(torch.stack(errors).mean())}
        rows.append({"row": GROUP, "group": GROUP, "label": f"FAVOR+, {count}", "unit": ""} | found)
    return rows


@torch.no_grad()
def _similarities(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.unsqueeze(-1)
    vectors = F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)
    return vectors @ vectors.T


def _inputs(model: Any, sentences: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    if sentences is None:
        ids = torch.randint(5, model.config.vocab_size, (6, 12))
        return ids, torch.ones_like(ids)
    tokenizer = load_tokenizer(cache_dir() / "minilm")
    found = tokenizer(list(sentences), padding=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]
