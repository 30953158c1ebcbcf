"""How a kernel is found and started: triton is imported here, at the first call and not before."""

import importlib
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 256  # features or values


class Products(NamedTuple):
    """How two tiles are multiplied; sums are float32 always."""

    narrow: bool
    precision: str


def kernel(module: str, name: str) -> Any:
    """Return a kernel of ``subquad.kernels.triton.<module>``.

    Raises:
        ImportError: if triton is not installed.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise ImportError(
            "the Triton kernels need the package triton: pip install 'subquad[triton]'"
        ) from error
    return getattr(importlib.import_module(f"subquad.kernels.triton.{module}"), name)


def launch(module: str, name: str, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start a kernel on the device of the first tensor among ``args``."""
    device = next(x.device for x in args if isinstance(x, Tensor))
    function = kernel(module, name)
    if device.type == "cuda":
        with torch.cuda.device(device):
            function[grid](*args, **options)
    else:
        function[grid](*args, **options)


def check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check what the kernels cannot do; shapes are the caller's to check.

    Raises:
        TypeError: if a dtype is not float32, bfloat16 or float16.
        ValueError: if there are no tokens, more than 256 features or values, or no GPU.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be float32, bfloat16 or float16 for a Triton kernel, got {x.dtype}"
            )
        if not 1 <= x.shape[-1] <= MOST:
            raise ValueError(
                f"{name}'s last axis must be 1 to {MOST} long for a Triton kernel, "
                f"got {x.shape[-1]}"
            )
    if q.numel() == 0 or v.numel() == 0:
        raise ValueError(f"q must not be empty for a Triton kernel, got shape {tuple(q.shape)}")
    if q.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"q must be on a GPU for a Triton kernel (or TRITON_INTERPRET=1), got {q.device}"
        )


def products(q: Tensor, v: Tensor) -> Products:
    """Choose how to multiply: in bfloat16, TF32 for float16, or three TF32 products for float32.

    TF32 keeps float16's 10 bits of mantissa and float32's range: a state of float16 would overflow.
    Three TF32 products (of the high and low parts) keep about 21 bits of float32's 24. Products
    with all 24 ("ieee") use no tensor core: compiled for compute capability 9.0 the walks then
    spill nearly all of their registers. With three TF32 products they spill a few at K = V = 64 and
    many from 128 on: right, but not fast. bfloat16 is the dtype to be fast in.
    """
    if torch.float32 in (q.dtype, v.dtype):
        return Products(False, "tf32x3")
    if q.dtype == v.dtype == torch.bfloat16:
        return Products(True, "ieee" if q.device.type == "cuda" else "widened")
    return Products(False, "tf32")


def num_units(device: torch.device) -> int:
    """Return the number of multiprocessors; under the interpreter a few, to cut time for tests."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
