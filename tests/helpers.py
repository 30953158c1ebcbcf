"""What tests of several folders share: comparisons by a tensor's norm, and feature maps."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subquad.layers.learned_feature_map import LearnedFeatureMap
from subquad.ops import feature_maps
from subquad.ops.feature_maps import FeatureMap

# How far two forms of one operator may differ, relative to the tensor's norm.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def assert_near(
    actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], tolerance: float
) -> None:
    """Assert |actual - expected| <= tolerance * |expected| in the Euclidean norm, tensor by tensor.

    Shapes must agree; dtypes need not. Where ``expected`` is all 0, ``actual`` must be too.
    """
    if isinstance(actual, Tensor):
        actual, expected = [actual], [expected]
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"tensor {index}: shape {a.shape} against {e.shape}"
        error, norm = (a.double() - e.double()).norm().item(), e.double().norm().item()
        assert error <= tolerance * norm, f"tensor {index}: off by {error:.2e}, norm {norm:.2e}"


def draw_qkv(
    shape: Sequence[int],
    key_dim: int,
    value_dim: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Return queries and keys (*shape, key_dim) and values (*shape, value_dim) of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, n, generator=generator, dtype=torch.float64).to(dtype)
        for n in (key_dim, key_dim, value_dim)
    ]


def three_masked_rows(seq_len: int) -> Tensor:
    """Return one row with holes, one padded on the left, one with no valid key at all."""
    mask = torch.ones(3, seq_len, dtype=torch.bool)
    mask[0, [n for n in (2, 3, 7, 11, 21) if n < seq_len]] = False
    mask[1, :5] = False
    mask[2] = False
    return mask


def published_weights(keys: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Return weights (float64) as tests/oracles has them: key i of the sorted names of a seed."""
    weights = {}
    for i, (key, shape) in enumerate(sorted(keys.items())):
        z = np.random.RandomState(1000 * seed + i).standard_normal(int(np.prod(shape)))
        weights[key] = torch.tensor(_published(key, z.reshape(shape)))
    return weights


def _published(key: str, z: Any) -> Any:
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    if key.endswith("running_var"):
        return 1 + 0.2 * np.tanh(z)
    if key.endswith("running_mean"):
        return 0.1 * z
    if z.ndim > 1:
        return z / np.prod(z.shape[1:]) ** 0.5
    return 1 + 0.1 * z if key.endswith("weight") else 0.05 * z


def leaves(*tensors: Tensor | None) -> list[Tensor]:
    """Return copies that ask for gradients, Nones left out."""
    return [x.detach().clone().requires_grad_() for x in tensors if x is not None]


def as_users_have_it(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the library without the shape checks that only tests switch on.

    These would refuse a wrong shape before the library's own sentence about it is raised.
    """
    return inspect.unwrap(function)


def _learned(num_heads: int, head_dim: int) -> LearnedFeatureMap:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LearnedFeatureMap(num_heads, head_dim, num_features=6).double()


# Every map of the library: build(num_heads, head_dim).
FEATURE_MAPS: dict[str, Callable[[int, int], FeatureMap]] = {
    "elu_plus_one": lambda num_heads, head_dim: feature_maps.elu_plus_one,
    "relu": lambda num_heads, head_dim: feature_maps.relu,
    "squared_relu": lambda num_heads, head_dim: feature_maps.squared_relu,
    "exp": lambda num_heads, head_dim: feature_maps.exp,
    "degree_2_polynomial": lambda num_heads, head_dim: feature_maps.degree_2_polynomial,
    "identity": lambda num_heads, head_dim: feature_maps.identity,
    "learned": _learned,
}
