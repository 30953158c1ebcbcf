"""The published builders over our models: what they compute, with weights laid out as theirs."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers import assert_near, published_weights
from subquad.compat.fast_transformers.builders import (
    RecurrentEncoderBuilder,
    TransformerEncoderBuilder,
)
from subquad.compat.fast_transformers.masking import FullMask, LengthMask, TriangularCausalMask
from subquad.models.stack import StackState
from subquad.ops.state import map_state

ORACLES = Path(__file__).parents[1] / "oracles"
SMALL = {
    "n_layers": 2,
    "n_heads": 3,
    "query_dimensions": 5,
    "value_dimensions": 4,
    "feed_forward_dimensions": 10,
}
ORACLE_SIZES = {
    **SMALL,
    "query_dimensions": 8,
    "value_dimensions": 8,
    "feed_forward_dimensions": 48,
}
TYPES = ("full", "linear", "causal-linear")


def published_keys(sizes, *, final_norm=True):
    """Names and shapes of the published model: projections apart, D = heads * value width."""
    heads, d_ff = sizes["n_heads"], sizes["feed_forward_dimensions"]
    qk, v = heads * sizes["query_dimensions"], heads * sizes["value_dimensions"]
    linear = {
        "attention.query_projection": (qk, v),
        "attention.key_projection": (qk, v),
        "attention.value_projection": (v, v),
        "attention.out_projection": (v, v),
        "linear1": (d_ff, v),
        "linear2": (v, d_ff),
    }
    keys = {}
    for n in range(sizes["n_layers"]):
        for name, shape in linear.items():
            keys[f"layers.{n}.{name}.weight"] = shape
            keys[f"layers.{n}.{name}.bias"] = shape[:1]
        for norm in ("norm1", "norm2"):
            keys |= {f"layers.{n}.{norm}.{part}": (v,) for part in ("weight", "bias")}
    return keys | ({f"norm.{part}": (v,) for part in ("weight", "bias")} if final_norm else {})


def by_definition(weights, x, *, heads, softmax, see, activation=F.relu):
    """The published encoder on its own tensors; ``see`` (B, T, T) says who sees whom."""

    def dense(name, y):
        return F.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    num_layers = len({key.split(".")[1] for key in weights if key.startswith("layers")})
    for layer in (f"layers.{n}" for n in range(num_layers)):
        q, k, v = (
            dense(f"{layer}.attention.{name}_projection", x).unflatten(-1, (heads, -1)).mT
            for name in ("query", "key", "value")
        )
        # (B, T, W, H) each
        if softmax:
            scores = torch.einsum("btwh,bswh->bhts", q, k).div(math.sqrt(q.shape[2])).exp()
        else:
            scores = torch.einsum("btwh,bswh->bhts", F.elu(q) + 1, F.elu(k) + 1)
        scores = scores * see[:, None]
        y = torch.einsum("bhts,bswh->bthw", scores / scores.sum(-1, keepdim=True), v)
        x = norm(f"{layer}.norm1", x + dense(f"{layer}.attention.out_projection", y.flatten(2)))
        inner = activation(dense(f"{layer}.linear1", x))
        x = norm(f"{layer}.norm2", x + dense(f"{layer}.linear2", inner))
    return norm("norm", x) if "norm.weight" in weights else x


def encoder(attention_type, **options):
    builder = TransformerEncoderBuilder.from_kwargs(attention_type=attention_type, **options)
    return builder.get().eval()


def recurrent(attention_type, **options):
    builder = RecurrentEncoderBuilder.from_kwargs(attention_type=attention_type, **options)
    return builder.get().eval()


def run(model, x):
    state, outputs = None, []
    for x_t in x.unbind(1):
        y, state = model(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("attention_type", TYPES)
def test_the_published_package_computes_the_same(attention_type):
    oracle = json.loads((ORACLES / f"fast-transformers-{attention_type}-21.json").read_text())
    weights = published_weights(oracle["keys"], oracle["fill_seed"])
    weights = {key: x.float() for key, x in weights.items()}
    seed, shape = 1000 * oracle["fill_seed"] + 999, oracle["input_shape"]
    x = torch.tensor(np.random.RandomState(seed).standard_normal(shape), dtype=torch.float32)
    model = encoder(attention_type, **ORACLE_SIZES)
    model.load_state_dict(weights)
    expected = torch.tensor(oracle["output_first_32"])
    with torch.inference_mode():
        mask = TriangularCausalMask(17) if attention_type == "causal-linear" else None
        outputs = [model(x, attn_mask=mask)]
        if attention_type == "causal-linear":
            twin = recurrent(attention_type, **ORACLE_SIZES)
            twin.load_state_dict(weights)
            outputs.append(run(twin, x))
    for y in outputs:  # their linear attention adds 1e-6 to its denominator
        assert_near(y.flatten()[:32], expected, 2e-6)
        assert abs(y.norm() - oracle["output_norm"]) < 2e-6 * oracle["output_norm"]


SEEN = {
    "all": (lambda n: None, lambda n: torch.ones(n, n)),
    "all by a mask": (lambda n: FullMask(n), lambda n: torch.ones(n, n)),
    "past": (lambda n: TriangularCausalMask(n), lambda n: torch.ones(n, n).tril()),
    "past by a matrix": (
        lambda n: FullMask(torch.ones(n, n).tril().bool()),
        lambda n: torch.ones(n, n).tril(),
    ),
}


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("attention_type", TYPES)
def test_outputs_are_those_of_the_definition_or_the_mask_is_refused(attention_type, seen, length):
    make_mask, make_see = SEEN[seen]
    model = encoder(attention_type, activation="gelu", **SMALL).double()
    weights = published_weights(published_keys(SMALL), 3)
    model.load_state_dict(weights)
    x = torch.randn(2, length, 12, dtype=torch.float64)
    lengths = torch.tensor([length, max(length - 3, 1)])
    keep = torch.arange(length) < lengths[:, None]
    causal = seen.startswith("past")
    if length > 1 and (attention_type, causal) in (("linear", True), ("causal-linear", False)):
        with pytest.raises(ValueError, match=f"with attention_type '{attention_type}', got "):
            model(x, make_mask(length))
        return
    see = make_see(length).double() * keep[:, None]
    expected = by_definition(
        weights, x, heads=3, softmax=attention_type == "full", see=see, activation=F.gelu
    )
    y = model(x, make_mask(length), LengthMask(lengths, max_len=length))
    assert_near(y[keep], expected[keep], 1e-10)
    z = model(x, make_mask(length), FullMask(keep))
    assert torch.equal(y[keep], z[keep])
    see = make_see(length).double().expand(2, length, length)
    expected = by_definition(
        weights, x, heads=3, softmax=attention_type == "full", see=see, activation=F.gelu
    )
    assert_near(model(x, make_mask(length)), expected, 1e-10)


@pytest.mark.parametrize("final_normalization", [True, False])
@pytest.mark.parametrize("attention_type", TYPES)
def test_the_recurrent_twin_is_the_definition_step_by_step(attention_type, final_normalization):
    sizes = {**SMALL, "final_normalization": final_normalization}
    model = recurrent(attention_type, **sizes).double()
    weights = published_weights(published_keys(SMALL, final_norm=final_normalization), 4)
    model.load_state_dict(weights)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    see = torch.ones(9, 9).tril().double().expand(2, 9, 9)
    expected = by_definition(weights, x, heads=3, softmax=attention_type == "full", see=see)
    assert_near(run(model, x), expected, 1e-10)


def test_the_twins_state_is_a_value():
    model, x = recurrent("linear", **SMALL), torch.randn(2, 3, 12)
    _, state = model(x[:, 0])
    assert isinstance(state, StackState)
    kept = map_state(torch.clone, state)
    with torch.no_grad():
        first, _ = model(x[:, 1], state)
        again, _ = model(x[:, 1], memory=state)
        other, _ = model(x[:, 1], kept)
    assert torch.equal(first, again)
    assert torch.equal(first, other)


def test_twin_errors(unhooked):
    model, x = recurrent("full", **SMALL), torch.randn(2, 12)
    _, state = model(x)
    with pytest.raises(ValueError, match="state and memory must not be given together"):
        model(x, state, state)
    with pytest.raises(TypeError, match="state must be a StackState or None, got list"):
        model(x, [None, None])
    with pytest.raises(ValueError, match=r"batch size of the tokens \(1\), got 2"):
        model(x[:1], state)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 12\)"):
        model(x[:, None])


def test_mask_errors_of_a_call(unhooked):
    model, x = encoder("full", **SMALL), torch.randn(2, 7, 12)
    with pytest.raises(TypeError, match=r"attn_mask must be a FullMask, .* got Tensor"):
        model(x, torch.ones(7, 7).bool())
    with pytest.raises(TypeError, match=r"length_mask must be a FullMask, .* got Tensor"):
        model(x, None, torch.ones(2, 7).bool())
    with pytest.raises(ValueError, match=r"attn_mask must have shape \(7, 7\), got \(6, 6\)"):
        model(x, TriangularCausalMask(6))
    with pytest.raises(ValueError, match=r"length_mask must have shape \(2, 7\), got \(2, 4\)"):
        model(x, length_mask=LengthMask(torch.tensor([4, 2])))
    upper = FullMask(torch.ones(7, 7).triu().bool())
    message = "must be None, all ones or lower triangular with attention_type 'full', got FullMask"
    with pytest.raises(ValueError, match=message):
        model(x, upper)
    with pytest.raises(ValueError, match=r"lower triangular, .* 'causal-linear', got None"):
        encoder("causal-linear", **SMALL)(x)
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, 12\)"):
        model(x[..., :5])


@pytest.mark.parametrize("direction", ["all", "past"])
def test_full_attention_has_one_set_of_weights_for_both_directions(direction):
    model = encoder("full", **SMALL)
    alone = encoder("linear", **SMALL)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in alone.parameters())
    mask = SEEN[direction][0](7)
    for changed in (model, copy.deepcopy(model), copy.deepcopy(model).double()):
        dtype = next(changed.parameters()).dtype
        x = torch.randn(2, 7, 12, dtype=dtype)
        before = changed(x, mask)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.allclose(changed(x, mask), before)
        fresh = encoder("full", **SMALL).to(dtype)
        fresh.load_state_dict(changed.state_dict())
        for seen in ("all", "past"):
            other = SEEN[seen][0](7)
            assert torch.equal(fresh(x, other), changed(x, other))


def test_dropout_of_full_attention_is_a_tenth_unless_said_otherwise_and_only_in_training():
    for given, expected in ((None, 0.1), (0.0, 0.0), (0.5, 0.5)):
        options = {"attention_dropout": given, "dropout": 0.0, **SMALL}
        model = encoder("full", **options)
        for mask in (None, TriangularCausalMask(7)):
            x = torch.randn(2, 7, 12)
            assert torch.equal(model.eval()(x, mask), model(x, mask))
            model.train()
            assert torch.equal(model(x, mask), model(x, mask)) == (expected == 0)
        rates = {block.mixer.attention_dropout for block in model.model.stack.blocks}
        assert rates == {expected}


@pytest.mark.parametrize("attention_type", ["linear", "causal-linear"])
def test_linear_attention_has_no_dropout_of_its_own_as_theirs_has_none(attention_type):
    model = encoder(attention_type, attention_dropout=0.9, dropout=0.0, **SMALL).train()
    mask = TriangularCausalMask(7) if attention_type == "causal-linear" else None
    x = torch.randn(2, 7, 12)
    assert torch.equal(model(x, mask), model(x, mask))


@pytest.mark.parametrize("attention_type", TYPES)
def test_half_precision_stays_near(attention_type):
    model, x = encoder(attention_type, **SMALL), torch.randn(2, 7, 12)
    mask = TriangularCausalMask(7) if attention_type == "causal-linear" else None
    expected = model(x, mask)
    y = model.bfloat16()(x.bfloat16(), mask)
    assert y.dtype == torch.bfloat16
    assert_near(y, expected, 3e-2)
