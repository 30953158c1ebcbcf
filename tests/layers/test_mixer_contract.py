"""The contract of ``subquad.testing`` over the table of mixers, in every direction and variant."""

from functools import partial

import pytest
import torch

from subquad.layers import (
    MIXERS,
    HybridAttention,
    LearnedFeatureMap,
    LinearAttention,
    LocalAttention,
    SoftmaxAttention,
    StridedAttention,
)
from subquad.ops import feature_maps
from subquad.testing import check_mixer

DIRECTIONS = {"causal": True, "bidirectional": False}
directions = pytest.mark.parametrize("is_causal", DIRECTIONS.values(), ids=DIRECTIONS)

linear, softmax = partial(LinearAttention, 8, 2), partial(SoftmaxAttention, 8, 2)


def learned(**options):
    return linear(feature_map=LearnedFeatureMap(2, 4, num_features=6), **options)


# Mixers that refuse to be causal, as they may, by a ValueError in the constructor.
BIDIRECTIONAL_ONLY = {"linformer"}
VARIANTS = {
    "linear, rotary": partial(linear, rotary=True),
    "linear, rotary, value_dim": partial(linear, rotary=True, head_dim=6, value_dim=3),
    "linear, rotary, not normalised": partial(linear, rotary=True, normalize=False),
    "linear, relu": partial(linear, feature_map=feature_maps.relu),
    "linear, squared relu": partial(linear, feature_map=feature_maps.squared_relu),
    "linear, exp": partial(linear, feature_map=feature_maps.exp),
    "linear, polynomial": partial(linear, feature_map=feature_maps.degree_2_polynomial),
    "linear, learned map": learned,
    "linear, learned map, rotary": partial(learned, rotary=True),
    "linear, identity": partial(linear, feature_map=feature_maps.identity, normalize=False),
    "linear, not normalised": partial(linear, normalize=False),
    "linear, widths": partial(linear, head_dim=5, value_dim=3),
    "linear, no bias": partial(linear, bias=False),
    "softmax, rotary": partial(softmax, rotary=True),
    "softmax, rotary, widths": partial(softmax, rotary=True, head_dim=6, value_dim=3),
    "softmax, widths": partial(softmax, head_dim=5, value_dim=3),
    "softmax, no bias": partial(softmax, bias=False),
    "softmax, dropout": partial(softmax, attention_dropout=0.5),
    "softmax, shared": partial(softmax, share_qk=True),
    "softmax, shared, rotary, widths": partial(
        softmax, share_qk=True, rotary=True, head_dim=6, value_dim=3
    ),
    "linear, shared": partial(linear, share_qk=True),
    "linear, shared, rotary, widths": partial(
        linear, share_qk=True, rotary=True, head_dim=6, value_dim=3
    ),
    "local, shared": partial(LocalAttention, 8, 2, window=16, share_qk=True),
    "strided, shared": partial(StridedAttention, 8, 2, stride=8, share_qk=True),
    "hybrid, shared": partial(HybridAttention, 8, 2, window=16, share_qk=True),
}

# For training and scoring only; see docs/decisions/0009-lsh-causality.md.
WITHOUT_STATE = {"lsh-1", "lsh-4", "lsh-8"}


@pytest.mark.usefixtures("shapes_checked_in_float64")
@directions
@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_each_mixer_of_the_table_keeps_the_contract(name, is_causal, dtype):
    if is_causal and name in BIDIRECTIONAL_ONLY:
        with pytest.raises(ValueError, match="is_causal must be False"):
            MIXERS[name](16, 4, is_causal=True)
        return
    report = check_mixer(
        lambda: MIXERS[name](16, 4, is_causal=is_causal),
        d_model=16,
        is_causal=is_causal,
        dtype=dtype,
    )
    causal_checks = 2 if name in WITHOUT_STATE else 6
    assert len(report.results) == 11 + causal_checks * is_causal


@directions
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_keeps_the_contract(variant, is_causal):
    build = partial(VARIANTS[variant], is_causal=is_causal)
    check_mixer(build, d_model=8, is_causal=is_causal)


@pytest.mark.parametrize("variant", ["linear, rotary", "linear, learned map", "softmax, rotary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("unhooked")
def test_variants_with_arithmetic_of_their_own_keep_it_in_narrower_dtypes(variant, dtype):
    check_mixer(partial(VARIANTS[variant], is_causal=True), d_model=8, is_causal=True, dtype=dtype)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_finds_nothing_either(seed):
    for build in (linear, softmax):
        check_mixer(partial(build, is_causal=True), d_model=8, is_causal=True, seed=seed)
