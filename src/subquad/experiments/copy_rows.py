"""The copy task as a row: what the experiments of many rows share."""

import dataclasses
from typing import Any

import torch

from subquad.experiments.options import CopyRowsOptions, RowsOptions, suited_to
from subquad.experiments.spec import Json
from subquad.layers.registry import MixerFactory
from subquad.models.language_model import DecoderLM
from subquad.ops.state import state_size_bytes
from subquad.tasks.copying import CopyTask

COPY = "copy"  # the group of these rows
ONE_SEED = (
    "Each row was trained once, with one seed: run again with another --seed before small "
    "differences are read as more than ties."
)


def language_model(
    options: RowsOptions,
    mixer: str | MixerFactory,
    *,
    vocab_size: int,
    max_len: int,
    softmax_share: float | None = None,
    softmax_window: int | None = None,
) -> DecoderLM:
    """Return a new model; the seed fixes its weights."""
    sizes = suited_to(mixer, options.model) if isinstance(mixer, str) else options.model
    torch.manual_seed(options.seed)
    return DecoderLM(
        vocab_size,
        mixer=mixer,
        max_len=max_len,
        softmax_share=softmax_share,
        softmax_window=softmax_window,
        **dataclasses.asdict(sizes),
    )


def copy_task(options: CopyRowsOptions, mixer: str | MixerFactory, **shares: Any) -> CopyTask:
    """Return the copy task with a new model; ``shares`` as in ``language_model``."""
    model = language_model(
        options, mixer, vocab_size=options.num_symbols + 1, max_len=options.max_len, **shares
    )
    return CopyTask(
        model,
        batch_size=options.train.batch_size,
        seed=options.seed,
        max_len=options.max_len,
        num_symbols=options.num_symbols,
    )


@torch.inference_mode()
def state_bytes(model: DecoderLM, seq_len: int) -> int:
    """Return the bytes of the mixers' states after a sequence of ``seq_len`` tokens."""
    tokens = torch.zeros(1, seq_len, dtype=torch.long, device=model.head.weight.device)
    _, state = model.prefill(tokens, model.init_state(1))
    return state_size_bytes(state.mixers)


def state_facts(model: DecoderLM, seq_len: int) -> Json:
    """Return the bytes of state as a row's results have them; nothing for LSH, which has none."""
    blocks = model.decoder.stack.blocks
    if not all(getattr(block.mixer, "has_state", True) for block in blocks):
        return {}
    return {"state_bytes": state_bytes(model, seq_len)}
