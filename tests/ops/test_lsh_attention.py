"""LSH attention: the fast form against the definition, and both against what they promise."""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cases.lsh import (
    COMBINES,
    B,
    H,
    K,
    T,
    V,
    combines,
    directions,
    make_inputs,
    make_mask,
    value_and_gradients,
)
from helpers import assert_near, leaves
from subquad.ops.lsh_attention import lsh_attention, masked_softmax
from subquad.ops.lsh_definition import (
    lsh_attention_quadratic,
    lsh_meeting,
    shared_qk_attention_quadratic,
)

# (chunk_size, chunks_before, chunks_after)
REACHES = [(4, 1, 0), (4, 1, 1), (5, 0, 0), (3, 2, 1), (1, 1, 0), (1, 0, 0), (64, 1, 0), (8, 9, 9)]


def reach_options(reach):
    return dict(zip(("chunk_size", "chunks_before", "chunks_after"), reach, strict=True))


# Along the axes, the identity as a rotation gives buckets +x 0, +y 1, -x 2, -y 3.
POINTS = torch.tensor([[1, 0], [0, 2], [-3, 0], [4, 1], [0, -1], [1, 5.0]]).double()[None, None]
BY_BUCKET = [[0, 3], [1, 5], [2, 4]]  # sorted by bucket, in chunks of 2


def test_the_definition_groups_as_one_would_by_hand():
    axes = torch.eye(2, dtype=torch.float64)[None]
    options = {"key_mask": None, "chunk_size": 2, "chunks_before": 1, "chunks_after": 0}
    meeting = lsh_meeting(POINTS, axes, **options)[0, 0, 0]
    chunk = {t: n for n, tokens in enumerate(BY_BUCKET) for t in tokens}
    for i in range(6):
        for j in range(6):
            assert meeting[i, j] == (chunk[i] - chunk[j] in (0, 1)), (i, j)


@directions
def test_the_definition_weighs_as_one_would_by_hand(is_causal):
    v = torch.randn(1, 1, 6, V, dtype=torch.float64)
    axes = torch.eye(2, dtype=torch.float64)[None]
    y = lsh_attention_quadratic(POINTS, v, axes, chunk_size=2, chunks_before=0, is_causal=is_causal)
    partner = {0: 3, 3: 0, 1: 5, 5: 1, 2: 4, 4: 2}
    for i, j in partner.items():
        assert torch.equal(y[0, 0, i], v[0, 0, i if is_causal and j > i else j])
    y = lsh_attention_quadratic(POINTS, v, axes, chunk_size=6, is_causal=is_causal)
    for i in range(6):
        seen = [j for j in range(i if is_causal else 6) if j != i] or [i]
        q, keys = POINTS[0, 0, i], POINTS[0, 0, seen]
        weights = [math.exp(float(q @ k) / float(k.norm()) / math.sqrt(2)) for k in keys]
        expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
        assert_near(y[0, 0, i], expected, 1e-12)


def test_logsumexp_counts_each_token_of_any_round_once():
    qk, v, rotations = make_inputs(rounds=2)
    once, twice = (
        lsh_attention(qk, v, r, chunk_size=4, combine="logsumexp")
        for r in (rotations[:1], rotations[:1].repeat(3, 1, 1))
    )
    assert_near(twice, once, 1e-12)
    meeting = lsh_meeting(
        qk, rotations, key_mask=None, chunk_size=4, chunks_before=1, chunks_after=0
    )
    union = meeting.any(2) & ~torch.eye(T, dtype=torch.bool)
    assert union.any(-1).all()
    scores = (qk @ (qk / qk.norm(dim=-1, keepdim=True)).mT) / math.sqrt(K)
    expected = scores.masked_fill(~union, -torch.inf).softmax(-1) @ v
    assert_near(lsh_attention(qk, v, rotations, chunk_size=4, combine="logsumexp"), expected, 1e-12)


@combines
@directions
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reach", REACHES)
def test_the_fast_form_equals_the_definition(combine, is_causal, masked, reach):
    options = {"combine": combine, "is_causal": is_causal, **reach_options(reach)}
    options["key_mask"] = make_mask() if masked else None
    forms = (lsh_attention, lsh_attention_quadratic)
    assert_near(*(value_and_gradients(f, *make_inputs(), **options) for f in forms), 1e-12)


@combines
@directions
@pytest.mark.parametrize("seq_len", [1, 2, 3, 4, 5, 8, 9])
def test_any_length_is_exact(combine, is_causal, seq_len):
    options = {"combine": combine, "is_causal": is_causal, "chunk_size": 4, "scale": 1.7}
    forms = (lsh_attention, lsh_attention_quadratic)
    actual, expected = (value_and_gradients(f, *make_inputs(seq_len), **options) for f in forms)
    assert_near(actual[0], expected[0], 1e-12)
    for a, e in zip(actual[1:], expected[1:], strict=True):  # of qk it may be 0, but for rounding
        assert (a - e).norm() <= 1e-12


@combines
@directions
@pytest.mark.parametrize("masked", [False, True])
def test_one_chunk_for_everything_is_exact_shared_qk_attention(combine, is_causal, masked):
    qk, v, rotations = make_inputs()
    options = {"is_causal": is_causal, "key_mask": make_mask() if masked else None}
    y = lsh_attention(qk, v, rotations, chunk_size=T, combine=combine, **options)
    assert_near(y, shared_qk_attention_quadratic(qk, v, **options), 1e-12)


def errors_by_rounds(combine, *, is_causal, rounds=(1, 2, 4, 8, 16), seed=0):
    """Return |LSH - exact| / |exact| after so many rounds, for tokens around 16 directions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centers, which = draw(1, 2, 16, 16), torch.randint(16, (256,), generator=generator)
    qk, v = 4 * (centers[:, :, which] + 0.5 * draw(1, 2, 256, 16)), draw(1, 2, 256, 16)
    rotations = draw(max(rounds), 16, 16)
    exact = shared_qk_attention_quadratic(qk, v, is_causal=is_causal)
    errors = []
    for count in rounds:
        y = lsh_attention(
            qk, v, rotations[:count], chunk_size=16, combine=combine, is_causal=is_causal
        )
        errors.append(float((y - exact).norm() / exact.norm()))
    return errors


@directions
def test_the_error_against_exact_attention_falls_with_the_rounds(is_causal):
    mean, logsumexp = (errors_by_rounds(c, is_causal=is_causal) for c in COMBINES)
    assert mean[0] == pytest.approx(logsumexp[0], rel=1e-9)
    assert all(after < 0.95 * before for before, after in pairwise(mean))
    assert all(a < 0.8 * b for b, a in pairwise(logsumexp))
    assert mean[-1] < 0.5 * mean[0]
    assert logsumexp[-1] < 0.25 * logsumexp[0]


def test_products_grow_with_the_length_not_its_square():
    counts = []
    for seq_len in (512, 1024):
        with FlopCounterMode(display=False) as counter:
            qk, v, rotations = make_inputs(seq_len)
            lsh_attention(qk, v, rotations, combine="logsumexp", is_causal=True)
        counts.append(counter.get_total_flops())
    assert counts[1] == 2 * counts[0] > 0


@combines
def test_a_token_sees_itself_only_where_it_sees_nothing_else(combine):
    qk, v, rotations = make_inputs()
    options = {"chunk_size": 4, "combine": combine}
    v[:, :, 7] = 1e9
    y = lsh_attention(qk, v, rotations, **options)
    assert y[:, :, 7].abs().max() < 10
    y = lsh_attention(qk, v, rotations, is_causal=True, **options)
    assert_near(y[:, :, 0], v[:, :, 0], 1e-12)
    y = lsh_attention(qk[:, :, :1], v[:, :, :1], rotations, **options)
    assert_near(y, v[:, :, :1], 1e-12)
    alone = {"chunk_size": 1, "chunks_before": 0, "combine": combine}
    assert_near(lsh_attention(qk, v, rotations, **alone), v, 1e-12)


def test_numerical_gradients():
    qk, v, rotations = make_inputs(7)
    for combine in COMBINES:
        torch.autograd.gradcheck(
            lambda qk, v, c=combine: lsh_attention(qk, v, rotations, chunk_size=2, combine=c),
            leaves(qk, v),
            fast_mode=True,
        )


def test_masked_softmax_of_nothing():
    scores = torch.zeros(2, 3, requires_grad=True)
    weights, log_total = masked_softmax(scores, torch.tensor([[True] * 3, [False] * 3]))
    assert weights.tolist() == [[pytest.approx(1 / 3)] * 3, [0.0] * 3]
    assert log_total.isfinite().all()
    assert float(log_total[0].detach()) == pytest.approx(math.log(3))
    (grad,) = torch.autograd.grad((weights * torch.randn(3)).sum() + log_total[0], scores)
    assert grad.isfinite().all()


@combines
def test_dropout_keeps_the_mean(combine):
    torch.manual_seed(0)
    qk, _, rotations = make_inputs(200)
    ones = torch.ones(B, H, 200, V, dtype=torch.float64)
    y = lsh_attention(qk, ones, rotations, combine=combine, dropout_p=0.3)
    assert y.std() > 0.01
    assert float(y.mean()) == pytest.approx(1, abs=0.05)
