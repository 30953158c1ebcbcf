"""Linear attention over stretches of time: states, steps, masks, resets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases.linear import B, D, H, T, make_inputs, recurrence
from helpers import TOLERANCE, assert_near, leaves
from subquad.ops.feature_maps import elu_plus_one, widen
from subquad.ops.linear_attention import (
    linear_attention_bidirectional,
    linear_attention_causal,
    linear_attention_chunked,
    linear_attention_quadratic,
)
from subquad.ops.linear_attention_step import linear_attention_step, linear_attention_step_
from subquad.ops.linear_state import LinearState, linear_state


def test_step_in_place_equals_step_and_overwrites():
    q, k, v, _, kv, k_sum = make_inputs(D, "none")
    state, ours = LinearState(kv, k_sum), LinearState(kv.clone(), k_sum.clone())
    for t in range(T):
        token = (elu_plus_one(q[:, :, t]), elu_plus_one(k[:, :, t]), v[:, :, t])
        y, after = linear_attention_step(*token, state)
        y_, after_ = linear_attention_step_(*token, ours)
        assert torch.equal(state.kv, kv)
        assert torch.equal(state.k_sum, k_sum)
        assert after_.kv.data_ptr() == ours.kv.data_ptr()
        assert after_.k_sum.data_ptr() == ours.k_sum.data_ptr()
        assert_near([y_, *after_], [y, *after], 1e-14)
        state = LinearState(*after)
        kv, k_sum = state.kv.clone(), state.k_sum.clone()
    unnormalized = linear_attention_step_(*token, ours, normalize=False)[0]
    assert_near(unnormalized, torch.einsum("bhk,bhkv->bhv", token[0], ours.kv), 1e-12)


def test_truncated_backpropagation():
    """A detached state cuts the gradient exactly there, and nowhere else."""
    q, k, v, log_decay, kv, k_sum = make_inputs(D, "token")
    a, b = leaves(q, k, v), leaves(q, k, v)
    cut = 7

    def run(inputs, detach):
        phi_q, phi_k = elu_plus_one(inputs[0]), elu_plus_one(inputs[1])
        _, state = linear_attention_chunked(
            phi_q[:, :, :cut], phi_k[:, :, :cut], inputs[2][:, :, :cut], LinearState(kv, k_sum),
            log_decay=log_decay[:, :, :cut],
        )  # fmt: skip
        state = LinearState(*(x.detach() for x in state)) if detach else state
        y, _ = linear_attention_chunked(
            phi_q[:, :, cut:], phi_k[:, :, cut:], inputs[2][:, :, cut:], state,
            log_decay=log_decay[:, :, cut:],
        )  # fmt: skip
        return torch.autograd.grad(y.square().sum(), inputs)

    full, truncated = run(a, detach=False), run(b, detach=True)
    for whole, part in zip(full, truncated, strict=True):
        assert part[:, :, :cut].eq(0).all()
        assert_near(part[:, :, cut:], whole[:, :, cut:], 1e-12)
    assert all(whole[:, :, :cut].norm() > 0 for whole in full[1:])


@st.composite
def cases(draw):
    sizes = {name: draw(st.integers(1, 4), name) for name in ("B", "H", "D", "V")}
    seq_len = draw(st.integers(1, 40), "T")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31), "seed"))
    dtype = draw(st.sampled_from(list(TOLERANCE)), "dtype")
    q, k, v = (
        torch.randn(sizes["B"], sizes["H"], seq_len, sizes[n], generator=generator).to(dtype)
        for n in ("D", "D", "V")
    )
    mask_kind = draw(st.sampled_from(["none", "random", "left", "right"]), "mask")
    lengths = torch.randint(0, seq_len + 1, (sizes["B"], 1), generator=generator)
    place = torch.arange(seq_len)
    key_mask = {
        "none": None,
        "random": torch.rand(sizes["B"], seq_len, generator=generator) < 0.6,
        "left": place >= seq_len - lengths,
        "right": place < lengths,
    }[mask_kind]
    decay = draw(st.sampled_from([None, (), (sizes["D"],)]), "decay")
    if decay is not None:
        decay = -torch.rand(*k.shape[:3], *decay, generator=generator)
        decay = decay * draw(st.sampled_from([0.0, 0.1, 3.0, 1e30]), "strength")
    cuts = sorted(draw(st.lists(st.integers(1, seq_len), max_size=3, unique=True), "cuts"))
    cuts = [cut for cut in cuts if cut < seq_len]
    return q, k, v, key_mask, decay, cuts, draw(st.integers(1, 45), "chunk_size")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(cases())
def test_any_split_mask_and_dtype_gives_the_recurrence(case):
    q, k, v, key_mask, log_decay, cuts, chunk_size = case
    phi_q, phi_k = elu_plus_one(q), elu_plus_one(k)
    state = linear_state(*k.shape[:2], k.shape[3], v.shape[3], like=v)
    wide = [None if x is None else x.double() for x in (phi_q, phi_k, v, log_decay)]
    empty = LinearState(*(x.double() for x in state))
    expected, last = recurrence(*wide, empty, key_mask=key_mask)
    outputs = []
    for a, b in zip([0, *cuts], [*cuts, v.shape[2]], strict=True):
        y, state = linear_attention_chunked(
            phi_q[:, :, a:b], phi_k[:, :, a:b], v[:, :, a:b], state, chunk_size=chunk_size,
            key_mask=None if key_mask is None else key_mask[:, a:b],
            log_decay=None if log_decay is None else log_decay[:, :, a:b],
        )  # fmt: skip
        outputs.append(y)
    y = torch.cat(outputs, dim=2)
    assert y.dtype == v.dtype
    assert state.kv.dtype == state.k_sum.dtype == widen(v).dtype
    assert_near(y, expected, TOLERANCE[v.dtype])
    assert_near(state, last, max(TOLERANCE[widen(v).dtype], 1e-10))
    definition = linear_attention_quadratic(
        phi_q, phi_k, v, is_causal=True, key_mask=key_mask, log_decay=log_decay
    )
    assert_near(definition, expected, TOLERANCE[v.dtype])
    if log_decay is None:
        y = linear_attention_bidirectional(phi_q, phi_k, v, key_mask=key_mask)
        final = wide[0] @ last.kv, (wide[0] @ last.k_sum.unsqueeze(-1))
        assert_near(y, (final[0] / final[1]).nan_to_num(0), TOLERANCE[v.dtype])


@pytest.mark.parametrize("reset", [-1e30, -torch.inf])
@pytest.mark.parametrize("by_feature", [False, True])
def test_a_reset_forgets_everything_and_costs_no_digit(reset, by_feature):
    """A decay of -1e30 at t: from t on all is as if the sequence began there."""
    q, k, v, log_decay, kv, k_sum = make_inputs(D, "feature" if by_feature else "token")
    log_decay[:, :, 10] = reset
    inputs = leaves(q, k, v, log_decay)
    for chunk_size in (1, 4, 64):
        y, last = linear_attention_chunked(
            elu_plus_one(inputs[0]), elu_plus_one(inputs[1]), inputs[2], LinearState(kv, k_sum),
            log_decay=inputs[3], chunk_size=chunk_size,
        )  # fmt: skip
        late = [elu_plus_one(q)[:, :, 10:], elu_plus_one(k)[:, :, 10:], v[:, :, 10:]]
        expected = linear_attention_causal(*late, log_decay=log_decay[:, :, 10:])
        assert_near(y[:, :, 10:], expected, 1e-12)
        gradients = torch.autograd.grad(y.sum() + last.kv.sum(), inputs)
        assert all(x.isfinite().all() for x in gradients)
    definition = linear_attention_quadratic(
        elu_plus_one(inputs[0]), elu_plus_one(inputs[1]), inputs[2], is_causal=True,
        log_decay=inputs[3], state=LinearState(kv, k_sum),
    )  # fmt: skip
    assert_near(definition, y, 1e-12)
    assert all(x.isfinite().all() for x in torch.autograd.grad(definition.sum(), inputs))


def test_no_decay_is_a_decay_of_zero():
    q, k, v, _, kv, k_sum = make_inputs(D, "none")
    args = (elu_plus_one(q), elu_plus_one(k), v, LinearState(kv, k_sum))
    expected = linear_attention_chunked(*args)
    for shape in ((B, H, T), (B, H, T, D)):
        y, state = linear_attention_chunked(*args, log_decay=torch.zeros(shape).double())
        assert_near([y, *state], [expected[0], *expected[1]], 1e-14)
