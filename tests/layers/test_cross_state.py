"""What is kept of a context must serve as the context itself does: values, gradients, masks."""

from functools import partial

import pytest
import torch

from helpers import as_users_have_it, assert_near, leaves
from subquad.layers import LinearCrossAttention, PerformerCrossAttention, SoftmaxCrossAttention
from subquad.ops import context_state as ops
from subquad.ops.context_state import FavorContext
from subquad.ops.feature_maps import identity
from subquad.ops.generalized_features import GeneralizedKernel
from subquad.ops.linear_state import LinearState
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.ops.state import load_state, save_state, state_size_bytes

CROSS = {
    "linear": LinearCrossAttention,
    "identity": partial(LinearCrossAttention, feature_map=identity, normalize=False),
    "softmax": SoftmaxCrossAttention,
    "performer": PerformerCrossAttention,
    "hyperbolic": partial(
        PerformerCrossAttention, kernel=SoftmaxKernel(estimator=Estimator.HYPERBOLIC)
    ),
    "trigonometric": partial(
        PerformerCrossAttention, kernel=SoftmaxKernel(estimator=Estimator.TRIGONOMETRIC)
    ),
    "relu": partial(PerformerCrossAttention, kernel=GeneralizedKernel()),
    "relu-unprojected": partial(
        PerformerCrossAttention, kernel=GeneralizedKernel(projected=False), normalize=False
    ),
}
cross = pytest.mark.parametrize("build", CROSS.values(), ids=CROSS)
CONSTANT = {name: build for name, build in CROSS.items() if name != "softmax"}
constant = pytest.mark.parametrize("build", CONSTANT.values(), ids=CONSTANT)


def drawn(build, **options):
    torch.manual_seed(0)
    return build(8, 2, context_dim=5, **options).double().eval()


def both(layer, x, context, mask):
    """Yield the output and all gradients of the call on a context, then of that on its state."""
    for kept in (False, True):
        x, context = leaves(x, context)
        if kept:
            y = layer.attend_state(x, layer.context_state(context, key_mask=mask))
        else:
            y = layer(x, context, key_mask=mask)
        yield y, torch.autograd.grad(y.sin().sum(), [x, context, *layer.parameters()])


@cross
@pytest.mark.parametrize("lengths", [(1, 1), (3, 7), (5, 70)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_state_serves_as_the_context(build, lengths, masked):
    layer, (t, s) = drawn(build), lengths
    x, context = torch.randn(2, t, 8).double(), torch.randn(2, s, 5).double()
    mask = None
    if masked:
        mask = torch.rand(2, s) < 0.6
        mask[0, 0], mask[1] = True, False
        context = context.masked_fill(~mask.unsqueeze(-1), torch.nan)
    (expected, expected_grads), (actual, grads) = both(layer, x, context, mask)
    assert_near(actual, expected, 1e-10)
    largest = max(grad.norm() for grad in expected_grads)
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert (grad - reference).norm() <= 1e-9 * largest


@constant
def test_it_does_not_grow_with_the_context(build):
    layer = drawn(build)
    sizes = [
        state_size_bytes(layer.context_state(torch.randn(2, s, 5).double())) for s in (1, 9, 300)
    ]
    assert len(set(sizes)) == 1


def test_softmax_keeps_the_keys_and_values():
    layer = drawn(SoftmaxCrossAttention)
    states = [layer.context_state(torch.randn(2, s, 5).double()) for s in (1, 9)]
    assert [state_size_bytes(state) for state in states] == [2 * 2 * s * 8 * 8 for s in (1, 9)]


def test_positive_features_are_right_at_any_magnitude_and_over_many_stretches(monkeypatch):
    monkeypatch.setattr(ops, "tile_size", lambda _: 16)
    layer = drawn(PerformerCrossAttention)
    x, context = torch.randn(1, 3, 8).double(), torch.randn(1, 50, 5).double()
    for scale in (1, 300):
        expected = layer(scale * x, scale * context)
        assert_near(
            layer.attend_state(scale * x, layer.context_state(scale * context)), expected, 1e-9
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@cross
def test_half_precision_keeps_wide_sums_and_gives_half(build, dtype):
    layer = drawn(build).to(dtype)
    x, context = torch.randn(1, 3, 8).to(dtype), torch.randn(1, 9, 5).to(dtype)
    state = layer.context_state(context)
    y = layer.attend_state(x, state)
    assert y.dtype == dtype
    assert_near(y, layer(x, context), 3e-2)
    if build is not SoftmaxCrossAttention:
        assert {part.dtype for part in state} == {torch.float32}


def test_training_passes_are_not_counted_by_a_state():
    layer = PerformerCrossAttention(8, 2, redraw_every=1).train()
    before = layer.features.projection.clone()
    for _ in range(3):
        layer.attend_state(torch.randn(1, 2, 8), layer.context_state(torch.randn(1, 4, 8)))
    assert torch.equal(layer.features.projection, before)


@cross
def test_a_state_is_saved_and_loaded(build, tmp_path):
    layer = drawn(build)
    mask = torch.tensor([[True, False, True]])
    state = layer.context_state(torch.randn(1, 3, 5).double(), key_mask=mask)
    save_state(state, tmp_path / "state")
    again = load_state(tmp_path / "state", like=state)
    x = torch.randn(1, 2, 8).double()
    assert torch.equal(layer.attend_state(x, again), layer.attend_state(x, state))


@cross
def test_errors(build, unhooked):
    layer = drawn(build)
    with pytest.raises(ValueError, match=r"context must have shape \(B, T, 5\)"):
        layer.context_state(torch.randn(2, 3, 8).double())
    with pytest.raises(ValueError, match=r"key_mask must have shape .* = \(2, 3\)"):
        layer.context_state(torch.randn(2, 3, 5).double(), key_mask=torch.ones(2, 4).bool())
    state = layer.context_state(torch.randn(2, 3, 5).double())
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, 8\)"):
        layer.attend_state(torch.randn(2, 3, 7).double(), state)
    with pytest.raises(
        ValueError, match=r"state must have the batch size of the tokens \(1\), got 2"
    ):
        layer.attend_state(torch.randn(1, 3, 8).double(), state)


def test_a_state_of_other_features_is_refused(unhooked):
    layer, x = drawn(PerformerCrossAttention), torch.randn(1, 2, 8).double()
    linear = drawn(LinearCrossAttention)
    with pytest.raises(TypeError, match="state must be a FavorContext, got LinearState"):
        layer.attend_state(x, linear.context_state(torch.randn(1, 3, 5).double()))
    relu = drawn(partial(PerformerCrossAttention, kernel=GeneralizedKernel()))
    with pytest.raises(TypeError, match="state must be a LinearState, got FavorContext"):
        relu.attend_state(x, layer.context_state(torch.randn(1, 3, 5).double()))
    few = drawn(PerformerCrossAttention, num_features=3)
    with pytest.raises(ValueError, match=r"state.log_sums must have shape"):
        layer.attend_state(x, few.context_state(torch.randn(1, 3, 5).double()))
    with pytest.raises(ValueError, match=r"state.k_sum must have shape"):
        linear.attend_state(x, LinearState(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)))


def test_ops_refuse_values_of_another_length(unhooked):
    k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    context = as_users_have_it(ops.performer_context)
    with pytest.raises(ValueError, match=r"v must have shape \(1, 2, 3, 4\), got \(1, 2, 5, 4\)"):
        context(k, v, features=SoftmaxKernel().draw(4))
    assert isinstance(
        ops.performer_context(k, v[:, :, :3], features=SoftmaxKernel().draw(4)), FavorContext
    )
