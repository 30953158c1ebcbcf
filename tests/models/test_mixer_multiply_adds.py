"""Multiply-adds of mixers, counted by hand and by the definitions' own patterns."""

from functools import partial

import pytest
import torch

from subquad.layers import MIXERS
from subquad.models import VisionTransformer
from subquad.models.mixer_multiply_adds import strided_pairs, window_pairs
from subquad.models.multiply_adds import multiply_adds
from subquad.ops.local_attention import local_visible
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.ops.strided_attention import strided_visible

# Ti/16 at 224 pixels, one layer: 197 tokens of width 192, three heads of 64 and 64.
T, D, H, K = 197, 192, 3, 64
PAIR = H * 2 * K


def mixing(mixer):
    """Return the multiply-adds of one layer's mixer, its projections included."""
    return count(mixer) - count("softmax") + 4 * T * D * D + T * T * PAIR


def count(mixer):
    with torch.device("meta"):
        model = VisionTransformer.preset("Ti/16", num_layers=1, mixer=mixer)
    return multiply_adds(model, 3, 224, 224)


LINEAR = T * K * (2 * K + 1)  # of a head
EXPECTED = {
    "softmax": T * T * PAIR,
    "linear": H * LINEAR,
    # A window of 256 sees all.
    "local": T * T * PAIR,
    # Each token sees all: 128 tokens to each side, or beyond them the 128th.
    "strided": sum(
        sum(abs(i - j) < 128 or j == 127 for j in range(T)) for i in range(T)
    ) * PAIR,
    # 266 = int(64 ln 64) directions.
    "performer": T * H * (2 * 64 * 266 + 266 * (64 + 64 + 1)),
    # 256 slots: keys and values are mixed into them, and queries see them.
    "linformer": T * 256 * PAIR + T * 256 * PAIR,
    # Four rounds: 32 rotated numbers; 7 chunks of 32 that see themselves and the one before.
    "lsh-4": 4 * (T * H * 64 * 32 + 7 * 32 * 64 * PAIR),
    "hybrid": T * T * 2 * K + 2 * LINEAR,  # a local head and two linear ones
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_mixers_by_hand(name):
    shared = T * D * D if name.startswith("lsh") else 0  # its queries are its keys
    assert mixing(name) == 4 * T * D * D - shared + EXPECTED[name]


def test_the_lambda_mixer_by_hand():
    # Queries of 3 x 16, keys of 16, values of 64. Content: all 197 tokens, position: 196 on a grid.
    projections = T * D * (48 + 16 + 64) + T * D * D
    content = T * 16 * 64 + T * 16 * D
    assert mixing("lambda") == projections + content + 196 * 196 * 16 * 64 + 196 * 16 * D
    # A window of 2 along both sides of 14: 12 patches see 3 a side, and two 2.
    pairs = (12 * 3 + 2 * 2) ** 2
    small = partial(MIXERS["lambda"], window=2)
    assert mixing(small) == projections + content + pairs * 16 * 64 + 196 * 16 * D


def test_options_of_mixers_count():
    each = 2 * 64 * 8 + 16 * (64 + 64 + 1)  # both signs of eight directions are two features each
    hyperbolic = SoftmaxKernel(estimator=Estimator.HYPERBOLIC)
    performer = partial(MIXERS["performer"], num_features=8, kernel=hyperbolic)
    assert mixing(performer) == 4 * T * D * D + T * H * each
    for after, combined in ((0, 0), (1, 2 * T * H * 64)):
        lsh = partial(
            MIXERS["lsh-1"], num_hashes=2, num_buckets=4, chunk_size=100, chunks_before=0,
            chunks_after=after, combine="logsumexp" if after else "mean",
        )  # fmt: skip
        pairs = 200 * 100 * (1 + after)
        wanted = 2 * (T * H * 64 * 2 + pairs * PAIR) + combined
        assert mixing(lsh) == 3 * T * D * D + wanted
    linformer = partial(MIXERS["linformer"], num_slots=5, sharing="keys-values")
    assert mixing(linformer) == 4 * T * D * D + 2 * T * 5 * PAIR


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5, 9, 30])
@pytest.mark.parametrize("tokens", [1, 6, 9])
def test_pairs_are_those_of_the_patterns(tokens, window, is_causal):
    at = torch.arange(tokens)
    for others in (1, 2, 4, 20):
        pattern = strided_visible(at, at, window=window, stride=others, is_causal=is_causal)
        found = strided_pairs(tokens, window, others, is_causal=is_causal)
        assert found == int(pattern.sum())
    for others in (0, 1, 4, 20):
        pattern = local_visible(at, at, window=window, num_global=others, is_causal=is_causal)
        found = window_pairs(tokens, window, is_causal=is_causal, num_global=others)
        assert found == int(pattern.sum())


def test_an_lstm_is_refused():
    with pytest.raises(ValueError, match=r"layers that can be counted, got blocks\.0\.mixer.*LSTM"):
        count("lstm")
