"""The rows of hybrid-share: five shares of softmax heads on two tasks, and their states' bytes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from subquad.experiments.copy_rows import (
    COPY,
    ONE_SEED,
    copy_task,
    language_model,
    state_facts,
)
from subquad.experiments.options import train_config
from subquad.experiments.row_options import HybridShareOptions
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.models.language_model import DecoderLM
from subquad.plots import Point, tradeoff_figure
from subquad.tasks.marked_tokens import MarkedTokensTask
from subquad.tasks.recall import RecallTask

RECALL = "recall"
SHARES = (0.0, 12.5, 25.0, 50.0, 100.0)  # per cent


def run_hybrid_share(options: HybridShareOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    rows = run_rows("hybrid-share", hybrid_share_rows(options), options, folder, say)
    file = "figures/state.png"
    write_figure(folder, file, _state_figure(rows))
    seen = "all tokens" if options.softmax_window is None else f"{options.softmax_window} tokens"
    notes = [
        f"Softmax heads see {seen}; the others are linear. Bytes of state are those of one "
        "sequence at full length: keys and values of softmax heads, running sums of linear ones.",
        ONE_SEED,
    ]
    figures = {file: "Share of wrong symbols against the bytes of the state"}
    return combined(rows, folder, figures) | {"notes": notes}


def hybrid_share_rows(options: HybridShareOptions) -> list[Row]:
    """Return the rows: each share on copying, then on recall."""
    return [
        Row(
            group=group,
            label=f"{share:g} %",
            build=partial(build, options, share / 100),
            train=train_config(options),
            facts={"softmax_percent": share},
            measure=partial(_measure_state, seq_len),
        )
        for group, build, seq_len in (
            (COPY, _copying, options.max_len),
            (RECALL, _recall, 4 * options.num_pairs),
        )
        for share in SHARES
    ]


def _copying(options: HybridShareOptions, share: float) -> MarkedTokensTask:
    return copy_task(options, "linear", softmax_share=share, softmax_window=options.softmax_window)


def _recall(options: HybridShareOptions, share: float) -> MarkedTokensTask:
    model = language_model(
        options,
        "linear",
        vocab_size=options.num_keys + options.num_values,
        max_len=4 * options.num_pairs,
        softmax_share=share,
        softmax_window=options.softmax_window,
    )
    return RecallTask(
        model,
        batch_size=options.train.batch_size,
        seed=options.seed,
        num_pairs=options.num_pairs,
        num_keys=options.num_keys,
        num_values=options.num_values,
    )


def _measure_state(seq_len: int, task: MarkedTokensTask, folder: Path) -> Json:
    assert isinstance(task.model, DecoderLM)
    return state_facts(task.model, seq_len)


def _state_figure(rows: Sequence[Json]) -> Figure:
    panels = {
        group: [
            Point(label=row["label"], x=float(row["state_bytes"]), y=1 - row["test_accuracy"])
            for row in rows
            if row["group"] == group and "test" in row
        ]
        for group in (COPY, RECALL)
    }
    return tradeoff_figure(
        panels,
        xlabel="state of one sequence, bytes",
        ylabels=dict.fromkeys(panels, "share wrong"),
        joined=True,
    )
