"""One token through a whole block in C++: what ctypes needs. The kernel: ``csrc/block_step.h``.

Axes: B batch, D model width, H heads, K features, V value size.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from subquad.kernels.cpu import library

MOST_SEQUENCES = 8  # at more, torch's matrix products read the weights less often

_FLOATS = ctypes.c_void_p


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _FLOATS), ("bias", _FLOATS), ("eps", ctypes.c_float))


class _BlockStep(ctypes.Structure):
    """``subquad_block_step`` of csrc/linear_attention.h; the two change together."""

    _fields_ = (
        *((x, ctypes.c_int64) for x in ("batch", "width", "heads", "k", "v", "hidden")),
        *(
            (x, ctypes.c_int32)
            for x in ("is_normalized", "is_pre_norm", "is_gelu", "threads", "state_threads")
        ),
        ("parallel", ctypes.c_void_p),
        *(
            (f"{x}_{kind}", _FLOATS)
            for x in ("qkv", "out", "inner", "outer")
            for kind in ("weight", "bias")
        ),
        ("mixer_norm", _Norm),
        ("feed_norm", _Norm),
        *((x, _FLOATS) for x in ("cos", "sin", "x", "y", "kv", "k_sum")),
    )


class Affine(NamedTuple):
    """A linear map: weight (out, in) and bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A LayerNorm over the last axis: weight and bias (D,) or None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


class BlockWeights(NamedTuple):
    """The weights of a block: contiguous float32 on the CPU."""

    qkv: Affine
    out: Affine
    inner: Affine
    outer: Affine
    mixer_norm: Norm
    feed_norm: Norm


class BlockStep:
    """A block's step with its weights looked up: x (B, D) to (B, D), the state overwritten.

    Args:
        weights: of the block; changed in place, they are seen as they are. They must stay where
            they lie in memory as long as the step is used.
        batch_size: B, from 1 to ``MOST_SEQUENCES``.
        num_heads: H.
        head_dim: K.
        value_dim: V.
        is_normalized: divide by the denominator.
        is_pre_norm: norms before the parts of the block, else behind.
        is_gelu: gelu in the feed-forward network, else relu.
    """

    def __init__(
        self,
        weights: BlockWeights,
        *,
        batch_size: int,
        num_heads: int,
        head_dim: int,
        value_dim: int,
        is_normalized: bool,
        is_pre_norm: bool,
        is_gelu: bool,
    ) -> None:
        # The structure holds addresses alone, so these are looked at again at each call.
        self._tensors = [x for part in weights for x in part if isinstance(x, Tensor)]
        self._addresses = [x.data_ptr() for x in self._tensors]
        call = self._call = _BlockStep()
        call.batch, call.heads, call.k, call.v = batch_size, num_heads, head_dim, value_dim
        call.width, call.hidden = weights.out.weight.shape[0], weights.inner.weight.shape[0]
        call.is_normalized, call.is_pre_norm, call.is_gelu = is_normalized, is_pre_norm, is_gelu
        call.parallel = library.parallel()
        for name in ("qkv", "out", "inner", "outer"):
            weight, bias = getattr(weights, name)
            setattr(call, f"{name}_weight", weight.data_ptr())
            setattr(call, f"{name}_bias", None if bias is None else bias.data_ptr())
        call.mixer_norm, call.feed_norm = map(_norm, (weights.mixer_norm, weights.feed_norm))
        self._work = sum(getattr(weights, n).weight.numel() for n in ("qkv", "out", "inner"))
        self._shapes = (
            (batch_size, call.width),
            (batch_size, num_heads, head_dim, value_dim),
            (batch_size, num_heads, head_dim),
        )

    def __call__(
        self, x: Tensor, kv: Tensor, k_sum: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        """Take one token; cos and sin are (B, 1, K / 2), for a rotation of queries and keys.

        Raises:
            ValueError: if a tensor has not the shape, dtype or device that this step was made for.
            RuntimeError: if a weight has moved since.
        """
        # This reads and writes memory by address, so it looks every time.
        given = (("x", x), ("kv", kv), ("k_sum", k_sum))
        for (name, tensor), shape in zip(given, self._shapes, strict=True):
            _check(name, tensor, shape)
        for name, angles in (("cos", cos), ("sin", sin)):
            if angles is not None:
                _check(name, angles, (len(x), 1, self._call.k // 2))
        if not (kv.is_contiguous() and k_sum.is_contiguous()):
            raise ValueError(
                f"state must lie in memory in one piece, got strides {kv.stride()} "
                f"and {k_sum.stride()}"
            )
        if self._addresses != [tensor.data_ptr() for tensor in self._tensors]:
            raise RuntimeError(
                "the block's weights must stay where they were when the stepper was made, but one "
                "has moved to other memory; make another stepper"
            )
        # A structure of its own for each call: another Python thread may be in another call.
        call, x = _BlockStep.from_buffer_copy(self._call), x.contiguous().resolve_neg()
        y = torch.empty_like(x)
        # Below some 30,000 products, or 100,000 numbers of state, waking a second thread costs
        # more than it does.
        threads = library.usable_threads()
        call.threads = threads if self._work > 30_000 else 1
        call.state_threads = threads if kv.numel() > 100_000 else 1
        if cos is not None and sin is not None:
            cos, sin = cos.contiguous(), sin.contiguous()
            call.cos, call.sin = cos.data_ptr(), sin.data_ptr()
        call.x, call.y = x.data_ptr(), y.data_ptr()
        call.kv, call.k_sum = kv.data_ptr(), k_sum.data_ptr()
        library.call("block_step", call)
        return y


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(
            f"{name} must be float32 of shape {shape} on the CPU, "
            f"got {x.dtype} of {tuple(x.shape)} on {x.device}"
        )


def _norm(norm: Norm) -> _Norm:
    weight, bias = (None if x is None else x.data_ptr() for x in norm[:2])
    return _Norm(weight, bias, norm.eps)
