"""Multiply-adds of a network on one input: those of its products, by the layers' own formulas.

A convolution, a linear map, a lambda layer, softmax attention (all pairs of tokens, masked or
not), the other mixers but the LSTM (``mixer_multiply_adds``) and attention over images count;
norms, activations and pooling do not.
Lambda layers count as the paper's listing computes them, whatever form is taken. Sources: Bello
2021, section 3.1 and its appendix on complexity; Katharopoulos et al. 2020, section 3.2.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers.heads import Heads
from subquad.layers.image_attention import (
    GlobalImageAttention,
    LinearImageAttention,
    LineAttention,
    LocalImageAttention,
    RelativeTable,
)
from subquad.layers.lambda_layer import LambdaLayer
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.relative_positions import RelativePositions
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.models.mixer_multiply_adds import MIXER_COUNTS
from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_positions import LearnedAxes, LearnedTable


def multiply_adds(model: nn.Module, *input_shape: int) -> int:
    """Return the multiply-adds of ``model`` on a batch of one: (1, *input_shape).

    The model is not run: only shapes are, of a copy without memory.

    Args:
        model: of convolutions, linear maps, lambda layers, any mixers but the LSTM, and attention
            over images.
        input_shape: of one example, for instance 3, 224, 224.

    Raises:
        ValueError: if the model does not take the shape, or holds a mixer or a layer with weights
            of another kind, which would be left out.
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
        elif _is_left_out(module):
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
    has_content = layer.widths[1] > 0  # all but those that leave it out in comparisons
    content, used = a_context * has_content, int(has_content)
    position = 0
    if layer.table is not None:
        seen = math.prod(layer.table.shape[2:]) if layer.is_local else tokens
        position, used = a_context * seen, used + 1
    return tokens * (projections + content + position + used * layer.head_dim * layer.out_channels)


def _convolution(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * int(module.weight[0].numel())


def _linear(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * int(module.in_features)


def _lambda(module: Any, x: Tensor, y: Tensor) -> int:
    return lambda_multiply_adds(module, tuple(x.shape[2:]))


def _softmax(module: Any, x: Tensor, y: Tensor) -> int:
    heads: Heads = module.heads
    return int(x.shape[1] ** 2 * heads.num_heads * (heads.head_dim + heads.value_dim))


def _linear_attention(module: Any, x: Tensor, y: Tensor) -> int:
    """Count phi(k) v^T, phi(q) times its sum and, where they are, the denominators."""
    heads: Heads = module.heads
    each = module.num_features * (2 * heads.value_dim + module.normalize)
    return int(x.shape[1] * heads.num_heads * each)


def _relative(module: Any, q: Tensor, y: Tensor) -> int:
    return q.numel() * int(module.table.shape[1])


def _global_image(module: Any, x: Tensor, y: Tensor) -> int:
    """Count scores and values of all pairs of pixels, and queries times both tables."""
    height, width = y.shape[2:]
    return y.numel() * (2 * height * width + height + width)


def _local_image(module: Any, x: Tensor, y: Tensor) -> int:
    """Count windows that reach over the border whole, as is usual for convolutions."""
    return y.numel() * int(2 * module.window**2 + module.window)


def _line(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * 3 * int(y.shape[module.axis])


def _linear_image(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * int(2 * module.head_dim + 1)


_COUNTS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    LambdaLayer: _lambda,
    SoftmaxAttention: _softmax,
    RelativePositions: _relative,
    LinearAttention: _linear_attention,
    **MIXER_COUNTS,
    GlobalImageAttention: _global_image,
    LocalImageAttention: _local_image,
    LineAttention: _line,
    LinearImageAttention: _linear_image,
}


# Their own weights multiply each number once, or are added: nothing beside the products.
_FREE = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm,
    VisionTransformer, LearnedTable, LearnedAxes, RelativeTable,
)  # fmt: skip


def _is_left_out(module: nn.Module) -> bool:
    """Return whether a module multiplies by itself, beside what its parts do."""
    if isinstance(module, _FREE):
        return False
    mixes = any(isinstance(part, Heads) for part in module.children())
    return mixes or any(True for _ in module.parameters(recurse=False))


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
