"""A cache for ``generate`` whose swapped layers keep a state of constant size, and no keys.

``update`` of such a layer returns the new keys alone, marked with the layer, by which the attention
function finds the state: transformers passes it nothing else of the cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedModel

from subquad.ops.performer_state import State
from subquad.ops.state import map_state, state_size_bytes
from subquad.pretrained.mixers import SwappedAttention
from subquad.pretrained.registry import STATE_LAYER, attends_causally
from subquad.pretrained.swapping import attention_modules

_Layer: Any = DynamicLayer  # transformers gives no types


class StateCache(Cache):
    """The past of a swapped causal model, for ``model.generate(past_key_values=...)``.

    Layers that kept softmax have keys and values that grow. Beams are reordered as with any cache;
    tokens cannot be taken back (``crop``), so assisted generation is out of reach.

    Args:
        model: a model after ``swap``, with causal self-attention alone.

    Raises:
        ValueError: if an attention module is not causal or not swapped.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers: list[Any] = []
        for i, module in enumerate(attention_modules(model)):
            mixer = getattr(module, "subquad", None)
            if mixer is None or not attends_causally(module):
                raise ValueError(
                    "model must be a causal one after subquad.pretrained.swap, got attention "
                    f"module {i} that is {'not swapped' if mixer is None else 'not causal'}"
                )
            layers.append(StateLayer() if isinstance(mixer, SwappedAttention) else _Layer())
        super().__init__(layers=layers)

    def size_bytes(self) -> int:
        """Return the bytes held for all layers."""
        total = 0
        for layer in self.layers:
            found: Any = layer
            if isinstance(found, StateLayer):
                total += found.size_bytes()
            else:
                held = [x for x in (found.keys, found.values) if x is not None]
                total += sum(x.numel() * x.element_size() for x in held)
        return total


class StateLayer(_Layer):  # type: ignore[misc]
    """One layer's state, and how many tokens it has seen."""

    is_croppable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state: State | None = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note the keys' dtype and device; there is nothing to allocate."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys, marked, and the new values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        marked = key_states.view_as(key_states)
        setattr(marked, STATE_LAYER, self)
        return marked, value_states

    def attend(
        self,
        mixer: SwappedAttention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float,
        key_mask: Tensor | None,
    ) -> Tensor:
        """Mix the new tokens with the past, and go on."""
        if key_mask is not None:
            key_mask = key_mask[:, -k.shape[2] :]  # it covers the past too
        y, self.state = mixer.advance(q, k, v, self.state, scaling=scaling, key_mask=key_mask)
        return y

    def size_bytes(self) -> int:
        """Return the bytes of the state."""
        return 0 if self.state is None else state_size_bytes(self.state)

    def get_seq_length(self) -> int:
        """Return how many tokens the state has seen."""
        return self.seen

    def reset(self) -> None:
        """Forget the past."""
        self.state, self.seen, self.is_initialized = None, 0, False

    def offload(self) -> None:
        """Move the state to the CPU."""
        self._map(lambda x: x.to("cpu"))

    def prefetch(self) -> None:
        """Move the state back to its device."""
        self._map(lambda x: x.to(self.device))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a sum does not give its tokens back.

        Raises:
            ValueError: unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise ValueError(
                "a state of constant size cannot give tokens back, "
                f"crop must be 0, got {tokens_to_remove}"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the batch that the beams go on from."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        self._map(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        self._map(lambda x: x[indices])

    def _map(self, fn: Any) -> None:
        if self.state is not None:
            with torch.no_grad():
                self.state = map_state(fn, self.state)
