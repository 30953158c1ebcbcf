"""The rows of performer-kernels: a kernel function each, and two of them at other sizes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from subquad.experiments.copy_rows import ONE_SEED
from subquad.experiments.language_options import KernelsOptions, listed
from subquad.experiments.language_rows import (
    Parts,
    language_task,
    measures,
    protein_parts,
    with_baseline,
)
from subquad.experiments.options import train_config
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.layers.performer import PerformerAttention
from subquad.layers.registry import MixerFactory
from subquad.ops.generalized_features import KERNEL_FUNCTIONS, GeneralizedKernel
from subquad.plots import Point, tradeoff_figure

FUNCTIONS, FEATURES = "functions", "features"  # the groups of rows


def run_performer_kernels(options: KernelsOptions, folder: Path, say: Say) -> Json:
    """Train the rows in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if data is missing or the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    parts = protein_parts(options.data, options.data_folder, joined_len=None)
    rows = run_rows("performer-kernels", kernel_rows(options, parts), options, folder, say)
    figures = {}
    if options.swept:
        file = "figures/features.png"
        write_figure(folder, file, _sweep_figure(options, rows))
        figures[file] = "Test loss against the number of features"
    negative = [n for n in listed(options.functions) if not KERNEL_FUNCTIONS[n].nonnegative]
    notes = [
        f"Data: {parts.source}.",
        f"Without the normaliser, because they can be negative: {', '.join(negative) or 'none'}.",
        ONE_SEED,
    ]
    results = combined(with_baseline(rows, parts), folder, figures)
    return results | {"data": parts.source, "notes": notes}


def kernel_rows(options: KernelsOptions, parts: Parts) -> list[Row]:
    """Return the rows: every function at one size, then some at the other sizes."""
    head_dim = options.model.d_model // options.model.num_heads
    one = GeneralizedKernel().num_directions(head_dim, options.num_features)
    rows = [_row(options, parts, FUNCTIONS, name, name, one) for name in listed(options.functions)]
    return rows + [
        _row(options, parts, FEATURES, f"{name}, {size}", name, size)
        for name in listed(options.swept)
        for size in options.sizes
    ]


def _row(
    options: KernelsOptions, parts: Parts, group: str, label: str, name: str, size: int
) -> Row:
    train, seq_len = train_config(options), options.seq_len
    return Row(
        group=group,
        label=label,
        build=partial(
            language_task,
            options,
            _mixer(name, size),
            parts,
            objective="masked",
            seq_len=seq_len,
            batch_size=options.train.batch_size,
        ),
        train=train,
        facts={"function": name, "num_features": size},
        measure=partial(measures, parts, train, seq_len),
    )


def _mixer(name: str, size: int) -> MixerFactory:
    function = KERNEL_FUNCTIONS[name]
    return partial(
        PerformerAttention,
        kernel=GeneralizedKernel(function=function),
        num_features=size,
        redraw_every=None,
        normalize=function.nonnegative,
    )


def _sweep_figure(options: KernelsOptions, rows: Sequence[Json]) -> Figure:
    """Draw the swept functions' losses; the row at the common size is one of their points."""
    panels = {
        name: [
            Point(label=str(row["num_features"]), x=float(row["num_features"]), y=row["test"])
            for row in sorted(rows, key=lambda row: int(row["num_features"]))
            if row["function"] == name and "test" in row
        ]
        for name in listed(options.swept)
    }
    return tradeoff_figure(
        panels,
        xlabel="features a head",
        ylabels={name: str(rows[0]["unit"]) for name in panels},
        joined=True,
    )
