"""What one layer of a pretrained model attends to on real input, for ``subquad approx``."""

from pathlib import Path

import torch

from subquad.data.antibodies import load_antibodies
from subquad.experiments.attention_transfer import ANTIBERTY_IDS, antiberty_rows
from subquad.experiments.convert import source_folder
from subquad.experiments.corpus import read_text
from subquad.pretrained.recording import AttentionInputs, attention_inputs
from subquad.pretrained.saving import load_folder
from subquad.pretrained.weights import load_tokenizer

LONGEST = 512  # tokens


def layer_input(model: str, layer: int, data: Path | None) -> AttentionInputs:
    """Return q, k and v of one layer on the beginning of a text, each key once for each query head.

    Args:
        model: as ``subquad convert`` takes it.
        layer: which attention module, numbered in the model's order.
        data: a text; None for antiberty, which then gets a chain that it can be tested on.

    Raises:
        FileNotFoundError: if the model or the text is missing.
        ValueError: if there is no such layer, or no text for this model.
    """
    source = source_folder(model)
    pretrained = load_folder(source)
    if data is not None:
        if not data.is_file():
            raise FileNotFoundError(f"data must be a text file, found none at {data}")
        text = read_text(data)
        longest = min(LONGEST, getattr(pretrained.config, "max_position_embeddings", LONGEST))
        given = load_tokenizer(source)(text, truncation=True, max_length=longest)["input_ids"]
        ids = torch.tensor(given)
    elif model == "antiberty":
        row = antiberty_rows(load_antibodies().test[:1])
        ids = ANTIBERTY_IDS[torch.from_numpy(row.tokens.astype("int64"))]
    else:
        raise ValueError("data must be a text for this model, got none")
    found = attention_inputs(pretrained, layer, input_ids=ids[None])
    times = found.q.shape[1] // found.k.shape[1]
    k, v = (x.repeat_interleave(times, 1) for x in (found.k, found.v))
    return found._replace(k=k, v=v)
