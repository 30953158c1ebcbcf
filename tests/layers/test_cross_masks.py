"""The mask contract for mixers that see another sequence."""

from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.layers import LinearCrossAttention, SoftmaxCrossAttention
from subquad.layers.performer import PerformerCrossAttention
from subquad.ops.generalized_features import GeneralizedKernel
from subquad.ops.random_features import Estimator, SoftmaxKernel

CROSS = {
    "linear": LinearCrossAttention,
    "softmax": SoftmaxCrossAttention,
    **{
        f"performer-{name}": partial(PerformerCrossAttention, kernel=kernel, redraw_every=None)
        for name, kernel in {
            "positive": SoftmaxKernel(),
            "trigonometric": SoftmaxKernel(estimator=Estimator.TRIGONOMETRIC),
            "relu": GeneralizedKernel(),
        }.items()
    },
}
cross = pytest.mark.parametrize("build", CROSS.values(), ids=CROSS)


def run(layer, x, context, key_mask=None):
    """Return the output and the gradients of x, context and all parameters."""
    x, context = x.clone().requires_grad_(), context.clone().requires_grad_()
    y = layer(x, context, key_mask=key_mask)
    return y, torch.autograd.grad(y.square().sum(), [x, context, *layer.parameters()])


@cross
@pytest.mark.parametrize("fill", [0.0, 1e30, torch.nan])
@pytest.mark.parametrize("left", [True, False])
def test_a_padded_context_is_as_the_context_alone(build, fill, left):
    layer = build(8, 2, context_dim=5).double()
    for bias in (layer.heads.q_proj.bias, layer.heads.kv_proj.bias):
        torch.nn.init.normal_(bias)
    x, context = torch.randn(1, 3, 8).double(), torch.randn(1, 6, 5).double()
    padding, keep = torch.full((1, 4, 5), fill).double(), torch.ones(1, 6, dtype=torch.bool)
    parts, masks = (context, padding), (keep, torch.zeros(1, 4, dtype=torch.bool))
    order = slice(None, None, -1 if left else 1)
    padded, mask = torch.cat(parts[order], 1), torch.cat(masks[order], 1)
    expected, expected_grads = run(layer, x, context)
    actual, (grad_x, grad_context, *grads) = run(layer, x, padded, mask)
    assert_near(actual, expected, 1e-10)
    assert_near(grad_x, expected_grads[0], 1e-10)
    assert_near(grad_context[mask], expected_grads[1][0], 1e-10)
    assert (grad_context[~mask] == 0).all()
    largest = max(grad.norm() for grad in expected_grads[2:])
    for grad, reference in zip(grads, expected_grads[2:], strict=True):
        assert (grad - reference).norm() < 1e-10 * largest


@cross
def test_a_row_whose_context_is_hidden_gets_the_output_of_zeros(build):
    layer = build(8, 2).double()
    torch.nn.init.normal_(layer.heads.out_proj.bias)
    x, context = torch.randn(2, 3, 8).double(), torch.full((2, 4, 8), torch.nan).double()
    context[0] = 1.0
    y, grads = run(layer, x, context, torch.tensor([[True] * 4, [False] * 4]))
    assert_near(y[1], layer.heads.out_proj.bias.expand(3, 8), 1e-10)
    assert all(torch.isfinite(grad).all() for grad in grads)


@cross
@pytest.mark.parametrize(
    ("x", "context", "mask", "error", "message"),
    [
        ((2, 3, 7), (2, 4, 5), None, ValueError, r"x must have shape \(B, T, 8\)"),
        ((2, 3, 8), (2, 4, 8), None, ValueError, r"context must have shape \(B, T, 5\)"),
        ((2, 3, 8), (2, 0, 5), None, ValueError, r"context must have shape .* got \(2, 0, 5\)"),
        ((2, 3, 8), (1, 4, 5), None, ValueError, r"context must have the batch size of x \(2\)"),
        ((2, 3, 8), (2, 4, 5), (2, 3), ValueError, r"key_mask must have shape .* = \(2, 4\)"),
    ],
)
def test_errors(build, x, context, mask, error, message, unhooked):
    layer = build(8, 2, context_dim=5)
    key_mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(error, match=message):
        layer(torch.randn(x), torch.randn(context), key_mask=key_mask)


@cross
def test_errors_of_dtype_and_width(build, unhooked):
    with pytest.raises(TypeError, match=r"context must be of a floating dtype, got torch\.int64"):
        build(8, 2)(torch.randn(2, 3, 8), torch.ones(2, 3, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="context_dim must be at least 1, got 0"):
        build(8, 2, context_dim=0)
