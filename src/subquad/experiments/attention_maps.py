"""What a trained model looks at: the attention rows of its last layer on one input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subquad.layers.attention_rows import HasParts, ImpliesAttention, attention_rows
from subquad.models.language_model import DecoderLM
from subquad.models.pixel_model import PixelModel


def last_layer_rows(
    model: DecoderLM | PixelModel, tokens: Tensor, rows: Sequence[int]
) -> NDArray[np.float32] | None:
    """Return the weights (H, R, T) of the chosen rows for one sequence (1, T), in float32.

    None where the mixer implies no attention matrix (an LSTM).
    """
    mixer = model.decoder.stack.blocks[-1].mixer
    if not isinstance(mixer, ImpliesAttention | HasParts):
        return None
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = mixer.register_forward_pre_hook(keep)  # type: ignore[union-attr]  # it is a module
    try:
        with torch.no_grad():
            model(tokens.to(next(model.parameters()).device))
    finally:
        handle.remove()
    weights = attention_rows(mixer, seen[0], rows).weights[0]
    found: NDArray[np.float32] = weights.float().cpu().numpy()
    return found
