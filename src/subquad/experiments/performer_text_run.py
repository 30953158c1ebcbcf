"""The rows of performer-text: attentions that predict the next byte."""

from functools import partial
from pathlib import Path

from subquad.data.text import BYTES, load_text, source_text
from subquad.data.token_rows import block_rows
from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import TextOptions, listed
from subquad.experiments.language_rows import (
    Parts,
    attention,
    language_task,
    measures,
    with_baseline,
)
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, run_rows
from subquad.experiments.spec import Json, Say

TEXT = "text"  # the group of these rows


def run_performer_text(options: TextOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    parts = text_parts(options)
    rows = run_rows("performer-text", text_rows(options, parts), options, folder, say)
    notes = [
        f"Data: {parts.source}, in blocks of {options.seq_len}; each byte is predicted from those "
        "before it in its block.",
        "The unigram row knows how frequent each byte is, and nothing else.",
        ONE_SEED,
    ]
    results = combined(with_baseline(rows, parts), folder, {})
    return results | {"data": parts.source, "notes": notes}


def text_parts(options: TextOptions) -> Parts:
    """Return the text in blocks, each a byte longer than what is read of it at once.

    Raises:
        FileNotFoundError: if the data's file is not there.
        ValueError: if it is not what it should be.
    """
    found = source_text() if options.data == "source" else load_text(options.data_folder)
    length = options.seq_len + 1
    return Parts(
        train=block_rows(found.train, length),
        validation=block_rows(found.validation, length),
        test=block_rows(found.test, length),
        held_out=None,
        vocabulary=BYTES,
        source=found.source,
    )


def text_rows(options: TextOptions, parts: Parts) -> list[Row]:
    """Return the rows, in the order of ``options.attentions``."""
    train, seq_len = train_config(options), options.seq_len
    return [
        Row(
            group=TEXT,
            label=name,
            build=partial(
                language_task,
                options,
                attention(name, options, seq_len),
                parts,
                objective="causal",
                seq_len=seq_len,
                batch_size=options.train.batch_size,
                unit="bits/byte",
            ),
            train=train,
            measure=partial(measures, parts, train, seq_len),
        )
        for name in listed(options.attentions)
    ]
