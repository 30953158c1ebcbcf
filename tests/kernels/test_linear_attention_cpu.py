"""The C++ form against the definition in float64: values, states and every gradient."""

import itertools

import pytest
import torch

from helpers import assert_near
from subquad.kernels.cpu import library
from subquad.kernels.dispatch import Impl
from subquad.kernels.operators import OPERATORS, STEP_OPERATORS
from subquad.ops.linear_attention import (
    linear_attention,
    linear_attention_bidirectional,
    linear_attention_chunked,
    linear_attention_quadratic,
)
from subquad.ops.linear_attention_step import linear_attention_step
from subquad.ops.linear_state import LinearState
from subquad.ops.rotary_linear_attention import (
    rotary_linear_attention,
    rotary_linear_attention_chunked,
    rotary_linear_attention_quadratic,
    rotary_linear_attention_step,
)
from subquad.ops.rotation import Rotation

pytestmark = pytest.mark.skipif(library.library() is None, reason=str(library.why_not()))

run = OPERATORS[Impl.CPU]
#   T, K, V: less than a chunk, a chunk exactly, over chunks; widths that no vector divides
SIZES = [(1, 16, 16), (5, 3, 7), (32, 64, 64), (130, 40, 24), (75, 128, 20), (64, 2, 1)]
SWITCHES = list(itertools.product([False, True], repeat=5))


def elu_plus_one(x):
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def inputs(T, K, V, *, is_elu, decays=False, masks=False, rotates=False, B=2, H=3, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    q, k, v = draw(B, H, T, K), draw(B, H, T, K), draw(B, H, T, V)
    if not is_elu:
        q, k = q.abs(), k.abs()
    decay = mask = cos = sin = None
    if decays:
        decay = -0.1 * draw(B, H, T).abs()
        if T > 1:  # with one token nothing would be left to differentiate
            decay[:, :, T // 2] = -torch.inf  # a reset
    if masks:
        mask = torch.rand(B, T, generator=g) > 0.3
    if rotates:
        angle = draw(B, T, K // 2)
        cos, sin = angle.cos(), angle.sin()
    state = [draw(B, H, K, V), 3 * draw(B, H, K).abs()]
    return [q, k, v, decay], mask, (cos, sin), state


def definition(tensors, mask, rotation, state, *, is_elu, normalize):
    """Outputs and last state in float64, by the quadratic form and the torch form."""
    q, k, v, decay = tensors
    if is_elu:
        q, k = elu_plus_one(q), elu_plus_one(k)
    past = LinearState(*state)
    if rotation[0] is None:
        options = {"key_mask": mask, "log_decay": decay, "normalize": normalize}
        y = linear_attention_quadratic(q, k, v, is_causal=True, state=past, **options)
        return y, linear_attention_chunked(q, k, v, past, **options)[1]
    turn = Rotation(*(x.double() for x in rotation))
    options = {"key_mask": mask, "normalize": normalize}
    y = rotary_linear_attention_quadratic(q, k, v, turn, is_causal=True, state=past, **options)
    return y, rotary_linear_attention_chunked(q, k, v, turn, past, **options)[1]


@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_definition_with_all_gradients(instruction_set, sizes):
    T, K, V = sizes
    for is_elu, normalize, decays, masks, rotates in SWITCHES:
        if rotates and (K % 2 or decays):
            continue
        tensors, mask, rotation, state = inputs(
            T, K, V, is_elu=is_elu, decays=decays, masks=masks, rotates=rotates
        )
        leaves = [x.requires_grad_() for x in (*tensors, *state) if x is not None]
        y, _, kv, k_sum = run(*tensors, mask, *rotation, *state, is_elu, normalize, True)
        wide = [None if x is None else x.detach().double().requires_grad_() for x in tensors]
        wide_state = [x.detach().double().requires_grad_() for x in state]
        want, last = definition(
            wide, mask, rotation, wide_state, is_elu=is_elu, normalize=normalize
        )
        weights = [torch.randn(x.shape) for x in (y, kv, k_sum)]
        got = torch.autograd.grad(weigh((y, kv, k_sum), weights), leaves)
        wide_leaves = [x for x in (*wide, *wide_state) if x is not None]
        expected = torch.autograd.grad(weigh((want, *last), weights), wide_leaves)
        for a, b in zip((y, kv, k_sum, *got), (want, *last, *expected), strict=True):
            assert_near(a, b, 2e-5)


def weigh(tensors, weights):
    return sum((x * w.to(x.dtype)).sum() for x, w in zip(tensors, weights, strict=True))


@pytest.mark.parametrize(("heads", "threads"), [(1, 2), (3, 2), (2, 4), (1, 5)])
@pytest.mark.parametrize("decays", [False, True])
def test_time_is_cut_where_heads_are_few(heads, threads, decays):
    tensors, _, _, state = inputs(700, 32, 48, is_elu=True, decays=decays, B=1, H=heads)
    leaves = [x.requires_grad_() for x in (*tensors, *state) if x is not None]

    def all_of_it():
        y, _, *after = run(*tensors, None, None, None, *state, True, True, True)
        loss = (y * y).sum() + sum(x.square().mean() for x in after)
        return [y, *after, *torch.autograd.grad(loss, leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = all_of_it()
        torch.set_num_threads(threads)
        together = all_of_it()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(alone, together, strict=True):
        assert_near(a, b, 1e-5)


@pytest.mark.parametrize("rotates", [False, True])
def test_bidirectional(rotates):
    tensors, mask, rotation, _ = inputs(70, 12, 20, is_elu=False, masks=True, rotates=rotates)
    leaves = [x.requires_grad_() for x in tensors[:3]]
    wide = [x.detach().double().requires_grad_() for x in leaves]

    def attend(q, k, v, impl):
        if rotates:
            turn = Rotation(*(x.to(q.dtype) for x in rotation))
            return rotary_linear_attention(q, k, v, turn, key_mask=mask, impl=impl)
        return linear_attention_bidirectional(q, k, v, key_mask=mask, impl=impl)

    y, want = attend(*leaves, Impl.CPU), attend(*wide, Impl.TORCH)
    weight = torch.randn(y.shape)
    got = torch.autograd.grad((y * weight).sum(), leaves)
    expected = torch.autograd.grad((want * weight).sum(), wide)
    for a, b in zip((y, *got), (want, *expected), strict=True):
        assert_near(a, b, 1e-5)


def test_cross_attention_has_its_own_length():
    q, k, v = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 70, 4), torch.randn(2, 3, 70, 5)
    y = linear_attention(q, k, v, impl=Impl.CPU)
    want = linear_attention(q.double(), k.double(), v.double())
    assert_near(y, want, 1e-6)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_bf16_is_rounded_at_the_ends_alone(dtypes):
    kinds = [getattr(torch, name) for name in (dtypes[0], dtypes[0], dtypes[1])]
    x = [torch.randn(2, 2, 150, 16).to(kind).requires_grad_() for kind in kinds]
    wide = [t.detach().double().requires_grad_() for t in x]
    y, want = (
        linear_attention(*x, is_causal=True, impl=Impl.CPU),
        linear_attention(*wide, is_causal=True),
    )
    assert y.dtype == kinds[2]
    assert_near(y, want, 2**-8)
    weight = torch.randn(y.shape).bfloat16()
    got = torch.autograd.grad((y * weight).float().sum(), x)
    expected = torch.autograd.grad((want * weight).sum(), wide)
    for a, b in zip(got, expected, strict=True):
        assert_near(a, b, 2**-6)


def test_what_is_hidden_may_be_anything():
    tensors, mask, _, state = inputs(70, 8, 8, is_elu=True, decays=True, masks=True)
    garbage = [x.clone() for x in tensors]
    hidden = ~mask[:, None, :].expand(2, 3, 70)
    garbage[1][hidden], garbage[2][hidden] = torch.nan, 1e30
    garbage[3][hidden] = -5.0

    def grads(tensors):
        leaves = [x.clone().requires_grad_() for x in (*tensors, *state)]
        y, *_ = run(*leaves[:4], mask, None, None, *leaves[4:], True, True, True)
        return y, torch.autograd.grad(y.square().sum(), leaves)

    (y, clean), (z, dirty) = grads(tensors), grads(garbage)
    assert torch.equal(y, z)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_the_past_does_not_see_the_future_by_a_bit(instruction_set):
    q, k, v = torch.randn(3, 2, 4, 100, 24).unbind()
    y = linear_attention(q, k, v, is_causal=True, impl=Impl.CPU)
    for j in (1, 31, 32, 50, 99):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, j:] = 1e30
        z = linear_attention(*changed, is_causal=True, impl=Impl.CPU)
        assert torch.equal(y[:, :, :j], z[:, :, :j])


def test_a_row_whose_denominator_is_0_gives_0_and_no_gradient():
    q = torch.rand(1, 1, 40, 4)
    q[:, :, 10] = 0
    q.requires_grad_()
    y = linear_attention_chunked(
        q, q, q, LinearState(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4)), impl=Impl.CPU
    )[0]
    (grad,) = torch.autograd.grad(y.sum(), q)
    assert (y[:, :, 10] == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(16, 16), (7, 5), (64, 70), (2, 130)])
def test_one_token(instruction_set, sizes, dtype, rotates):
    K, V = sizes
    if rotates and K % 2:
        return
    q, k, v = (torch.randn(2, 3, n).to(dtype) for n in (K, K, V))
    angle = torch.randn(2, 1, K // 2)
    turn = Rotation(angle.cos(), angle.sin()) if rotates else None
    state = LinearState(torch.randn(2, 3, K, V), torch.rand(2, 3, K))
    token = elu_plus_one(q.double()), elu_plus_one(k.double()), v.double()
    past = LinearState(*(x.double() for x in state))
    if turn is None:
        want, after = linear_attention_step(*token, past)
        cos = sin = None
    else:
        want, after = rotary_linear_attention_step(
            *token, Rotation(*map(torch.Tensor.double, turn)), past
        )
        cos, sin = (x.squeeze(1) for x in turn)
    y = STEP_OPERATORS[Impl.CPU](q, k, v, None, cos, sin, *state, True, True)
    assert y.dtype == dtype
    assert_near(y, want, 1e-5 if dtype == torch.float32 else 2**-8)
    for a, b in zip(state, after, strict=True):
        assert_near(a, b, 1e-6)


def test_a_step_with_a_decay():
    q, k, v = (torch.rand(2, 3, 8) for _ in range(3))
    decay = -torch.rand(2, 3)
    state = LinearState(torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8))
    want, after = linear_attention_step(q, k, v, state, log_decay=decay)
    y = STEP_OPERATORS[Impl.CPU](q, k, v, decay, None, None, *state, False, True)
    assert_near(y, want, 1e-6)
    assert_near(state.kv, after.kv, 1e-6)


def test_a_denominator_near_the_smallest_number_divides_as_it_is():
    q = torch.tensor([-18.1, -25.6, 38.7, 11.0, 9.3]).view(1, 1, 1, 5)
    k = torch.tensor([-156.0, -263.0, -127.0, -151.0, -98.0]).view(1, 1, 1, 5)
    v = torch.tensor([-246.0, 29.0]).view(1, 1, 1, 2)
    y = linear_attention(q, k, v, is_causal=True, impl=Impl.CPU)
    assert_near(y, v, 1e-2)  # one key: its weight is 1, to the few bits that are left


def test_a_reset_has_no_gradient():
    tensors, _, _, _ = inputs(9, 4, 4, is_elu=True, decays=True)
    leaves = [x.requires_grad_() for x in tensors]
    y = run(*leaves, *[None] * 5, True, True, True)[0]
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[3])
    assert (grad[:, :, 4] == 0).all()  # where inputs() puts it


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rotates", [True, False])
def test_stretches_of_time_with_masks_rotations_and_both_directions(is_causal, rotates):
    tensors, mask, rotation, _ = inputs(
        4000,
        8,
        12,
        is_elu=True,
        masks=True,
        rotates=rotates,
        B=1,
        H=1,  # enough for threads
    )
    leaves = [x.requires_grad_() for x in tensors[:3]]

    def all_of_it(threads):
        torch.set_num_threads(threads)
        y = run(*leaves, None, mask, *rotation, None, None, True, True, is_causal)[0]
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    before = torch.get_num_threads()
    try:
        assert_near(all_of_it(3), all_of_it(1), 1e-5)
    finally:
        torch.set_num_threads(before)
