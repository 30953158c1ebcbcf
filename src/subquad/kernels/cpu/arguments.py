"""Tensors as the kernels take them: an address and strides."""

import ctypes

from torch import Tensor


class CTensor(ctypes.Structure):
    """``subquad_tensor`` of csrc/linear_attention.h; the two change together."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("time", ctypes.c_int64),
    )


def whole_rows(keep: list[Tensor], x: Tensor) -> Tensor:
    """Return x with rows that lie in one piece, itself or a copy; ``keep`` holds it."""
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    keep.append(x)
    return x


def pointer(keep: list[Tensor], x: Tensor | None) -> int | None:
    """Return the address of x in one piece, itself or a copy, which ``keep`` holds."""
    if x is None:
        return None
    x = x.contiguous()
    keep.append(x)
    return x.data_ptr()


def by_head(x: Tensor) -> CTensor:
    """Return a tensor (B, H, T, ...)."""
    return CTensor(x.data_ptr(), *x.stride()[:3])


def over_heads(x: Tensor) -> CTensor:
    """Return a tensor (B, T, ...) that all heads share."""
    return CTensor(x.data_ptr(), x.stride(0), 0, x.stride(1))


def token(x: Tensor) -> CTensor:
    """Return a tensor (B, H, ...) of one token."""
    return CTensor(x.data_ptr(), *x.stride()[:2], 0)
