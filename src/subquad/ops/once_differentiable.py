"""Refuse second derivatives of an ``autograd.Function`` whose backward has none.

torch's decorator of this name refuses only where the incoming gradient itself needs one. That of a
plain sum is a constant, and the missing second derivative would then be left out unsaid.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = Any  # a tensor, or a tuple of tensors and Nones


def once_differentiable(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return ``backward`` without a graph; to differentiate what it gives is a RuntimeError."""

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Gradients:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        single = not isinstance(found, tuple)
        tensors = (found,) if single else found
        refuse: Any = torch._C._functions.DelayedError(
            b"trying to differentiate twice a function that was marked with @once_differentiable",
            len(tensors),
        )
        refused = refuse(*(None if x is None else x.detach().requires_grad_() for x in tensors))
        return refused[0] if single and isinstance(refused, tuple) else refused

    return once
