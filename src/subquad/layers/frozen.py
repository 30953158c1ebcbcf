"""Modules as plain functions, for loops of many small calls.

One token through a small layer takes as long as looking up the layer's weights and hooks, so a loop
over tokens does that once, before it starts.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]


def frozen(module: nn.Module, rows: int) -> Map:
    """Return what ``module`` computes, for inference on (rows, D) tensors.

    A Linear, a LayerNorm or an idle Dropout becomes a function of its weights as they are now; a
    module with hooks or a ``forward`` of its own, and any other module, is returned as it is.

    Args:
        module: of one tensor, giving one tensor.
        rows: how many tokens there will be at once.
    """
    if not is_plain(module):
        return module
    if type(module) is nn.Dropout and not (module.training and module.p):
        return _identity
    if type(module) is nn.LayerNorm:
        return _layer_norm(module)
    if type(module) is nn.Linear:
        return _linear(module, rows)
    return module


def is_plain(module: nn.Module) -> bool:
    """Return whether calling ``module`` is no more than its class's ``forward``."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in module.__dict__
        or torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def _identity(x: Tensor) -> Tensor:
    return x


def _layer_norm(norm: nn.LayerNorm) -> Map:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _linear(linear: nn.Linear, rows: int) -> Map:
    weight = linear.weight
    bias: Tensor | None = linear.bias
    kind = weight.device.type
    is_packed = rows > 1 and kind == "cpu" and weight.dtype in (torch.float32, torch.float64)
    if bias is None or not is_packed or torch.is_autocast_enabled(kind):
        return lambda x: F.linear(x, weight, bias)
    # With the inputs' axis first, products of a few rows are faster on a CPU; of one they are not.
    packed = weight.t().contiguous()
    return lambda x: torch.addmm(bias, x, packed)
