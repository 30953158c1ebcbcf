"""The Triton kernels as the operators of ops reach them: gradients, packed sequences, one step.

On the CPU: `TRITON_INTERPRET=1 pytest -m slow tests/kernels`, with triton installed.
"""

import pytest
import torch

from cases.triton_attention import DEVICES, usable
from helpers import assert_near, leaves
from subquad.kernels.dispatch import Impl
from subquad.ops.linear_attention import linear_attention
from subquad.ops.rotary_linear_attention import rotary_linear_attention
from subquad.ops.rotation import Rotation

pytest.importorskip("triton", reason="triton is not installed: pip install 'subquad[triton]'")
pytestmark = pytest.mark.slow
BORDERS = torch.tensor([0, 3, 3, 20, 21])


@pytest.fixture(params=DEVICES)
def device(request):
    return usable(request.param)


def _values_and_gradients(attend, impl, *tensors):
    tensors = leaves(*tensors)
    y = attend(*tensors, impl)
    return [x.detach().cpu() for x in (y, *torch.autograd.grad(y.square().sum(), tensors))]


def _linear(cu_seqlens):
    def attend(q, k, v, log_decay, impl):
        return linear_attention(
            q, k, v, is_causal=True, cu_seqlens=cu_seqlens, log_decay=log_decay, impl=impl
        )

    return attend


def _rotary(cu_seqlens):
    def attend(q, k, v, log_decay, impl):
        angle = log_decay[:, 0, :, None] * torch.arange(1, 9, device=q.device)
        rotation = Rotation(angle.detach().cos(), angle.detach().sin())
        mapped = [x.abs() + 0.1 for x in (q, k)]
        y = rotary_linear_attention(
            *mapped, v, rotation, is_causal=True, cu_seqlens=cu_seqlens, impl=impl
        )
        return y + 0 * log_decay.sum()

    return attend


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [_linear, _rotary])
def test_the_operators_of_ops_give_what_their_torch_forms_give(make, packed, device):
    torch.manual_seed(0)
    batch = 1 if packed else 2
    tensors = [torch.randn(batch, 2, 21, size, device=device) for size in (16, 16, 24)]
    tensors.append(-torch.rand(batch, 2, 21, device=device))
    attend = make(BORDERS.to(device) if packed else None)
    expected = _values_and_gradients(attend, Impl.TORCH, *tensors)
    actual = _values_and_gradients(attend, Impl.TRITON, *tensors)
    assert_near(actual, expected, 1e-5)
