"""The native forms of linear attention as operators of torch: compiled, differentiated, faked.

Each is one call to torch.compile, which keeps it whole. Gradients of gradients are not there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from subquad.kernels.cpu import linear_attention as cpu
from subquad.kernels.dispatch import Impl
from subquad.kernels.triton import linear_attention as triton

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? key_mask, Tensor? cos, Tensor? sin, "
    "Tensor? kv, Tensor? k_sum, bool is_elu, bool is_normalized, bool is_causal, "
    "Tensor? cu_seqlens=None"
)

_IN_CHUNK = 16  # keys of its own chunk that a query meets, on average, in chunks of 32

_library: Any = torch.library.Library("subquad", "DEF")  # type: ignore[no-untyped-call]


def _define(
    name: str, forward: Callable[..., Any], backward: Callable[..., Any], by_token: bool
) -> Any:
    """Make ``subquad::name`` of a forward and a backward that take exactly ``_INPUTS``.

    ``by_token``: their results lie in memory as (B, T, H, W), else as (B, H, T, W).
    """
    _library.define(f"{name}({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)")
    _library.define(
        f"{name}_backward(Tensor grad_out, Tensor? grad_kv, Tensor? grad_k_sum, "
        "Tensor q, Tensor k, Tensor v, Tensor out, Tensor denominator, Tensor? log_decay, "
        "Tensor? key_mask, Tensor? cos, Tensor? sin, Tensor? kv, Tensor? k_sum, bool is_elu, "
        "bool is_normalized, bool is_causal, Tensor? cu_seqlens) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    qualified = f"subquad::{name}"
    run_backward = getattr(torch.ops.subquad, f"{name}_backward")

    def whole_backward(*arguments: Any) -> tuple[Tensor, ...]:
        # An operator's outputs cannot be None, so what is not there is an empty tensor.
        grads = backward(*arguments)
        return tuple(grads[0].new_empty(0) if x is None else x for x in grads)

    def set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.is_elu, ctx.is_normalized, ctx.is_causal, cu_seqlens = inputs
        ctx.save_for_backward(*tensors, cu_seqlens, output[0], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad_out: Tensor | None, _: Any, *grad_state: Any) -> Any:
        *tensors, out, denominator = ctx.saved_tensors
        q, k, v, log_decay, key_mask, cos, sin, kv, k_sum, cu_seqlens = tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads = run_backward(
            grad_out, *grad_state, q, k, v, out, denominator, log_decay, key_mask, cos, sin,
            kv, k_sum, ctx.is_elu, ctx.is_normalized, ctx.is_causal, cu_seqlens,
        )  # fmt: skip
        grad_q, grad_k, grad_v, grad_decay, grad_kv, grad_k_sum = grads
        grad_decay = None if log_decay is None else grad_decay.to(log_decay.dtype)
        grad_state = None if kv is None else grad_kv, None if k_sum is None else grad_k_sum
        nothing = (None,) * 4
        return grad_q, grad_k, grad_v, grad_decay, None, None, None, *grad_state, *nothing

    _library.impl(name, forward, "CompositeExplicitAutograd")
    _library.impl(f"{name}_backward", whole_backward, "CompositeExplicitAutograd")
    fake = _Fake(by_token)
    torch.library.register_fake(qualified, fake.forward, lib=_library)
    torch.library.register_fake(f"{qualified}_backward", fake.backward, lib=_library)
    torch.library.register_autograd(qualified, differentiate, setup_context=set_up, lib=_library)
    torch.library.register_autograd(f"{qualified}_backward", _refuse, lib=_library)
    register_flop_formula(getattr(torch.ops.subquad, name))(_forward_flops)
    register_flop_formula(run_backward)(_backward_flops)
    return getattr(torch.ops.subquad, name).default


def _refuse(*_: Any) -> None:
    raise RuntimeError(
        "a gradient of a gradient must not pass through a native form of linear attention, "
        "which has none; impl=Impl.TORCH has one where is_causal is False"
    )


def _forward_flops(q_shape: Any, k_shape: Any, v_shape: Any, *_: Any, **__: Any) -> int:
    """Return two for each multiply-add of the products: into the state, out of it, in a chunk."""
    batch, heads, time, features = k_shape
    width = v_shape[3]
    return int(2 * batch * heads * time * (2 * features * width + _IN_CHUNK * (features + width)))


def _backward_flops(
    grad_shape: Any, kv_shape: Any, k_sum_shape: Any, q_shape: Any, k_shape: Any, v_shape: Any,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    batch, heads, time, features = k_shape
    width = v_shape[3]
    products = 5 * features * width + 3 * _IN_CHUNK * (features + width)
    return int(2 * batch * heads * time * products)


class _Fake:
    """Shapes, dtypes and strides of what an operator gives, for torch.compile."""

    def __init__(self, by_token: bool) -> None:
        self.by_token = by_token

    def rows(self, x: Tensor, width: int) -> Tensor:
        batch, heads, time = x.shape[:3]
        if self.by_token:
            return x.new_empty(batch, time, heads, width).transpose(1, 2)
        return x.new_empty(batch, heads, time, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
        batch, heads, time, features = q.shape
        wide = q.new_empty(0, dtype=torch.float32)
        out = self.rows(q, v.shape[3]).to(v.dtype)
        cu_seqlens = others[9] if len(others) > 9 else None
        sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
        state = wide.new_empty(sequences, heads, features, v.shape[3])
        return out, wide.new_empty(batch, heads, time), state, state.new_empty(state.shape[:3])

    def backward(
        self,
        grad_out: Tensor,
        grad_kv: Tensor | None,
        grad_k_sum: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        denominator: Tensor,
        log_decay: Tensor | None,
        key_mask: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        kv: Tensor | None,
        k_sum: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, ...]:
        nothing = q.new_empty(0)
        return (
            *(self.rows(x, x.shape[3]) for x in (q, k, v)),
            nothing if log_decay is None else torch.empty_like(denominator),
            *(nothing if x is None else x.new_empty(x.shape) for x in (kv, k_sum)),
        )


# What equals its default is left out of a call: cu_seqlens may be missing.
def _cpu_forward(*inputs: Any) -> tuple[Tensor, ...]:
    assert inputs[12:] in ((), (None,))
    return cpu.forward(*inputs[:12])


def _cpu_backward(*inputs: Any) -> tuple[Tensor | None, ...]:
    *arguments, cu_seqlens = inputs
    assert cu_seqlens is None
    return cpu.backward(*arguments)


def _triton_forward(*inputs: Any) -> tuple[Tensor, ...]:
    assert inputs[11], "is_causal"
    return triton.forward(*inputs[:11], cu_seqlens=inputs[12] if len(inputs) > 12 else None)


def _triton_backward(*inputs: Any) -> tuple[Tensor | None, ...]:
    *arguments, is_causal, cu_seqlens = inputs
    assert is_causal
    return triton.backward(*arguments, cu_seqlens=cu_seqlens)


def _define_step(name: str, step: Callable[..., Tensor]) -> Any:
    """Make ``subquad::name``, one token in place; it has no gradient."""
    _library.define(
        f"{name}(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? cos, Tensor? sin, "
        "Tensor(a!) kv, Tensor(b!) k_sum, bool is_elu, bool is_normalized) -> Tensor"
    )
    _library.impl(name, step, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"subquad::{name}", lambda q, k, v, *_: v.new_empty(v.shape), lib=_library
    )
    return getattr(torch.ops.subquad, name).default


def _step_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor,
    k_sum: Tensor,
    is_elu: bool,
    is_normalized: bool,
) -> Tensor:
    out = cpu.step(q, k, v, log_decay, cos, sin, kv, k_sum, kv, k_sum, is_elu, is_normalized)
    for state in (kv, k_sum):
        if not state.is_inference():  # so that a backward that needs the old state notices
            torch.autograd.graph.increment_version(state)
    return out


def _step_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    kv: Tensor,
    k_sum: Tensor,
    is_elu: bool,
    is_normalized: bool,
) -> Tensor:
    return triton.step_(q, k, v, kv, k_sum, cos, sin, is_elu, is_normalized, log_decay=log_decay)


OPERATORS = {
    Impl.CPU: _define("linear_attention_cpu", _cpu_forward, _cpu_backward, by_token=True),
    Impl.TRITON: _define(
        "linear_attention_triton", _triton_forward, _triton_backward, by_token=False
    ),
}
STEP_OPERATORS = {
    Impl.CPU: _define_step("linear_attention_step_cpu_", _step_cpu),
    Impl.TRITON: _define_step("linear_attention_step_triton_", _step_triton),
}
