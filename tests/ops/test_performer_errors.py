"""What the forms of FAVOR+ refuse."""

import jaxtyping
import pytest
import torch

from performer_cases import B, H, K, T, V, draw, make_qkv
from subquad import performer_attention
from subquad.kernels.dispatch import Impl
from subquad.ops.generalized_features import GeneralizedFeatures
from subquad.ops.linear_state import LinearState
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_state import performer_state
from subquad.ops.performer_step import (
    performer_attention_step,
    performer_attention_step_,
)
from subquad.ops.random_features import Estimator, RandomFeatures


def call(**options):
    return performer_attention(*make_qkv(dtype=torch.float32), **options)


def chunked(state, **options):
    options = {"features": draw(), **options}
    return performer_attention_chunked(*make_qkv(dtype=torch.float32), state, **options)


def state_of(features=None, batch=B, **options):
    like = torch.empty(0, **options)
    return performer_state(batch, H, K, V, features or draw(), like)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: call(features="favor"), TypeError, "features must be RandomFeatures .* got str"),
        (
            lambda: call(features=draw(width=3)), ValueError,
            r"projection must have shape \(m, K\) = \(m, 4\), got \(9, 3\)",
        ),
        (
            lambda: call(features=RandomFeatures(torch.empty(9, 4, device="meta"))), ValueError,
            r"features.projection must be on the device of the keys \(cpu\), got meta",
        ),
        (lambda: call(scale=0.0), ValueError, r"scale must be a finite number above 0, got 0\.0"),
        (lambda: call(normalize=False), ValueError, "normalize must be True for RandomFeatures"),
        (
            lambda: call(
                features=draw(Estimator.TRIGONOMETRIC), is_causal=True, max_per_feature=True
            ),
            ValueError, "max_per_feature must be False for Estimator.TRIGONOMETRIC",
        ),
        (
            lambda: call(features=draw(Estimator.TRIGONOMETRIC), impl=Impl.CPU), ValueError,
            "trigonometric FAVOR.* got Impl.CPU: .* has no such form",
        ),
        (
            lambda: call(is_causal=True, max_per_feature=True, impl=Impl.CPU), ValueError,
            "one log_decay a token, not one a feature",
        ),
        (
            lambda: call(key_mask=torch.ones(B, T)), TypeError, "key_mask must be bool",
        ),
        (
            lambda: chunked(LinearState(*state_of()[:2])), TypeError,
            "state must be a PerformerState, got LinearState",
        ),
        (
            lambda: chunked(state_of(), features=GeneralizedFeatures()), TypeError,
            "state must be a LinearState, got PerformerState",
        ),
        (
            lambda: chunked(state_of(batch=1)), ValueError,
            r"state.kv must have shape \(2, 3, 9, 5\), got \(1, 3, 9, 5\)",
        ),
        (
            lambda: chunked(state_of()._replace(log_max=torch.zeros(B, H, 9))), ValueError,
            r"state.log_max must have shape \(2, 3\), got \(2, 3, 9\)",
        ),
        (
            lambda: chunked(state_of(), max_per_feature=True), ValueError,
            r"state.log_max must have shape \(2, 3, 9\), got \(2, 3\)",
        ),
        (
            lambda: chunked(state_of()._replace(k_sum=torch.zeros(B, H, 9).half())), TypeError,
            "state.k_sum must be torch.float32 or wider, got torch.float16",
        ),
        (lambda: chunked(state_of(), chunk_size=0), ValueError, "chunk_size must be at least 1"),
        (
            lambda: performer_attention_step(
                *(x[:, :, 0] for x in make_qkv()[:2]), torch.zeros(1, H, V), state_of(),
                features=draw(),
            ),
            ValueError, r"v must have shape \(2, 3, 5\), got \(1, 3, 5\)",
        ),
        (
            lambda: performer_attention_step_(
                *(x[:, :, 0] for x in make_qkv(dtype=torch.float32)), state_of(),
                features=draw(), impl=Impl.TRITON,
            ),
            ValueError, "a step of linear attention here, got Impl.TRITON",
        ),
    ],
)  # fmt: skip
def test_errors(run, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        run()
