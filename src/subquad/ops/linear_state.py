"""The state of linear attention: sums over the past that do not grow with it.

Axes: B batch, H heads, T time, K features, V value size.
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 16 to 19.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_same_device, check_shape, check_wide


class LinearState(NamedTuple):
    """Sums over the past, in float32 or wider: ``kv`` is the paper's S, ``k_sum`` its Z."""

    kv: Float[Tensor, "B H K V"]
    k_sum: Float[Tensor, "B H K"]


def linear_state(
    batch_size: int, num_heads: int, num_features: int, value_dim: int, like: Tensor
) -> LinearState:
    """Return the empty past, on the device of ``like`` and in its dtype (float32 or wider)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    k_sum = torch.zeros(batch_size, num_heads, num_features, dtype=dtype, device=like.device)
    return LinearState(k_sum.new_zeros(*k_sum.shape, value_dim), k_sum)


def empty_past(phi_k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T V"]) -> LinearState:
    """Return the ``linear_state`` before these keys and values, wide enough for both."""
    like = v if torch.promote_types(phi_k.dtype, v.dtype) == v.dtype else phi_k
    batch_size, num_heads, _, num_features = phi_k.shape
    return linear_state(batch_size, num_heads, num_features, v.shape[3], like=like)


def check_linear_state(state: LinearState, phi_k: Tensor, v: Tensor) -> None:
    """Check the past against keys (B, H, T, K) and values (B, H, T, V), or one of each.

    Raises:
        TypeError: if it is narrower than float32, than the keys or than the values.
        ValueError: if a shape or a device does not fit.
    """
    k_shape = (*phi_k.shape[:2], phi_k.shape[-1])
    check_shape("state.kv", state.kv, (*k_shape, v.shape[-1]))
    check_shape("state.k_sum", state.k_sum, k_shape)
    for name, x in (("state.kv", state.kv), ("state.k_sum", state.k_sum)):
        check_same_device(name, x, phi_k)
        check_wide(name, x, phi_k, v)
