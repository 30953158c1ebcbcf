"""What linear attention refuses: normalisers, decays, chunk sizes, states and tokens."""

import pytest
import torch

import subquad
from helpers import as_users_have_it, draw_qkv
from subquad.ops import feature_maps
from subquad.ops.linear_attention import (
    linear_attention_chunked,
    linear_attention_sums,
)
from subquad.ops.linear_attention_step import linear_attention_step, linear_attention_step_
from subquad.ops.linear_state import LinearState, linear_state

B, H, T, D, V = 3, 2, 12, 4, 5


def make_qkv():
    return draw_qkv((B, H, T), D, V)


def test_a_normaliser_that_could_vanish_is_refused():
    q, k, v = make_qkv()
    message = "normalize must be False .* got normalize=True with Identity"
    with pytest.raises(ValueError, match=message):
        subquad.linear_attention(q, k, v, feature_map=feature_maps.identity)


@pytest.mark.parametrize(
    ("is_causal", "log_decay", "message"),
    [
        (False, torch.zeros(B, H, T), "log_decay needs is_causal=True, got is_causal=False"),
        (True, torch.full((B, H, T), 0.5), "log_decay must be at most 0, got 0.5"),
        (True, torch.full((B, H, T), torch.nan), "log_decay must be at most 0, got nan"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(is_causal, log_decay, message):
    q, k, v = make_qkv()
    with pytest.raises(ValueError, match=message):
        subquad.linear_attention(q, k, v, is_causal=is_causal, log_decay=log_decay)


def test_a_chunk_size_that_does_not_fit_is_refused():
    q, k, v = make_qkv()
    state = linear_state(B, H, D, V, like=v)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        linear_attention_chunked(q, k, v, state, chunk_size=0)


@pytest.mark.parametrize("name", ["sums", "step", "step_"])
def test_a_state_that_does_not_fit_is_refused(name):
    """Broadcasting would else take a state of batch 1 for all rows."""
    q, k, v = make_qkv()
    form = {
        "sums": linear_attention_sums,
        "step": linear_attention_step,
        "step_": linear_attention_step_,
    }[name]

    def run(state):
        token = (q, k, v) if name == "sums" else (q[:, :, 0], k[:, :, 0], v[:, :, 0])
        as_users_have_it(form)(*token, state)

    good = linear_state(B, H, D, V, like=v)
    with pytest.raises(ValueError, match=r"state.kv must have shape \(3, 2, 4, 5\), got \(1, 2"):
        run(linear_state(1, H, D, V, like=v))
    with pytest.raises(ValueError, match=r"state.k_sum must have shape \(3, 2, 4\), got \(3, 2, 1"):
        run(LinearState(good.kv, good.k_sum[..., :1]))
    meta = LinearState(*(x.to("meta") for x in good))
    with pytest.raises(
        ValueError, match=r"state\.kv must be on the device of the keys \(cpu\), got m"
    ):
        run(meta)


@pytest.mark.parametrize("name", ["sums", "step", "step_"])
def test_a_state_that_would_round_is_refused(name):
    q, k, v = make_qkv()
    form = {
        "sums": linear_attention_sums,
        "step": linear_attention_step,
        "step_": linear_attention_step_,
    }[name]
    good = linear_state(B, H, D, V, like=v)
    for state, part in (
        (LinearState(*(x.to(torch.bfloat16) for x in good)), "kv"),
        (LinearState(good.kv.double(), good.k_sum.half()), "k_sum"),
    ):
        for dtype in (torch.float32, torch.float64):
            tensors = [x.to(dtype) for x in (q, k, v)]
            token = tensors if name == "sums" else [x[:, :, 0] for x in tensors]
            got = getattr(state, part).dtype
            message = f"state.{part} must be {dtype} or wider, got {got}"
            with pytest.raises(TypeError, match=message):
                form(*token, state)


def test_a_token_that_does_not_fit_is_refused():
    """Broadcasting would else take one query for all rows."""
    q, k, v = (x[:, :, 0] for x in make_qkv())
    state = linear_state(B, H, D, V, like=v)
    for form in (linear_attention_step, linear_attention_step_):
        with pytest.raises(ValueError, match=r"phi_q must have shape \(3, 2, 4\), got \(1, 2, 4\)"):
            as_users_have_it(form)(q[:1], k, v, state)
    step = as_users_have_it(linear_attention_step)
    message = (
        r"log_decay must have shape \(B, H\) = \(3, 2\) or \(B, H, K\) = \(3, 2, 4\), got \(2, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        step(q, k, v, state, log_decay=torch.zeros(H, B))
    with pytest.raises(TypeError, match=r"log_decay must be of a floating dtype, got torch\.int64"):
        step(q, k, v, state, log_decay=torch.zeros(B, H, dtype=torch.long))
    for bad in (0.5, torch.nan):
        with pytest.raises(ValueError, match=f"log_decay must be at most 0, got {bad}"):
            step(q, k, v, state, log_decay=torch.full((B, H, D), bad))
