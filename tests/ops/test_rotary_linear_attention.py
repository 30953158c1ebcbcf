"""Every form of rotary linear attention is the definition: values, gradients, states, masks."""

import re

import pytest
import torch

from helpers import TOLERANCE, as_users_have_it, assert_near, leaves
from subquad.layers.positions import Rotary
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_state import LinearState
from subquad.ops.rotary_linear_attention import (
    rotary_linear_attention,
    rotary_linear_attention_chunked,
    rotary_linear_attention_quadratic,
    rotary_linear_attention_step,
    rotary_linear_attention_step_,
)
from subquad.ops.rotation import Rotation

B, H, T, D, V = 2, 3, 11, 4, 5


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_inputs(seq_len=T, dtype=torch.float64):
    """Return q, k, v and a state that is not empty."""
    q, k = draw(B, H, seq_len, D, dtype=dtype), draw(B, H, seq_len, D, dtype=dtype, seed=1)
    v = draw(B, H, seq_len, V, dtype=dtype, seed=2)
    return q, k, v, draw(B, H, D, V, dtype=dtype, seed=3), draw(B, H, D, dtype=dtype, seed=4).abs()


def rotation_of(first, last, dtype=torch.float64):
    return Rotary(D)(torch.arange(first, last).expand(B, -1), dtype)


def written_out(q, k, v, is_causal, normalize, state=None):
    """Pair by pair, from the formula."""
    rows = []
    rotation = rotation_of(0, T)
    rotated_q, rotated_k = rotation(q), rotation(k)
    for i in range(T):
        seen = slice(0, i + 1 if is_causal else T)
        rotated = torch.einsum("bhk,bhjk->bhj", rotated_q[:, :, i], rotated_k[:, :, seen])
        total = torch.einsum("bhk,bhjk->bh", q[:, :, i], k[:, :, seen])
        y = torch.einsum("bhj,bhjv->bhv", rotated, v[:, :, seen])
        if state is not None:
            y = y + torch.einsum("bhk,bhkv->bhv", rotated_q[:, :, i], state.kv)
            total = total + (q[:, :, i] * state.k_sum).sum(-1)
        rows.append(y / total[..., None] if normalize else y)
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_definition_is_the_formula(is_causal, normalize):
    q, k, v, kv, k_sum = make_inputs()
    q, k = elu_plus_one(q), elu_plus_one(k)
    for state in (None, LinearState(kv, k_sum)) if is_causal else (None,):
        y = rotary_linear_attention_quadratic(
            q, k, v, rotation_of(0, T), is_causal=is_causal, normalize=normalize, state=state
        )
        assert_near(y, written_out(q, k, v, is_causal, normalize, state), 1e-12)


def chunked(chunk_size):
    def run(phi_q, phi_k, v, state, normalize, dtype):
        return rotary_linear_attention_chunked(
            phi_q, phi_k, v, rotation_of(0, T, dtype), state,
            normalize=normalize, chunk_size=chunk_size,
        )  # fmt: skip

    return run


def stretches(phi_q, phi_k, v, state, normalize, dtype):
    outputs = []
    for a, b in ((0, 1), (1, 7), (7, T)):
        y, state = rotary_linear_attention_chunked(
            phi_q[:, :, a:b], phi_k[:, :, a:b], v[:, :, a:b], rotation_of(a, b, dtype), state,
            normalize=normalize, chunk_size=2,
        )  # fmt: skip
        outputs.append(y)
    return torch.cat(outputs, dim=2), state


def steps(phi_q, phi_k, v, state, normalize, dtype):
    outputs = []
    for t in range(T):
        y, state = rotary_linear_attention_step(
            phi_q[:, :, t], phi_k[:, :, t], v[:, :, t], rotation_of(t, t + 1, dtype), state,
            normalize=normalize,
        )  # fmt: skip
        outputs.append(y)
    return torch.stack(outputs, dim=2), state


FORMS = {"1": chunked(1), "3": chunked(3), "64": chunked(64), "cut": stretches, "steps": steps}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_causal_forms_go_on_from_a_state_as_the_definition_does(dtype, name, normalize):
    results = []
    for wide in (True, False):
        inputs = leaves(*(x.to(torch.float64 if wide else dtype) for x in make_inputs(dtype=dtype)))
        q, k, v, kv, k_sum = inputs
        phi_q, phi_k, state = elu_plus_one(q), elu_plus_one(k), LinearState(kv, k_sum)
        if wide:
            rotation = rotation_of(0, T)
            y = rotary_linear_attention_quadratic(
                phi_q, phi_k, v, rotation, is_causal=True, normalize=normalize, state=state
            )
            last = (
                kv + torch.einsum("bhtk,bhtv->bhkv", rotation(phi_k), v),
                k_sum + phi_k.sum(2),
            )
        else:
            y, last = FORMS[name](phi_q, phi_k, v, state, normalize, dtype)
        assert y.dtype == v.dtype
        loss = y.square().sum() + last[0].square().sum() + last[1].square().sum()
        results.append([y, *last, *torch.autograd.grad(loss, inputs)])
    assert_near(results[1], results[0], TOLERANCE[dtype])


MASK = torch.tensor([[True] * 8 + [False] * 3, [False, True] * 5 + [True]])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_masks_hide_whatever_stands_there(is_causal, normalize, masked):
    mask = MASK if masked else None
    results = []
    for form in (rotary_linear_attention, rotary_linear_attention_quadratic):
        q, k, v, _, _ = make_inputs()
        if masked and form is rotary_linear_attention:
            k, v = (x.masked_fill(~MASK[:, None, :, None], torch.nan) for x in (k, v))
        inputs = leaves(q, k, v)
        y = form(
            elu_plus_one(inputs[0]), elu_plus_one(inputs[1]), inputs[2], rotation_of(0, T),
            is_causal=is_causal, normalize=normalize, key_mask=mask,
        )  # fmt: skip
        results.append([y, torch.autograd.grad(y.square().sum(), inputs)[2]])
        if is_causal and masked:
            assert y[1, :, 0].eq(0).all()  # it sees no key
    assert_near(results[0], results[1], 1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_sequences_are_as_if_alone(is_causal):
    q, k, v, _, _ = (x[:1] for x in make_inputs())
    borders = torch.tensor([0, 2, 2, 8, T])
    rotation = Rotation(*(x[:1] for x in rotation_of(0, T)))
    inputs = leaves(q, k, v)
    y = rotary_linear_attention(
        elu_plus_one(inputs[0]), elu_plus_one(inputs[1]), inputs[2], rotation,
        is_causal=is_causal, cu_seqlens=borders,
    )  # fmt: skip
    alone = leaves(q, k, v)
    parts = [
        rotary_linear_attention_quadratic(
            elu_plus_one(alone[0][:, :, a:b]),
            elu_plus_one(alone[1][:, :, a:b]),
            alone[2][:, :, a:b],
            Rotation(*(x[:, a:b] for x in rotation)),
            is_causal=is_causal,
        )
        for a, b in ((0, 2), (2, 8), (8, T))
    ]
    expected = torch.cat(parts, dim=2)
    assert_near(y, expected, 1e-12)
    assert_near(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), alone),
        1e-10,
    )


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_are_rounded_last(dtype, is_causal):
    q, k, v, _, _ = make_inputs(dtype=dtype)
    phi_q, phi_k = elu_plus_one(q), elu_plus_one(k)
    rotation = rotation_of(0, T, torch.float32)
    y = rotary_linear_attention(phi_q, phi_k, v, rotation, is_causal=is_causal)
    expected = rotary_linear_attention_quadratic(
        phi_q.double(), phi_k.double(), v.double(), rotation, is_causal=is_causal
    )
    assert y.dtype == dtype
    assert_near(y, expected, TOLERANCE[dtype])
    with torch.autocast("cpu", torch.bfloat16):
        inside = rotary_linear_attention(phi_q, phi_k, v, rotation, is_causal=is_causal)
    assert torch.equal(inside, y)


@pytest.mark.parametrize("normalize", [True, False])
def test_step_in_place_equals_step_and_overwrites(normalize):
    q, k, v, kv, k_sum = make_inputs()
    state, ours = LinearState(kv.clone(), k_sum.clone()), LinearState(kv.clone(), k_sum.clone())
    for t in range(T):
        token = elu_plus_one(q[:, :, t]), elu_plus_one(k[:, :, t]), v[:, :, t]
        before = [x.clone() for x in state]
        rotation = rotation_of(t, t + 1)
        y, after = rotary_linear_attention_step(*token, rotation, state, normalize=normalize)
        y_, after_ = rotary_linear_attention_step_(*token, rotation, ours, normalize=normalize)
        assert_near(list(state), before, 0)
        assert all(x is mine for x, mine in zip(after_, ours, strict=True))
        assert_near([y_, *after_], [y, *after], 1e-14)
        state = after


def test_what_does_not_fit_is_refused():
    q, k, v, kv, k_sum = make_inputs()
    state, rotation = LinearState(kv, k_sum), rotation_of(0, T)
    whole = as_users_have_it(rotary_linear_attention)
    step = as_users_have_it(rotary_linear_attention_step)
    token = q[:, :, 0], k[:, :, 0], v[:, :, 0]
    with pytest.raises(ValueError, match=re.escape("rotation.cos must have shape (2, 11, 2)")):
        whole(q, k, v, rotation_of(0, T - 1))
    with pytest.raises(ValueError, match=re.escape("number of features must be divisible by 2")):
        whole(q[..., :3], k[..., :3], v, rotation)
    with pytest.raises(ValueError, match="same length when is_causal or packed, got 5 and 11"):
        whole(q[:, :, :5], k, v, rotation)
    with pytest.raises(ValueError, match=re.escape("rotation.cos must have shape (2, 1, 2)")):
        step(*token, rotation, state)
    with pytest.raises(ValueError, match=re.escape("phi_q must have shape (2, 3, 4), got (1, 3")):
        step(token[0][:1], *token[1:], rotation_of(0, 1), state)
    narrow = LinearState(*(x.float() for x in state))
    message = r"state\.kv must be torch\.float64 or wider, got torch\.float32"
    with pytest.raises(TypeError, match=message):
        step(*token, rotation_of(0, 1), narrow)
    with pytest.raises(TypeError, match=message):
        as_users_have_it(rotary_linear_attention_chunked)(q, k, v, rotation, narrow)
