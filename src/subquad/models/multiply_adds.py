"""Multiply-adds of a network on one input: those of its products, by the layers' own formulas.

A convolution, a linear map and a lambda layer count; norms, activations and pooling do not. Lambda
layers count as the paper's listing computes them, whatever form is taken. Source: Bello 2021,
section 3.1 and its appendix on complexity.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers.lambda_layer import LambdaLayer


def multiply_adds(model: nn.Module, *input_shape: int) -> int:
    """Return the multiply-adds of ``model`` on a batch of one: (1, *input_shape).

    The model is not run: only shapes are, of a copy without memory.

    Args:
        model: of convolutions, linear maps and lambda layers.
        input_shape: of one example, for instance 3, 224, 224.

    Raises:
        ValueError: if the model does not take the shape, or holds a layer with weights of another
            kind, which would be left out.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _count(module, inputs[0], output)

    copy = _without_memory(model)
    for name, module in copy.named_modules():
        module._forward_hooks.clear()  # the user's own, which the copy has too
        module._forward_pre_hooks.clear()
        if any(isinstance(module, kind) for kind in _COUNTS):
            module.register_forward_hook(add)
        elif not isinstance(module, _FREE) and any(True for _ in module.parameters(recurse=False)):
            part = f"{name}, a " if name else ""
            raise ValueError(
                "model must hold its weights in layers that can be counted, got "
                f"{part}{type(module).__name__}"
            )
    try:
        with torch.no_grad():
            copy(torch.empty(1, *input_shape, device="meta"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model must take input of {tuple(input_shape)}: {reason}") from error
    return total


def lambda_multiply_adds(layer: LambdaLayer, grid: tuple[int, ...]) -> int:
    """Return those of one lambda layer on one example: projections, both lambdas, their use."""
    tokens = math.prod(grid)
    projections = layer.in_channels * sum(layer.widths)
    values = layer.out_channels // layer.num_heads
    a_context = layer.intra_depth * layer.head_dim * values  # one token of a context, in a lambda
    content = a_context
    position, used = 0, 1
    if layer.table is not None:
        seen = math.prod(layer.table.shape[2:]) if layer.is_local else tokens
        position, used = a_context * seen, 2
    return tokens * (projections + content + position + used * layer.head_dim * layer.out_channels)


def _convolution(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * int(module.weight[0].numel())


def _linear(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * int(module.in_features)


def _lambda(module: Any, x: Tensor, y: Tensor) -> int:
    return lambda_multiply_adds(module, tuple(x.shape[2:]))


_COUNTS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    LambdaLayer: _lambda,
}


# Their weights multiply each number once: nothing beside the products.
_FREE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def _count(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return next(count for kind, count in _COUNTS.items() if isinstance(module, kind))(module, x, y)


def _without_memory(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device, in evaluation mode."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return deepcopy(model, memo).eval()
