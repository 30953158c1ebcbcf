"""All forms of linear attention are one function: values, gradients, states, known answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import subquad
from helpers import FEATURE_MAPS, TOLERANCE, assert_near, leaves
from subquad.ops.feature_maps import elu_plus_one, widen
from subquad.ops.linear_attention import (
    linear_attention_bidirectional,
    linear_attention_causal,
    linear_attention_chunked,
    linear_attention_quadratic,
)
from subquad.ops.linear_attention_step import linear_attention_step, linear_attention_step_
from subquad.ops.linear_state import LinearState, linear_state

B, H, T, D, V = 2, 3, 19, 4, 5


def recurrence(phi_q, phi_k, v, log_decay, state, normalize=True, key_mask=None):
    """Go token by token as the recurrence is written down; the oracle of the causal forms."""
    kv, k_sum = state
    outputs = []
    for t in range(v.shape[2]):
        keep = 1 if key_mask is None else key_mask[:, t, None, None].to(kv.dtype)
        if log_decay is not None:
            g = log_decay[:, :, t].reshape(*k_sum.shape[:2], -1) * keep
            kv, k_sum = g.exp().unsqueeze(-1) * kv, g.exp() * k_sum
        key = phi_k[:, :, t] * keep
        kv, k_sum = kv + torch.einsum("bhk,bhv->bhkv", key, v[:, :, t]), k_sum + key
        y = torch.einsum("bhk,bhkv->bhv", phi_q[:, :, t], kv)
        total = torch.einsum("bhk,bhk->bh", phi_q[:, :, t], k_sum).unsqueeze(-1)
        quotient = torch.where(total == 0, 0, y / torch.where(total == 0, 1, total))
        outputs.append(quotient if normalize else y)
    return torch.stack(outputs, dim=2), LinearState(kv, k_sum)


def make_inputs(num_features, kind, seq_len=T, dtype=torch.float64, seed=0):
    """Return q, k, v, log_decay (or None) and a state that is not empty."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v = draw(B, H, seq_len, D), draw(B, H, seq_len, D), draw(B, H, seq_len, V)
    shape = {"none": None, "token": (B, H, seq_len), "feature": (B, H, seq_len, num_features)}[kind]
    log_decay = None if shape is None else -draw(*shape).abs()
    return q, k, v, log_decay, draw(B, H, num_features, V), draw(B, H, num_features).abs()


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


def test_weights_are_an_average():
    """The first causal output is the first value; a scaled map changes nothing."""
    q, k, v, _, _, _ = make_inputs(D, "none")
    y = subquad.linear_attention(q, k, v, is_causal=True)
    assert_near(y[:, :, 0], v[:, :, 0], 1e-14)
    assert_near(subquad.linear_attention(q, k, torch.ones_like(v)), torch.ones_like(v), 1e-14)
    scaled = linear_attention_causal(1e3 * elu_plus_one(q), 1e-3 * elu_plus_one(k), v)
    assert_near(scaled, y, 1e-14)
