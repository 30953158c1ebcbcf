"""Cases of FAVOR+ that several test files share: features, inputs, and forms to compare."""

import functools

import pytest
import torch

from helpers import leaves
from subquad.kernels.cpu import library
from subquad.kernels.dispatch import Impl
from subquad.ops.performer_state import performer_state
from subquad.ops.performer_step import (
    performer_attention_step,
)
from subquad.ops.random_features import Estimator, SoftmaxKernel

float64 = torch.float64
B, H, T, K, V = 2, 3, 23, 4, 5
# Estimator, is_causal, max_per_feature: all that go together.
CASES = [
    (estimator, is_causal, per_feature)
    for estimator in Estimator
    for is_causal, per_feature in ((False, False), (True, False), (True, True))
    if not (per_feature and estimator is Estimator.TRIGONOMETRIC)
]
cases = pytest.mark.parametrize(("estimator", "is_causal", "per_feature"), CASES)
native = pytest.param(
    Impl.CPU, marks=pytest.mark.skipif(library.why_not() is not None, reason="not built")
)


@functools.cache
def draw(estimator=Estimator.POSITIVE, width=K, count=9):
    generator = torch.Generator().manual_seed(0)
    return SoftmaxKernel(estimator=estimator).draw(width, count, generator=generator, dtype=float64)


def make_qkv(*, factor=1.0, dtype=float64, shape=(B, H, T), width=K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(*shape, n, generator=generator, dtype=float64) for n in (width, width, V)
    )
    return [(factor * q).to(dtype), (factor * k).to(dtype), v.to(dtype)]


def with_gradients(attend, tensors):
    inputs = leaves(*tensors)
    y = attend(*inputs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), inputs)]


def by_token(q, k, v, features, per_feature=False, take=performer_attention_step):
    state = performer_state(
        len(q), q.shape[1], q.shape[3], v.shape[3], features, q, max_per_feature=per_feature
    )
    outputs = []
    for t in range(q.shape[2]):
        y, state = take(
            q[:, :, t], k[:, :, t], v[:, :, t], state, features=features,
            max_per_feature=per_feature,
        )  # fmt: skip
        outputs.append(y)
    return torch.stack(outputs, 2)
