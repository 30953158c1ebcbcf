"""The Performer mixer: contract in its kinds, random features as buffers, redraws."""

import copy
import itertools
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.checkpoint import checkpoint

from helpers import assert_near
from subquad.layers import PerformerAttention, PerformerCrossAttention, attention_rows
from subquad.layers.drawn_features import DrawnFeatures
from subquad.ops.generalized_features import KERNEL_FUNCTIONS, GeneralizedKernel
from subquad.ops.performer_attention import performer_attention_quadratic
from subquad.ops.performer_state import PerformerState
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.ops.state import load_state, save_state
from subquad.testing import check_mixer

performer = partial(PerformerAttention, 8, 2)
VARIANTS = {
    "hyperbolic": partial(performer, kernel=SoftmaxKernel(estimator=Estimator.HYPERBOLIC)),
    "trigonometric": partial(
        performer, kernel=SoftmaxKernel(estimator=Estimator.TRIGONOMETRIC), num_features=64
    ),
    "relu": partial(performer, kernel=GeneralizedKernel()),
    "rotary, shared, widths": partial(
        performer, rotary=True, share_qk=True, head_dim=6, value_dim=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant, is_causal):
    check_mixer(partial(VARIANTS[variant], is_causal=is_causal), d_model=8, is_causal=is_causal)


def test_what_one_direction_alone_has_keeps_it_too():
    build = partial(performer, max_per_feature=True, is_causal=True)
    check_mixer(build, d_model=8, is_causal=True)
    kernel = GeneralizedKernel(function=KERNEL_FUNCTIONS["tanh"], projected=False)
    build = partial(performer, kernel=kernel, normalize=False, is_causal=False)
    check_mixer(build, d_model=8, is_causal=False)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_layer_is_the_definition_between_its_projections(is_causal):
    layer = performer(is_causal=is_causal).double().eval()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = layer.heads.split(x)
    y = performer_attention_quadratic(
        q, k, v, features=layer.features.current(), is_causal=is_causal
    )
    assert_near(layer(x), layer.heads.merge(y), 1e-10)


@pytest.mark.parametrize("variant", ["relu", "hyperbolic", "trigonometric"])
def test_rows_of_the_implied_matrix(variant):
    layer = VARIANTS[variant](is_causal=True).double().eval()
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    weights, values = attention_rows(layer, x, range(7))
    assert_near(weights @ values, layer.attend(x).outputs, 1e-10)
    assert_near(weights.sum(-1), torch.ones(1, 2, 7).double(), 1e-10)


@pytest.mark.parametrize("kind", ["default", "relu"])
def test_cross_attention(kind):
    kernel = {"default": SoftmaxKernel(), "relu": GeneralizedKernel()}[kind]
    layer = PerformerCrossAttention(8, 2, context_dim=5, kernel=kernel).double()
    for bias in (layer.heads.q_proj.bias, layer.heads.kv_proj.bias):
        nn.init.normal_(bias)
    x, context = torch.randn(2, 3, 8).double(), torch.randn(2, 9, 5).double()
    expected = layer(x[:1], context[:1, :4])
    mask = torch.tensor([[True] * 4 + [False] * 5, [False] * 9])
    y = layer(x, context.masked_fill(~mask.unsqueeze(-1), torch.nan), key_mask=mask)
    assert_near(y[:1], expected, 1e-10)
    assert_near(y[1], layer.heads.out_proj.bias.expand(3, 8), 1e-10)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    if kind == "default":
        q, k, v = layer.heads.split_cross(x, context)
        y = performer_attention_quadratic(q, k, v, features=layer.features.current())
        assert_near(layer(x, context), layer.heads.merge(y), 1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_finite_at_large_inputs_and_keeps_a_float32_state(is_causal, dtype):
    layer, x = performer(is_causal=is_causal, redraw_every=None), 100 * torch.randn(2, 40, 8)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        if is_causal:
            _, state = layer.prefill(x, layer.init_state(2))
            assert {part.dtype for part in state} == {torch.float32}
    (y.float().square().mean() / 1e4).backward()  # fp16 has no room for larger gradients
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_the_stepper_is_step_and_states_are_saved(tmp_path):
    for build in (performer, VARIANTS["relu"], VARIANTS["rotary, shared, widths"]):
        layer = build(is_causal=True).eval()
        x = torch.randn(2, 9, 8)
        expected = layer(x)
        with torch.inference_mode():
            _, state = layer.prefill(x[:, :5], layer.init_state(2))
            save_state(state, tmp_path / "state")
            state = load_state(tmp_path / "state", layer.init_state(2))
            take = layer.stepper(2)
            for t in range(5, 9):
                y, state = take(x[:, t], state)
                assert_near(y, expected[:, t], 1e-5)
    state = performer(is_causal=True).init_state(3)
    assert isinstance(state, PerformerState)
    assert [x.shape for x in state] == [(3, 2, 5, 4), (3, 2, 5), (3, 2)]


def train(layer, passes, width=8):
    """Return the directions of each pass through a layer in training mode."""
    seen = []
    for _ in range(passes):
        layer(torch.randn(1, 3, width)).sum().backward()
        seen.append(layer.features.projection.clone())
    return seen


def test_directions_are_redrawn_in_training_on_schedule_alone():
    layer = performer(is_causal=True, redraw_every=3)
    seen = train(layer, 7)
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changes == [False, False, True, False, False, True]
    assert layer.features.schedule[1:].tolist() == [2, 7]
    state = layer.init_state(1)
    for _ in range(4):  # a sequence is gone through with one draw, in training too
        _, state = layer.prefill(torch.randn(1, 2, 8), state)
        _, state = layer.step(torch.randn(1, 8), state)
    layer.eval()
    assert [torch.equal(x, seen[-1]) for x in train(layer, 7)] == [True] * 7
    never = performer(is_causal=True, redraw_every=None)
    first = never.features.projection.clone()
    assert all(torch.equal(x, first) for x in train(never, 5))
    never.features.redraw()
    assert not torch.equal(never.features.projection, first)


def test_a_checkpoint_goes_on_with_the_same_draws():
    layer = performer(is_causal=False, redraw_every=2)
    train(layer, 3)
    saved = load(save(layer.state_dict()))
    expected = train(layer, 4)
    torch.manual_seed(99)
    fresh = performer(is_causal=False, redraw_every=2)
    train(fresh, 2)
    fresh.load_state_dict(saved)
    for a, b in zip(train(fresh, 4), expected, strict=True):
        assert torch.equal(a, b)
    again = copy.deepcopy(layer)
    assert torch.equal(train(again, 2)[1], train(layer, 2)[1])


def test_layers_have_draws_of_their_own_and_a_seed_repeats_them():
    torch.manual_seed(0)
    first, second = performer(is_causal=True), performer(is_causal=True)
    torch.manual_seed(0)
    again = performer(is_causal=True)
    assert not torch.equal(first.features.projection, second.features.projection)
    assert torch.equal(first.features.projection, again.features.projection)
    assert torch.equal(first.features.schedule, again.features.schedule)
    assert first.features.schedule[0] != second.features.schedule[0]


@pytest.mark.parametrize("kernel", [SoftmaxKernel(), GeneralizedKernel()])
def test_a_pass_that_waits_for_its_backward_keeps_its_directions(kernel):
    layer = performer(is_causal=False, redraw_every=1, kernel=kernel).double()
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    same = copy.deepcopy(layer)
    (expected,) = torch.autograd.grad(same(x).square().sum(), x)
    y = layer(x)
    layer(x)  # draws anew
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert_near(grad, expected, 1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_counts_a_pass_once(reentrant):
    layer = performer(is_causal=True, redraw_every=2).double()
    plain, x = copy.deepcopy(layer), torch.randn(1, 4, 8, dtype=torch.float64)
    for _ in range(5):
        results = []
        for module, run in ((plain, plain), (layer, partial(checkpoint, layer))):
            leaf = x.clone().requires_grad_()
            options = {} if run is plain else {"use_reentrant": reentrant}
            run(leaf, **options).square().sum().backward()
            results.append((leaf.grad, module.features.schedule[1:].clone()))
        assert_near(results[1][0], results[0][0], 1e-12)
        assert torch.equal(results[0][1], results[1][1])


RANK = """
import sys, torch
from subquad.layers import PerformerAttention
rank = int(sys.argv[1])
store = f"file://{sys.argv[2]}"
torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(rank)
layer = PerformerAttention(8, 2, is_causal=True, redraw_every=2)
model = torch.nn.parallel.DistributedDataParallel(layer)
for _ in range(5):
    model(torch.randn(1, 3, 8)).square().sum().backward()
features = layer.features
print(features.projection.tolist(), features.schedule.tolist())
"""


def test_draws_agree_on_two_ranks(tmp_path):
    """Of other seeds and other data, as data-parallel training has them."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    first, second = (rank.communicate(timeout=300)[0] for rank in ranks)
    assert first == second
    assert first.strip().endswith("2, 5]")


def test_it_builds_without_memory_and_without_directions():
    with torch.device("meta"):
        layer = performer(is_causal=True)
    assert layer.features.projection.is_meta
    built = layer.to_empty(device="cpu")
    built.features.reset_parameters()
    assert built.features.projection.norm(dim=1).min() > 0
    plain = performer(is_causal=True, kernel=GeneralizedKernel(projected=False))
    assert "features.projection" not in plain.state_dict()
    plain(torch.randn(1, 3, 8))
    plain.features.redraw()
    assert plain.features.schedule[1:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"redraw_every": 0}, ValueError, "redraw_every must be at least 1, got 0"),
        ({"normalize": False}, ValueError, "normalize must be True for RandomFeatures"),
        (
            {"kernel": GeneralizedKernel(function=KERNEL_FUNCTIONS["cos"])}, ValueError,
            "normalize must be False for a feature map whose kernel can be negative",
        ),
        (
            {"kernel": GeneralizedKernel(), "max_per_feature": True}, ValueError,
            "max_per_feature must be False for GeneralizedFeatures",
        ),
        ({"impl": "cpu"}, TypeError, "impl must be an Impl, got str 'cpu'"),
    ],
)  # fmt: skip
def test_errors(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        performer(is_causal=True, **options)


def test_errors_without_a_direction(unhooked):
    layer = performer(is_causal=False)
    for call in (
        lambda: layer.init_state(1), lambda: layer.stepper(1),
        lambda: layer.step(torch.randn(1, 8), None), lambda: layer.prefill(torch.randn(1, 2, 8), 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="needs a mixer built with is_causal=True"):
            call()
    with pytest.raises(ValueError, match="redraw_every must be at least 1, got -1"):
        DrawnFeatures(SoftmaxKernel(), 4, redraw_every=-1)
