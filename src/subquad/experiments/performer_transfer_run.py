"""The rows of performer-transfer: kinds of features in one pretrained model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from subquad.data.antibodies import AntibodySet, load_antibodies, made_up_antibodies
from subquad.experiments.attention_transfer import (
    ANTIBERTY,
    ANTIBERTY_IDS,
    TransferTask,
    antiberty_rows,
    language_model,
)
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.options import train_config
from subquad.experiments.performer_transfer import TransferOptions
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.sentence_similarity import similarity_rows
from subquad.experiments.spec import Json, Say
from subquad.plots.recovery import read_accuracy, recovery_figure
from subquad.pretrained.saving import SwapOptions
from subquad.pretrained.weights import load_antiberty, load_minilm
from subquad.tasks.language_modelling import Masking

GROUP = "masked residues"
SEQ_LEN = 128
ENOUGH = 0.8  # of the residues must softmax guess right, for the fall to mean something


def run_transfer(options: TransferOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        FileNotFoundError: if the weights or the chains were not brought before.
        ValueError: if the folder holds rows of other options, or softmax itself guesses too few.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    chains, before = _chains(options), _task(options, None, 0).evaluate(full=True)
    say(f"softmax, before the swap: {before['accuracy']:.1%} of the masked residues")
    if options.weights == "antiberty" and before["accuracy"] < ENOUGH:
        raise ValueError(
            f"softmax must guess {ENOUGH:.0%} of the held-out residues, "
            f"got {before['accuracy']:.1%}"
        )
    rows = run_rows("performer-transfer", transfer_rows(options), options, folder, say)
    file = "figures/recovery.png"
    write_figure(folder, file, _figure(rows, folder, before["accuracy"], options.transfer_steps))
    results = combined(rows, folder, {file: "Accuracy on held-out chains after the swap"})
    for row in rows:
        row["below_softmax"] = before["accuracy"] - row.get("test_accuracy", 0.0)
    results["rows"] = [*rows, *_sentences(options, say)]
    notes = [
        f"Softmax, before the swap: {before['accuracy']:.1%} of the masked residues, "
        f"{before['loss']:.3f} nats a residue. Chains: {chains.source}.",
        "The paper (Figure 5, LM1B): 0.07 right at the swap, and recovery in a small fraction of "
        "the original steps; its final values are not printed.",
        "Sentence similarities: the distance is the mean difference of two sentences' cosine from "
        "that with softmax, over five draws; nothing was trained.",
        ONE_SEED,
    ]
    return results | {"notes": notes, "softmax": before}


def transfer_rows(options: TransferOptions) -> list[Row]:
    """Return the rows: kinds of features, and one without matching attention first."""
    fixed: dict[str, Any] = {"num_features": options.num_features, "seed": options.seed}
    redrawn = SwapOptions(**fixed, redraw_every=options.redraw_every)
    kinds: list[tuple[str, SwapOptions, int]] = [
        ("FAVOR+", SwapOptions(**fixed), options.transfer_steps),
        ("FAVOR+, drawn anew", redrawn, options.transfer_steps),
        ("FAVOR+, not matched", SwapOptions(**fixed), 0),
        ("trigonometric", SwapOptions(**fixed, kernel="trigonometric"), options.transfer_steps),
        ("ReLU", SwapOptions(**fixed, kernel="relu"), options.transfer_steps),
        ("elu + 1", SwapOptions(mixer="linear", seed=options.seed), options.transfer_steps),
    ]
    return [
        Row(
            group=GROUP,
            label=label,
            build=partial(_task, options, swap, transfer_steps),
            train=train_config(options),
            facts={} if swap.num_features is None else {"num_features": swap.num_features},
            measure=partial(_at_the_swap, options, swap),
        )
        for label, swap, transfer_steps in kinds
    ]


def _task(options: TransferOptions, swap: SwapOptions | None, transfer_steps: int) -> TransferTask:
    chains = _chains(options)
    torch.manual_seed(options.seed)
    pretrained = _tiny(BertForMaskedLM) if options.weights == "tiny" else load_antiberty()
    model, teacher = language_model(pretrained, swap, ANTIBERTY_IDS, transfers=transfer_steps > 0)
    return TransferTask(
        model,
        teacher=teacher,
        transfer_steps=transfer_steps,
        train=antiberty_rows(chains.train),
        validation=antiberty_rows(chains.validation),
        test=antiberty_rows(chains.test),
        vocabulary=ANTIBERTY,
        objective="masked",
        masking=Masking(masked=1.0, replaced=0.0),
        seq_len=SEQ_LEN,
        batch_size=options.train.batch_size,
        seed=options.seed,
    )


def _at_the_swap(options: TransferOptions, swap: SwapOptions, _: TransferTask, __: Path) -> Json:
    return {"accuracy_at_swap": _task(options, swap, 0).evaluate(full=True)["accuracy"]}


def _chains(options: TransferOptions) -> AntibodySet:
    return made_up_antibodies() if options.weights == "tiny" else load_antibodies()


def _sentences(options: TransferOptions, say: Say) -> list[Json]:
    say("sentence similarities of MiniLM, against the number of features")
    if options.weights == "tiny":
        return similarity_rows(_tiny(BertModel), None, counts=(8, 32), draws=1)
    return similarity_rows(load_minilm())


def _tiny(kind: Any) -> Any:
    config = BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=SEQ_LEN,
    )  # fmt: skip
    return kind(config).eval()


def _figure(rows: Sequence[Json], folder: Path, before: float, transfer_steps: int) -> Any:
    curves = {
        row["label"]: read_accuracy(path)
        for row in rows
        if (path := folder / row["row"] / "metrics.csv").is_file()
    }
    return recovery_figure(
        curves, before=before, transfer_steps=transfer_steps, ylabel="masked residues right"
    )
