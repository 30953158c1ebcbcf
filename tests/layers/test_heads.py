"""What the mixers share: projections, and every error of their constructors and calls."""

from functools import partial

import pytest
import torch

from helpers import assert_near
from subquad.layers import MIXERS, CausalMixer, LearnedFeatureMap, LinearAttention, Mixer
from subquad.layers.registry import mixer_factory

# The others have tests of their own: an LSTM has no heads, lambdas have one set of keys and values,
# Linformer has no state.
OTHERS = {"lstm", "lambda", "linformer"}
ATTENTION = {name: build for name, build in MIXERS.items() if name not in OTHERS}
WITH_STATE = {name: build for name, build in ATTENTION.items() if not name.startswith("lsh-")}
mixers = pytest.mark.parametrize("build", ATTENTION.values(), ids=ATTENTION)
mixers_with_state = pytest.mark.parametrize("build", WITH_STATE.values(), ids=WITH_STATE)


@mixers
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 3}, ValueError, r"num_heads must divide d_model \(8\) .* got 3"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": True}, TypeError, "num_heads must be an int, got bool True"),
        ({"d_model": -8}, ValueError, "d_model must be at least 1, got -8"),
        ({"d_model": 8.0}, TypeError, r"d_model must be an int, got float 8\.0"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, got 0"),
        ({"head_dim": -4}, ValueError, "head_dim must be at least 1, got -4"),
        ({"value_dim": 0}, ValueError, "value_dim must be at least 1, got 0"),
        ({"value_dim": 2.5}, TypeError, r"value_dim must be an int, got float 2\.5"),
        ({"head_dim": 3, "rotary": True}, ValueError, "rotary width must be divisible by 2, got 3"),
        ({"heads": 2}, TypeError, "unexpected keyword argument 'heads'"),
    ],
)
def test_constructor_errors(build, options, error, message, unhooked):
    arguments = {"d_model": 8, "num_heads": 2, "is_causal": True, **options}
    with pytest.raises(error, match=message):
        build(**arguments)


def test_num_heads_need_not_divide_where_head_dim_is_given():
    assert LinearAttention(8, 3, is_causal=True, head_dim=5)(torch.randn(1, 2, 8)).shape == (
        1,
        2,
        8,
    )


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_attention_dropout_must_be_a_fraction(dropout):
    with pytest.raises(ValueError, match="attention_dropout must be at least 0 and below 1, got"):
        MIXERS["softmax"](8, 2, is_causal=True, attention_dropout=dropout)


def tokens(*shape):
    return torch.zeros(shape)


FORWARD_ERRORS = [
    (tokens(2, 3, 7), {}, ValueError, r"x must have shape \(B, T, 8\) .* got \(2, 3, 7\)"),
    (tokens(3, 8), {}, ValueError, r"x must have shape \(B, T, 8\) .* got \(3, 8\)"),
    (tokens(8), {}, ValueError, r"x must have shape \(B, T, 8\) .* got \(8,\)"),
    (tokens(2, 0, 8), {}, ValueError, r"B, T >= 1, got \(2, 0, 8\)"),
    (tokens(0, 3, 8), {}, ValueError, r"B, T >= 1, got \(0, 3, 8\)"),
    (tokens(2, 3, 8).long(), {}, TypeError, r"x must be of a floating dtype, got torch\.int64"),
    (
        tokens(2, 3, 8), {"key_mask": torch.ones(2, 3)}, TypeError,
        r"key_mask must be bool with True = keep, got torch\.float32",
    ),
    (
        tokens(2, 3, 8), {"key_mask": torch.ones(2, 4).bool()}, ValueError,
        r"key_mask must have shape \(B, T\) = \(2, 3\), got \(2, 4\)",
    ),
]  # fmt: skip
PACKED_ERRORS = [
    (1, [0, 2.0, 3], TypeError, r"cu_seqlens must be int32 or int64, got torch\.float32"),
    (1, [[0, 3]], ValueError, r"cu_seqlens must have shape \(sequences \+ 1,\), got \(1, 2\)"),
    (1, [0], ValueError, r"cu_seqlens must have shape \(sequences \+ 1,\), got \(1,\)"),
    (2, [0, 3], ValueError, "cu_seqlens needs a batch of size 1, got 2"),
    (1, [1, 3], ValueError, "cu_seqlens must start with 0 and end with T = 3, got 1 and 3"),
    (1, [0, 2], ValueError, "cu_seqlens must start with 0 and end with T = 3, got 0 and 2"),
    (1, [0, 2, 1, 3], ValueError, "cu_seqlens must never fall, got"),
]


@mixers
@pytest.mark.parametrize(("x", "masks", "error", "message"), FORWARD_ERRORS)
def test_forward_and_prefill_errors(build, x, masks, error, message, unhooked):
    mixer = build(8, 2, is_causal=True)
    calls = [mixer]
    if build in WITH_STATE.values():
        calls.append(lambda x, **masks: mixer.prefill(x, mixer.init_state(2), **masks))
    for call in calls:
        with pytest.raises(error, match=message):
            call(x, **masks)


@mixers
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(("batch_size", "borders", "error", "message"), PACKED_ERRORS)
def test_packing_errors(build, rotary, batch_size, borders, error, message, unhooked):
    mixer = build(8, 2, is_causal=True, rotary=rotary)
    with pytest.raises(error, match=message):
        mixer(tokens(batch_size, 3, 8), cu_seqlens=torch.tensor(borders))


@mixers_with_state
@pytest.mark.parametrize("rotary", [True, False])
def test_errors_of_steps_and_states(build, rotary, unhooked):
    mixer = build(8, 2, is_causal=True, rotary=rotary)
    state = mixer.init_state(2)
    for take in (mixer.step, mixer.step_):
        with pytest.raises(ValueError, match=r"x_t must have shape \(B, 8\) .* got \(2, 1, 8\)"):
            take(tokens(2, 1, 8), state)
        with pytest.raises(ValueError, match=r"x_t must have shape \(B, 8\) .* got \(2, 7\)"):
            take(tokens(2, 7), state)
        with pytest.raises(ValueError, match=r"x_t must have shape \(B, 8\) .* got \(0, 8\)"):
            take(tokens(0, 8), state)
        with pytest.raises(TypeError, match="x_t must be of a floating dtype"):
            take(tokens(2, 8).long(), state)
        with pytest.raises(ValueError, match=r"(state|cache).* \(?3[,)].* got .*2"):
            take(tokens(3, 8), state)
    for wrong in (1, 2):
        with pytest.raises(ValueError, match=rf"(state|cache).* \(?3[,)].* got .*{wrong}"):
            mixer.prefill(tokens(3, 4, 8), mixer.init_state(wrong))
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
            mixer.init_state(batch_size)


@mixers_with_state
def test_a_bidirectional_mixer_has_no_state(build):
    causal, mixer = build(8, 2, is_causal=True), build(8, 2, is_causal=False)
    state = causal.init_state(1)
    message = "needs a mixer built with is_causal=True, got is_causal=False"
    for call in (
        partial(mixer.init_state, 1),
        partial(mixer.prefill, tokens(1, 2, 8), state),
        partial(mixer.step, tokens(1, 8), state),
        partial(mixer.step_, tokens(1, 8), state),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_table_gives_factories_and_takes_them():
    assert mixer_factory("linear") is MIXERS["linear"]
    own = partial(LinearAttention, bias=False)
    assert mixer_factory(own) is own
    with pytest.raises(ValueError, match=r"mixer must be one of softmax, linear.* got 'linaer'"):
        mixer_factory("linaer")


@pytest.mark.parametrize("build", [MIXERS["linear"], MIXERS["softmax"], MIXERS["local"]])
def test_projections_start_within_the_glorot_bound_of_each_matrix_and_without_bias(build):
    heads = build(64, 4, is_causal=True).heads
    for projection in (heads.qkv_proj, heads.out_proj):
        bound = (6 / (64 + 64)) ** 0.5
        assert 0.98 * bound < projection.weight.abs().max() <= bound
        assert (projection.bias == 0).all()


SHARING = [
    name for name in MIXERS if name not in {"lstm", "lambda"} and not name.startswith("lsh-")
]


def without_rows_of_k(state, qk):
    """Cut the rows of k out of each joint projection whose rows are q, k, v."""
    return {
        name: torch.cat([x[:qk], x[2 * qk :]]) if "qkv_proj" in name else x
        for name, x in state.items()
    }


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("widths", [{}, {"head_dim": 6, "value_dim": 3}])
def test_shared_queries_and_keys_are_one_projection_fewer(name, widths):
    build = partial(MIXERS[name], 8, 2, is_causal=name != "linformer", **widths)
    apart, shared = build(), build(share_qk=True)
    qk = 6 if widths else 4  # of a head; hybrid has one head of each kind
    qk *= 1 if name == "hybrid" else 2
    for key, weight in apart.state_dict().items():
        if "qkv_proj" in key:
            weight[qk : 2 * qk] = weight[:qk]  # in place: k's rows become q's
    shared.load_state_dict(without_rows_of_k(apart.state_dict(), qk))
    x = torch.randn(2, 5, 8)
    assert_near(shared(x), apart(x), 1e-6)
    if name == "linformer":
        return
    _, state = shared.prefill(x[:, :3], shared.init_state(2))
    _, state = shared.step(x[:, 3], state)
    assert_near(shared.step_(x[:, 4], state)[0], apart(x)[:, 4], 1e-5)


@pytest.mark.parametrize("value_dim", [4, 3])
def test_a_loop_over_tokens_takes_shared_projections(value_dim):
    mixer = LinearAttention(8, 2, is_causal=True, share_qk=True, value_dim=value_dim)
    x = torch.randn(2, 5, 8)
    with torch.inference_mode():
        take, state = mixer.stepper(2), mixer.init_state(2)
        for t in range(5):
            y, state = take(x[:, t].clone(), state)
        assert_near(y, mixer(x)[:, 4], 1e-5)


@mixers
@pytest.mark.parametrize("rotary", [True, False])
def test_a_mixer_builds_on_the_meta_device_and_loads_there(build, rotary):
    with torch.device("meta"):
        mixer = build(8, 2, is_causal=True, rotary=rotary)
        assert mixer(tokens(2, 3, 8)).shape == (2, 3, 8)
    real = build(8, 2, is_causal=True, rotary=rotary)
    mixer.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(1, 5, 8)
    assert torch.equal(mixer(x), real(x))


def test_learned_map_errors(unhooked):
    with pytest.raises(ValueError, match="num_features must be divisible by 2, got 5"):
        LearnedFeatureMap(2, 4, 5)
    for name in ("num_heads", "head_dim", "num_features"):
        sizes = {"num_heads": 2, "head_dim": 4, "num_features": 6, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            LearnedFeatureMap(**sizes)


def test_the_learned_map_is_a_softmax_over_both_signs():
    feature_map, x = LearnedFeatureMap(2, 4, 6), torch.randn(3, 2, 5, 4)
    y = torch.stack([x[:, h] @ feature_map.weight[h] for h in range(2)], dim=1)
    total = y.exp().sum(-1, keepdim=True) + (-y).exp().sum(-1, keepdim=True)
    assert_near(feature_map(x), torch.cat([y.exp(), (-y).exp()], -1) / total, 1e-6)
    assert feature_map(x.half()).dtype == torch.float32


def test_mixers_fit_their_protocols():
    """Checked by name: protocols are for type checkers, which tests do not run."""
    for protocol in (Mixer, CausalMixer):
        for name in vars(protocol):
            if not name.startswith("_") or name == "__call__":
                assert all(hasattr(build, name) for build in WITH_STATE.values()), name
