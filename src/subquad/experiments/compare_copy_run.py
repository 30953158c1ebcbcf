"""The rows of compare-copy: each causal mixer, its reach set by the length of the sequences."""

from functools import partial
from pathlib import Path

from subquad.data.copy_task import copy_batch
from subquad.experiments.attention_maps import last_layer_rows
from subquad.experiments.copy_rows import COPY, ONE_SEED, copy_task, state_facts
from subquad.experiments.options import train_config
from subquad.experiments.row_options import CompareCopyOptions
from subquad.experiments.rows import Row, combined, run_rows, write_figure
from subquad.experiments.spec import Json, Say
from subquad.layers.hybrid import HybridAttention
from subquad.layers.local_attention import LocalAttention
from subquad.layers.lsh_attention import LSHAttention
from subquad.layers.registry import MixerFactory
from subquad.layers.strided_attention import StridedAttention
from subquad.models.language_model import DecoderLM
from subquad.plots import attention_figure
from subquad.tasks.copying import CopyTask
from subquad.tasks.marked_tokens import HELD_OUT_SEED


def run_compare_copy(options: CompareCopyOptions, folder: Path, say: Say) -> Json:
    """Train a row a mixer in ``folder``; return the results.

    Raises:
        ValueError: if the folder holds rows of other options.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: if Ctrl-C stopped the training; its checkpoint is saved.
    """
    rows = run_rows("compare-copy", compare_copy_rows(options), options, folder, say)
    notes = [
        "The paper's Figure 2 has the curves of softmax, lsh-4 and linear, and no numbers: linear "
        "ends as low as softmax, lsh-4 stays above both. It copies 10 symbols in sequences of 128 "
        f"with 4 layers of width 256. Here: {options.num_symbols} symbols, sequences of "
        f"{options.max_len}, {options.model.num_layers} layers of width {options.model.d_model}.",
        ONE_SEED,
    ]
    return combined(rows, folder, {}) | {"notes": notes}


def compare_copy_rows(options: CompareCopyOptions) -> list[Row]:
    """Return the rows, in the order of ``options.mixers``."""
    known = mixers(options.max_len)
    return [
        Row(
            group=COPY,
            label=name,
            build=partial(copy_task, options, known[name]),
            train=train_config(options),
            measure=partial(_measure, name, options.max_len),
        )
        for name in options.names
    ]


def mixers(max_len: int) -> dict[str, str | MixerFactory]:
    """Return all mixers; windows, chunks and buckets go by the length of the sequence."""
    quarter, eighth = max_len // 4, max_len // 8
    lsh = partial(LSHAttention, chunk_size=quarter, num_buckets=2 * quarter)
    return {
        "softmax": "softmax",
        "linear": "linear",
        "lsh-4": partial(lsh, num_hashes=4),
        "lsh-1": partial(lsh, num_hashes=1),
        "lsh-8": partial(lsh, num_hashes=8),
        "performer": "performer",
        "hybrid": partial(HybridAttention, window=quarter),
        "local": partial(LocalAttention, window=quarter),
        "strided": partial(StridedAttention, stride=eighth),
        "lambda": "lambda",
        "lstm": "lstm",
    }


def _measure(name: str, max_len: int, task: CopyTask, folder: Path) -> Json:
    assert isinstance(task.model, DecoderLM)
    return state_facts(task.model, max_len) | _draw_attention(name, task, folder)


def _draw_attention(name: str, task: CopyTask, folder: Path) -> Json:
    """Draw what the last layer looks at while it copies one sequence."""
    sizes = {key: task.identity[key] for key in ("max_len", "num_symbols")}
    tokens, _, mask = copy_batch(1, seed=HELD_OUT_SEED, step=0, **sizes)
    rows = mask[0].nonzero().flatten().tolist()
    assert isinstance(task.model, DecoderLM)
    weights = last_layer_rows(task.model, tokens, rows)
    if weights is None:
        return {}
    file = f"figures/attention-{name}.png"
    write_figure(folder, file, attention_figure(weights, rows))
    return {"figures": {file: f"What the last layer of {name} looks at while it copies"}}
