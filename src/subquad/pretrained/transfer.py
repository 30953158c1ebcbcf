"""Attention transfer: make each swapped module give what softmax attention gave there.

A frozen copy of the model, with softmax, runs once. Each swapped attention module is then called on
that layer's own inputs, and its output compared with softmax's, all layers at once. An error in one
layer does not reach the next, so that all can be mended in parallel.

Source: Zhang et al. 2024, "LoLCATs: On Low-Rank Linearizing of Large Language Models", section 3.2,
with the error relative to what is to be matched.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from subquad.pretrained.mixers import SwappedAttention
from subquad.pretrained.swapping import attention_modules, swap


class Teacher:
    """The model as it was, with softmax attention, frozen.

    Args:
        model: before its attention is swapped; it is copied.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        copied: Any = swap(copy.deepcopy(model), "softmax")
        self.model: PreTrainedModel = copied.eval().requires_grad_(False)
        self._calls: dict[int, tuple[Any, Any, Any]] = {}
        for i, module in enumerate(attention_modules(self.model)):
            module.register_forward_hook(self._recorder(i), with_kwargs=True)

    def transfer_loss(
        self, student: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Return the relative squared error of the attention outputs, the mean over layers.

        0 is softmax itself; 1 is as far as an output of 0.

        Args:
            student: a copy of the same model after ``swap``.
            input_ids: (B, T).
            attention_mask: (B, T), True = keep; hidden tokens are not compared.
        """
        if next(self.model.parameters()).device != input_ids.device:
            movable: Any = self.model
            movable.to(input_ids.device)
        self._calls.clear()
        with torch.no_grad():
            self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        errors = []
        for i, module in enumerate(attention_modules(student)):
            if isinstance(module.subquad, SwappedAttention):
                inputs, options, wanted = self._calls[i]
                found = module(*inputs, **options)[0]
                errors.append(_relative_error(found, wanted, attention_mask))
        self._calls.clear()
        return torch.stack(errors).mean()

    def _recorder(self, number: int) -> Any:
        def record(_: nn.Module, inputs: Any, options: Any, output: Any) -> None:
            self._calls[number] = (inputs, options, output[0])

        return record


def _relative_error(found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(found.dtype, torch.float32)
    found, wanted = found.to(wide), wanted.to(wide)
    if mask is not None:
        found, wanted = found[mask.bool()], wanted[mask.bool()]
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


class LanguageModel(nn.Module):
    """A model of transformers under the call of ours: ``model(tokens, key_mask=...)`` to logits.

    Args:
        model: from input_ids to logits.
        ids: the model's id of each of our tokens; the logits come in the same order.
    """

    ids: Tensor

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        super().__init__()
        self.pretrained, self.vocab_size = model, len(ids)
        self.register_buffer("ids", ids)

    def forward(self, tokens: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """Return logits (B, T, W) for our tokens (B, T)."""
        options = {} if self.pretrained.config.is_encoder_decoder else {"use_cache": False}
        found = self.pretrained(
            input_ids=self.ids[tokens], attention_mask=mask_argument(key_mask), **options
        )
        logits: Tensor = found.logits
        return logits[..., self.ids]


def mask_argument(key_mask: Tensor | None) -> Tensor | None:
    """Return a key mask as transformers takes it."""
    return None if key_mask is None else key_mask.long()
