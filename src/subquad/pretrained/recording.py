"""The q, k and v of one layer of a pretrained model on real input."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from subquad.pretrained.swapping import attention_modules, swap


class AttentionInputs(NamedTuple):
    """What one attention module gave to its attention function.

    ``q`` is (B, H, T, K); ``k`` and ``v`` have fewer heads where several queries share them.
    ``key_mask`` (B, T) bool, True = keep, or None; ``scale`` is the model's factor on q . k.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_mask: Tensor | None
    scale: float
    is_causal: bool


@torch.no_grad()
def attention_inputs(model: PreTrainedModel, layer: int, **inputs: Any) -> AttentionInputs:
    """Run ``model(**inputs)`` with softmax attention and return what ``layer`` attended to.

    The model itself stays as it is.

    Args:
        model: a transformers model, swapped or not.
        layer: which attention module, numbered in the model's order.
        inputs: what the model's forward takes.

    Raises:
        ValueError: if there is no such layer.
    """
    count = len(attention_modules(model))
    if not 0 <= layer < count:
        raise ValueError(f"layer must be from 0 to {count - 1}, got {layer}")
    found: list[AttentionInputs] = []

    def record(_: Any, qkv: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        q, k, v = (x.detach().clone() for x in qkv)
        found.append(
            AttentionInputs(q, k, v, options["key_mask"], options["scaling"], options["is_causal"])
        )

    copied: Any = swap(copy.deepcopy(model), "softmax")
    copied.eval()
    mixer: Any = attention_modules(copied)[layer].subquad
    mixer.register_forward_pre_hook(record, with_kwargs=True)
    copied(**inputs)
    return found[0]
