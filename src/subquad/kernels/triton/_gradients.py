"""The launches of the backward pass, one function a gradient.

``rows`` are the denominators (B, H, T) and their gradients, which are None where nothing is
divided; ``later`` is the gradient of the state after each span.
"""

import torch
from torch import Tensor

from subquad.kernels.triton._call import Call, State, ceil_div
from subquad.kernels.triton._launch import launch
from subquad.kernels.triton._states import Rows
from subquad.kernels.triton.plan import fits_whole, power_of_two


def denominator_gradients(grad_out: Tensor, out: Tensor, denominator: Tensor) -> Tensor:
    """Return the gradient of the denominators, (B, H, T)."""
    grad = torch.empty_like(denominator)
    rows = 32
    launch(
        "_state_kernels", "denominator_gradients",
        (out.shape[0] * out.shape[1] * ceil_div(out.shape[2], rows),),
        grad_out, out, denominator, grad, *grad_out.stride(), *out.stride(),
        out.shape[1], out.shape[2], out.shape[3],
        ROWS=rows, BV=power_of_two(out.shape[3]), num_warps=4,
    )  # fmt: skip
    return grad


def query_gradients(
    call: Call, grad_out: Tensor, rows: Rows, incoming: State, later: State
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return grad_q and, where there are decays, what their gradient needs, for each block.

    These are phi(q) . grad phi(q), (blocks, N, T), and <state, its gradient> at the end of each
    span, (blocks, spans, H).
    """
    q, k, v = call.q, call.k, call.v
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dots = anchors = None
    if call.log_decay is not None:
        num_blocks = call.grid(call.cut("values"))[1]
        dots = call.log_decay.new_empty(num_blocks, call.num_rows, q.shape[2])
        anchors = dots.new_zeros(num_blocks, call.num_spans, q.shape[1])
    call.walk(
        "_backward_kernels", "query_walk", "values",
        q, k, v, grad_out, call.log_decay, call.key_mask, call.cos, call.sin, *rows,
        *incoming, *later, call.spans, grad_q, dots, anchors,
        *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(),
        q.shape[1], call.num_rows, *call.sizes(),
        HAS_STATE=incoming[0] is not None, HAS_GRAD_STATE=later[0] is not None,
    )  # fmt: skip
    return grad_q, dots, anchors


def key_gradients(
    call: Call, grad_out: Tensor, rows: Rows, later: State, *, with_state: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of k and v, phi(k) . grad phi(k), and those of kv and k_sum."""
    q, k, v = call.q, call.k, call.v
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    states = call.new_state() if with_state else (None, None)
    dots = None
    # One walk for both where a program can hold the whole state; else one for each.
    together = fits_whole(q.shape[3], v.shape[3], narrow=call.flags["NARROW"])
    for whole in ("values",) if together else ("values", "features"):
        keys = whole == "values"
        if keys and call.log_decay is not None:
            num_blocks = call.grid(call.cut(whole))[1]
            dots = call.log_decay.new_empty(num_blocks, call.num_rows, q.shape[2])
        call.walk(
            "_backward_kernels", "key_walk", whole,
            q, k, v, grad_out, call.log_decay, call.key_mask, call.cos, call.sin, *rows, *later,
            call.spans, grad_k, grad_v, dots, *states,
            *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(),
            q.shape[1], call.num_rows, *call.sizes(),
            HAS_GRAD_STATE=later[0] is not None, WITH_KEYS=keys,
            WITH_VALUES=together or not keys, WITH_STATE=with_state and keys,
        )  # fmt: skip
    return grad_k, grad_v, dots, *states


def decay_gradients(
    call: Call, query_dots: Tensor, key_dots: Tensor, anchors: Tensor, log_decay: Tensor
) -> Tensor:
    """Return the gradient of log_decay, (B, H, T), of what the walks left."""
    grad = torch.empty_like(log_decay)
    num_heads = log_decay.shape[1]
    launch(
        "_state_kernels", "decay_gradients", (call.num_spans * num_heads,),
        query_dots, key_dots, anchors, log_decay, call.key_mask, call.spans, grad,
        num_heads, call.num_rows, *call.sizes()[:3], len(query_dots), len(key_dots),
        HAS_MASK=call.key_mask is not None, IS_PACKED=call.spans is not None,
        BLOCK=min(1024, power_of_two(call.plan.segment)), num_warps=4,
    )  # fmt: skip
    return grad
