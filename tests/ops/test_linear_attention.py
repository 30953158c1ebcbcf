"""All forms of linear attention are one function: values, gradients, states, known answers."""

import pytest
import torch

import subquad
from cases.linear import D, H, T, make_inputs, recurrence
from helpers import FEATURE_MAPS, TOLERANCE, assert_near, leaves
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import (
    linear_attention_bidirectional,
    linear_attention_causal,
    linear_attention_chunked,
    linear_attention_quadratic,
)
from subquad.ops.linear_attention_step import linear_attention_step
from subquad.ops.linear_state import LinearState


def quadratic(phi_q, phi_k, v, log_decay, state, normalize):
    return linear_attention_quadratic(
        phi_q, phi_k, v, is_causal=True, log_decay=log_decay, state=state, normalize=normalize
    ), None


def chunked(chunk_size):
    def run(phi_q, phi_k, v, log_decay, state, normalize):
        return linear_attention_chunked(
            phi_q, phi_k, v, state,
            log_decay=log_decay, normalize=normalize, chunk_size=chunk_size,
        )  # fmt: skip

    return run


def stretches(*cuts):
    def run(phi_q, phi_k, v, log_decay, state, normalize):
        outputs = []
        for a, b in zip((0, *cuts), (*cuts, v.shape[2]), strict=True):
            y, state = linear_attention_chunked(
                phi_q[:, :, a:b], phi_k[:, :, a:b], v[:, :, a:b], state, normalize=normalize,
                log_decay=None if log_decay is None else log_decay[:, :, a:b], chunk_size=4,
            )  # fmt: skip
            outputs.append(y)
        return torch.cat(outputs, dim=2), state

    return run


def steps(phi_q, phi_k, v, log_decay, state, normalize):
    outputs = []
    for t in range(v.shape[2]):
        y, state = linear_attention_step(
            phi_q[:, :, t], phi_k[:, :, t], v[:, :, t], state, normalize=normalize,
            log_decay=None if log_decay is None else log_decay[:, :, t],
        )  # fmt: skip
        outputs.append(y)
    return torch.stack(outputs, dim=2), state


FORMS = {
    "quadratic": quadratic,
    "chunks of 1": chunked(1),
    "chunks of 8": chunked(8),
    "one chunk": chunked(64),
    "chunks by default": chunked(None),
    "stretches": stretches(1, 6, 12),
    "steps": steps,
}


def values_and_gradients(form, feature_map, inputs, normalize):
    """Return outputs, the last state and the gradients of a fixed function of both."""
    given = leaves(*inputs)
    q, k, v, *decay, kv, k_sum = given
    log_decay = decay[0] if decay else None
    state = LinearState(kv, k_sum)
    y, last = form(feature_map(q), feature_map(k), v, log_decay, state, normalize)
    generator = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        for x in (y, *(last or ()))
    ]
    loss = sum((w * x).sum() for w, x in zip(weights, (y, *(last or ())), strict=True))
    parameters = list(feature_map.parameters()) if hasattr(feature_map, "parameters") else []
    return [y, *(last or ())], list(
        torch.autograd.grad(loss, given + parameters, materialize_grads=True)
    )


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_form_equals_the_recurrence(dtype, name, kind):
    feature_map = FEATURE_MAPS[name](H, D)
    inputs = make_inputs(feature_map.num_features(D), kind, dtype=dtype)
    normalize = name != "identity"
    wide = [None if x is None else x.double() for x in inputs]
    expected = values_and_gradients(recurrence, feature_map, wide, normalize)
    first_only = values_and_gradients(
        lambda *a: (recurrence(*a)[0], None), feature_map, wide, normalize
    )
    for form in FORMS.values():
        values, gradients = values_and_gradients(form, feature_map, inputs, normalize)
        e_values, e_gradients = expected if len(values) == 3 else first_only
        assert_near(values, e_values, TOLERANCE[dtype])
        assert_near(gradients, e_gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 8, 9, 33])
def test_any_length_goes_with_any_chunk(seq_len, kind):
    inputs = make_inputs(D, kind, seq_len=seq_len)
    expected = values_and_gradients(recurrence, elu_plus_one, inputs, True)
    for chunk_size in (1, 2, 7, 8, 32, None):
        actual = values_and_gradients(chunked(chunk_size), elu_plus_one, inputs, True)
        assert_near(actual[0], expected[0], 1e-10)
        assert_near(actual[1], expected[1], 1e-10)


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_gradcheck(kind):
    inputs = leaves(*(None if x is None else x[:1, :1] for x in make_inputs(D, kind, seq_len=5)))

    def run(q, k, v, *rest):
        *decay, kv, k_sum = rest
        y, state = linear_attention_chunked(
            elu_plus_one(q), elu_plus_one(k), v, LinearState(kv, k_sum),
            log_decay=decay[0] if decay else None, chunk_size=2,
        )  # fmt: skip
        return y, *state

    assert torch.autograd.gradcheck(run, inputs, fast_mode=False)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("queries", "keys"), [(T, T), (3, 11), (11, 3), (1, 2)])
def test_bidirectional_equals_the_definition(name, dtype, queries, keys):
    feature_map = FEATURE_MAPS[name](H, D)
    normalize = name != "identity"
    q, k, v, _, _, _ = make_inputs(D, "none", dtype=dtype)
    results = []
    for form in (linear_attention_bidirectional, linear_attention_quadratic):
        wide = form is linear_attention_quadratic
        inputs = [x.double() if wide else x for x in (q[:, :, :queries], k[:, :, :keys])]
        inputs = leaves(*inputs, v[:, :, :keys].double() if wide else v[:, :, :keys])
        y = form(feature_map(inputs[0]), feature_map(inputs[1]), inputs[2], normalize=normalize)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert_near(*results, TOLERANCE[dtype])


def test_the_definition_is_the_definition():
    """Equation 3 with sim = phi(q) . phi(k), pair by pair."""
    q, k, v, _, _, _ = make_inputs(D, "none", seq_len=4)
    for is_causal in (False, True):
        actual = subquad.linear_attention(q, k, v, is_causal=is_causal)
        for i in range(4):
            seen = range(i + 1 if is_causal else 4)
            weights = [(elu_plus_one(q[0, 0, i]) * elu_plus_one(k[0, 0, j])).sum() for j in seen]
            expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True))
            assert_near(actual[0, 0, i], expected / sum(weights), 1e-12)


def test_weights_are_an_average():
    """The first causal output is the first value; a scaled map changes nothing."""
    q, k, v, _, _, _ = make_inputs(D, "none")
    y = subquad.linear_attention(q, k, v, is_causal=True)
    assert_near(y[:, :, 0], v[:, :, 0], 1e-14)
    assert_near(subquad.linear_attention(q, k, torch.ones_like(v)), torch.ones_like(v), 1e-14)
    scaled = linear_attention_causal(1e3 * elu_plus_one(q), 1e-3 * elu_plus_one(k), v)
    assert_near(scaled, y, 1e-14)
