"""What a step of generation is made of: states filled with noise, and its parts run alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.layers.frozen import frozen
from subquad.models import PixelModel
from subquad.models.stack import StackState
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.fused_linear_attention import token_taker
from subquad.ops.linear_state import LinearState
from subquad.ops.logistic_mixture import logistic_mixture_sample
from subquad.ops.softmax_attention import KVCache
from subquad.ops.state import state_size_bytes


def filled_state(model: PixelModel, batch: int, position: int) -> StackState:
    """Return the state after ``position`` tokens, of noise: its size is right, its content is not.

    A KV cache has room for one token more, so that a step need not grow it.
    """
    state = model.init_state(batch)
    mixers = tuple(_filled(past, position) for past in state.mixers)
    return StackState(mixers, torch.full_like(state.position, position))


def step_call(
    model: PixelModel, state: StackState, batch: int, position: int
) -> Callable[[], object]:
    """Return a function that draws one byte and takes one step from ``state``, again and again.

    A KV cache stays at its length (the state returned is dropped); a linear state goes on.
    """
    device = model.head.weight.device
    hidden = torch.randn(batch, model.head.in_features, device=device)
    uniforms = torch.rand(batch, 2, device=device)

    # As ``PixelModel.generate`` does: what no step changes is looked up before.
    step, head = model.decoder.stepper(batch, model.seq_len), frozen(model.head, batch)
    table = model.byte_embedding.weight

    def run() -> Tensor:
        drawn = logistic_mixture_sample(head(hidden), uniforms, 1.0)
        y: Tensor = step(table.index_select(0, drawn), state)[0]
        return y

    return run


def products_alone(model: PixelModel, batch: int) -> Callable[[], object]:
    """Return a function that runs the matrix products of one step, each by its own weights."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    device = model.head.weight.device
    x = {n: torch.randn(batch, n, device=device) for n in {m.in_features for m in layers}}

    def run() -> None:
        for layer in layers:
            F.linear(x[layer.in_features], layer.weight, layer.bias)

    return run


def state_update_alone(model: PixelModel, state: StackState) -> Callable[[], object]:
    """Return a function that updates and reads the linear states of all layers once."""
    pasts = [past for past in state.mixers if isinstance(past, LinearState)]
    tokens = [
        (torch.randn_like(p.k_sum), torch.randn_like(p.k_sum), torch.randn_like(p.kv[:, :, 0]))
        for p in pasts
    ]
    copies = [LinearState(p.kv.clone(), p.k_sum.clone()) for p in pasts]
    take = token_taker(feature_map=elu_plus_one)

    def run() -> None:
        for (q, k, v), past in zip(tokens, copies, strict=True):
            take(q, k, v, past, None)

    return run


def prefix_call(model: PixelModel, tokens: Tensor) -> Callable[[], object]:
    """Return a function that maps whole prefixes, bytes (B, T), to the next byte's mixture."""

    def run() -> Tensor:
        hidden = model.decoder(model.byte_embedding(tokens))
        parameters: Tensor = model.head(hidden[:, -1])
        return parameters

    return run


def state_bytes(model: PixelModel, batch: int, length: int) -> int:
    """Return the bytes of a state after ``length`` tokens, from one image's at two lengths."""
    one, two = (state_size_bytes(filled_state(model, 1, n)) for n in (1, 2))
    return batch * (one + (two - one) * (length - 1))


def _filled(past: Any, position: int) -> Any:
    if isinstance(past, KVCache):
        return KVCache(_room(past.k, position), _room(past.v, position), None, position)
    if isinstance(past, LinearState):
        # Positive, and about as large as sums over so many tokens.
        return LinearState(
            *(torch.rand_like(x).mul_(position).add_(1) for x in (past.kv, past.k_sum))
        )
    if isinstance(past, tuple):  # a state around another, such as RotaryState
        parts = [_filled(part, position) for part in past]
        return type(past)(*parts) if hasattr(past, "_fields") else tuple(parts)
    return torch.full_like(past, position) if isinstance(past, Tensor) else past


def _room(x: Tensor, position: int) -> Tensor:
    shape = (*x.shape[:2], position + 1, x.shape[3])
    return torch.randn(shape, dtype=x.dtype, device=x.device)
