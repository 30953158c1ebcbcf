"""The states that come into spans, and the gradients of those that leave them."""

import torch
from torch import Tensor

from subquad.kernels.triton._call import Call, State, ceil_div
from subquad.kernels.triton._launch import launch
from subquad.kernels.triton.plan import power_of_two

Rows = tuple[Tensor | None, Tensor | None]


def incoming_states(call: Call, kv: Tensor | None, k_sum: Tensor | None) -> State:
    """Return the state before each span, (spans, H, K, V) and (spans, H, K), or None twice."""
    if not call.is_cut:
        return kv, k_sum
    return _span_states(call, call.k, call.v, (None, None), kv, k_sum, is_reverse=False)


def later_gradients(
    call: Call, grad_out: Tensor, rows: Rows, grad_kv: Tensor | None, grad_k_sum: Tensor | None
) -> State:
    """Return the gradient of the state after each span, likewise."""
    if not call.is_cut:
        return grad_kv, grad_k_sum
    return _span_states(call, call.q, grad_out, rows, grad_kv, grad_k_sum, is_reverse=True)


def _span_states(
    call: Call, x: Tensor, y: Tensor, rows: Rows, kv: Tensor | None, k_sum: Tensor | None,
    *, is_reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (call.num_spans, x.shape[1])
    exponents = torch.empty(shape, dtype=torch.float32, device=x.device)
    k_sums = exponents.new_empty(*shape, x.shape[3])
    kv_sums = exponents.new_empty(*shape, x.shape[3], y.shape[3])
    call.walk(
        "_state_kernels", "segment_sums", "neither",
        x, y, call.log_decay, call.key_mask, call.cos, call.sin, *rows, call.spans,
        kv_sums, k_sums, exponents, *x.stride(), *y.stride(), x.shape[1], *call.sizes(),
        IS_REVERSE=is_reverse,
    )  # fmt: skip
    for sums, incoming in ((kv_sums, kv), (k_sums, k_sum)):
        size = sums[0, 0].numel()
        block = min(1024, power_of_two(size))
        launch(
            "_state_kernels", "scan_segments",
            (call.num_sequences * x.shape[1], ceil_div(size, block)),
            sums, exponents, incoming, call.first_spans, x.shape[1], call.plan.num_segments, size,
            IS_REVERSE=is_reverse, HAS_DECAY=call.log_decay is not None,
            HAS_STATE=incoming is not None, IS_PACKED=call.spans is not None,
            BLOCK=block, num_warps=4,
        )  # fmt: skip
    return kv_sums, k_sums
