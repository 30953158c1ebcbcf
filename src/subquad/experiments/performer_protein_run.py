"""The rows of performer-protein: attentions from both sides and left to right, beside Table 2."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import ProteinOptions, listed
from subquad.experiments.language_rows import (
    Parts,
    attention,
    language_task,
    measures,
    protein_parts,
    with_baseline,
)
from subquad.experiments.options import train_config
from subquad.experiments.performer_tables import BIDIRECTIONAL, UNIDIRECTIONAL, beside
from subquad.experiments.rows import Row, combined, run_rows
from subquad.experiments.spec import Json, Say
from subquad.tasks.language_modelling import Objective

JOINED = "joined"
PAIR = "softmax,relu"  # of the rows on joined sequences, as in Figure 7 (right)

NOTE = (
    "The paper's columns are its Table 2: 36 layers of width 512, trained on 104,863,744 sequences "
    "of TrEMBL; its held-out families are 20 of Pfam. Ours are sequences that share no ten "
    "residues in a row with any that is trained on. The unigram row guesses the most frequent "
    "residue, and is measured on whole sequences, the others on the first {length} residues."
)


def run_performer_protein(options: ProteinOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    joined_len = options.joined_len + 1 if options.concatenated else None
    parts = protein_parts(options.data, options.data_folder, joined_len=joined_len)
    rows = run_rows("performer-protein", protein_rows(options, parts), options, folder, say)
    rows = with_baseline(rows, parts)
    if not options.concatenated:
        rows = [row | beside(row["group"], row["label"]) for row in rows]
    results = combined(rows, folder, {})
    notes = [f"Data: {parts.source}.", NOTE.format(length=row_len(options)), ONE_SEED]
    return results | {"data": parts.source, "notes": notes}


def protein_rows(options: ProteinOptions, parts: Parts) -> list[Row]:
    """Return the rows: those from both sides, then those left to right; or the joined pair."""
    groups: list[tuple[str, Objective, str]] = [
        (BIDIRECTIONAL, "masked", options.bidirectional),
        (UNIDIRECTIONAL, "causal", options.unidirectional),
    ]
    if options.concatenated:
        groups = [(JOINED, "causal", PAIR)]
    batch_size = 1 if options.concatenated else options.train.batch_size
    train, seq_len = replace(train_config(options), batch_size=batch_size), row_len(options)
    return [
        Row(
            group=group,
            label=name,
            build=partial(
                language_task,
                options,
                attention(name, options, seq_len),
                parts,
                objective=objective,
                seq_len=seq_len,
                batch_size=batch_size,
            ),
            train=train,
            measure=partial(measures, parts, train, seq_len),
        )
        for group, objective, names in groups
        for name in listed(names)
    ]


def row_len(options: ProteinOptions) -> int:
    """Return the length of the rows' sequences."""
    return options.joined_len if options.concatenated else options.seq_len
