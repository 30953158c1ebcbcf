"""Language modelling as rows: models, data and measures that the Performer's experiments share."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subquad.data.image_set import Bytes
from subquad.data.proteins import PROTEINS, load_proteins, made_up_proteins
from subquad.data.token_rows import TokenRows, Vocabulary, block_rows, joined, sequence_rows
from subquad.experiments.copy_rows import state_facts
from subquad.experiments.language_options import (
    AttentionsOptions,
    LanguageOptions,
    ProteinData,
)
from subquad.experiments.spec import Json
from subquad.layers.linformer import LinformerAttention
from subquad.layers.performer import PerformerAttention
from subquad.layers.registry import MIXERS, MixerFactory
from subquad.models.language_model import DecoderLM, EncoderLM
from subquad.ops.generalized_features import GeneralizedKernel
from subquad.tasks.config import TrainConfig
from subquad.tasks.estimate import seconds_per_step
from subquad.tasks.language_modelling import LanguageModellingTask, Objective, Unit, unigram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A data set as rows; ``held_out`` are families that nothing is learned from."""

    train: TokenRows
    validation: TokenRows
    test: TokenRows
    held_out: TokenRows | None
    vocabulary: Vocabulary
    source: str


def protein_parts(data: ProteinData, folder: Path | None, *, joined_len: int | None) -> Parts:
    """Return the protein sequences, one a row; or joined, in blocks of ``joined_len``.

    Raises:
        FileNotFoundError: if the data's file is not there.
        ValueError: if it is not what it should be.
    """
    found = made_up_proteins() if data == "made-up" else load_proteins(folder)

    def rows(sequences: Sequence[Bytes]) -> TokenRows:
        assert PROTEINS.boundary is not None
        if joined_len is None:
            return sequence_rows(sequences, PROTEINS.boundary)
        return block_rows(joined(sequences, PROTEINS.boundary), joined_len)

    return Parts(
        train=rows(found.train),
        validation=rows(found.validation),
        test=rows(found.test),
        held_out=rows(found.held_out),
        vocabulary=PROTEINS,
        source=found.source,
    )


def blank_parts(options: LanguageOptions, vocabulary: Vocabulary, seq_len: int) -> Parts:
    """Return rows of full length for an estimate, which needs no data."""
    rows = block_rows(np.zeros(options.train.batch_size * (seq_len + 1), np.uint8), seq_len + 1)
    return Parts(
        train=rows, validation=rows, test=rows, held_out=None, vocabulary=vocabulary, source="none"
    )


def attention(name: str, options: AttentionsOptions, seq_len: int) -> MixerFactory:
    """Return what builds the attention of that name; see ``language_options.ATTENTIONS``."""
    features: Any = {"num_features": options.num_features}
    if name == "favor+":
        return partial(PerformerAttention, redraw_every=options.redraw_every, **features)
    if name == "relu":
        kernel = GeneralizedKernel()
        return partial(PerformerAttention, kernel=kernel, redraw_every=None, **features)
    if name == "linformer":
        return partial(LinformerAttention, num_slots=max(1, seq_len // 4))
    return MIXERS[{"elu+1": "linear"}.get(name, name)]


def language_task(
    options: LanguageOptions,
    mixer: MixerFactory,
    parts: Parts,
    *,
    objective: Objective,
    seq_len: int,
    batch_size: int,
    unit: Unit = "nats/token",
) -> LanguageModellingTask:
    """Return the task with a new model; the seed fixes its weights."""
    torch.manual_seed(options.seed)
    kind = DecoderLM if objective == "causal" else EncoderLM
    model = kind(
        parts.vocabulary.size,
        mixer=mixer,
        max_len=seq_len,
        **dataclasses.asdict(options.model),
    )
    return LanguageModellingTask(
        model,
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
        vocabulary=parts.vocabulary,
        objective=objective,
        seq_len=seq_len,
        batch_size=batch_size,
        seed=options.seed,
        unit=unit,
    )


def measures(
    parts: Parts, train: TrainConfig, seq_len: int, task: LanguageModellingTask, folder: Path
) -> Json:
    """Return a row's figures on held-out families, its seconds a step, and its state's bytes."""
    found: Json = {"seconds_per_step": seconds_per_step(task, train)}
    if parts.held_out is not None:
        found |= _held_out(task.measure(parts.held_out))
    if isinstance(task.model, DecoderLM):
        found |= state_facts(task.model, seq_len)
    return found


def empirical(parts: Parts, group: str, unit: Unit) -> Json:
    """Return the row of the baseline that knows how frequent each letter is, and nothing else."""
    test = unigram(parts.train, parts.test, parts.vocabulary)
    row: Json = {
        "row": f"{group}-unigram",
        "group": group,
        "label": "unigram",
        "unit": unit,
        "test": test["loss"] / np.log(2) if unit == "bits/byte" else test["loss"],
        "test_accuracy": test["accuracy"],
        "test_perplexity": test["perplexity"],
    }
    if parts.held_out is not None:
        row |= _held_out(unigram(parts.train, parts.held_out, parts.vocabulary))
    return row


def with_baseline(rows: Sequence[Json], parts: Parts) -> list[Json]:
    """Return the rows with that baseline before the first of each group."""
    found: list[Json] = []
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        found += [empirical(parts, group, of_group[0]["unit"]), *of_group]
    return found


def _held_out(measured: dict[str, float]) -> Json:
    return {f"held_out_{name}": measured[name] for name in ("accuracy", "perplexity")}
