"""LSH attention: the fast form against the definition, and both against what they promise."""

import math
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import TOLERANCE, as_users_have_it, assert_near, leaves
from subquad.ops.lsh_attention import check_reach, lsh_attention, masked_softmax
from subquad.ops.lsh_definition import (
    lsh_attention_quadratic,
    lsh_meeting,
    shared_qk_attention_quadratic,
)
from subquad.ops.lsh_grouping import hash_buckets, sort_into_chunks, unit_keys

B, H, T, K, V, R = 2, 2, 23, 4, 5, 3
COMBINES = ("mean", "logsumexp")
combines = pytest.mark.parametrize("combine", COMBINES)
directions = pytest.mark.parametrize("is_causal", [False, True])
# (chunk_size, chunks_before, chunks_after)
REACHES = [(4, 1, 0), (4, 1, 1), (5, 0, 0), (3, 2, 1), (1, 1, 0), (1, 0, 0), (64, 1, 0), (8, 9, 9)]


def make_inputs(seq_len=T, dtype=torch.float64, rounds=R, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, H, seq_len, K), (B, H, seq_len, V), (rounds, K, 3)]
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def make_mask(seq_len=T):
    """Return a row with holes, and one padded on the left."""
    mask = torch.ones(B, seq_len, dtype=torch.bool)
    mask[0, [1, 2, 5, 9, 21]] = False
    mask[1, :14] = False
    return mask


def reach_options(reach):
    return dict(zip(("chunk_size", "chunks_before", "chunks_after"), reach, strict=True))


def value_and_gradients(form, qk, v, rotations, dtype=None, **options):
    inputs = leaves(*(x.to(dtype or x.dtype) for x in (qk, v)))
    y = form(*inputs, rotations.to(inputs[0].dtype), **options)
    weight = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).sin().reshape(y.shape)
    return [y, *torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs)]


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_are_hashed_and_summed_in_float32(combine, dtype):
    inputs = make_inputs(dtype=dtype)
    options = {"combine": combine, "is_causal": True, "chunk_size": 4, "key_mask": make_mask()}
    actual = value_and_gradients(lsh_attention, *inputs, **options)
    wide = [x.double() for x in inputs]
    assert [x.dtype for x in actual] == [dtype] * 3
    assert_near(
        actual, value_and_gradients(lsh_attention_quadratic, *wide, **options), TOLERANCE[dtype]
    )


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
@directions
def test_padding_takes_no_part_whatever_stands_there(combine, is_causal):
    qk, v, rotations = make_inputs()
    mask = make_mask()
    options = {"chunk_size": 4, "combine": combine, "is_causal": is_causal}
    alone = [
        lsh_attention(qk[b : b + 1, :, mask[b]], v[b : b + 1, :, mask[b]], rotations, **options)[0]
        for b in range(B)
    ]
    for junk in (0.0, 1e300, torch.nan, torch.inf):
        bad_qk, bad_v = (x.masked_fill(~mask[:, None, :, None], junk) for x in (qk, v))
        bad_qk, bad_v = leaves(bad_qk, bad_v)
        y = lsh_attention(bad_qk, bad_v, rotations, key_mask=mask, **options)
        grads = torch.autograd.grad(y.square().sum(), [bad_qk, bad_v])
        for b in range(B):
            assert_near(y[b][:, mask[b]], alone[b], 1e-12)
            assert (y[b][:, ~mask[b]] == 0).all()
            for grad in grads:
                assert grad[b].isfinite().all()
                assert (grad[b][:, ~mask[b]] == 0).all()


@combines
def test_a_row_without_a_valid_token_gives_zeros_and_no_gradient(combine):
    qk, v, rotations = make_inputs()
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0] = True
    qk[1], v[1] = torch.nan, torch.nan
    y, *grads = value_and_gradients(
        lsh_attention, qk, v, rotations, chunk_size=4, combine=combine, key_mask=mask
    )
    assert (y[1] == 0).all()
    assert all((grad[1] == 0).all() and grad.isfinite().all() for grad in grads)


@combines
@directions
def test_packed_sequences_are_as_if_alone(combine, is_causal):
    qk, v, rotations = (x[:1] if x.dim() == 4 else x for x in make_inputs())
    options = {"chunk_size": 4, "combine": combine, "is_causal": is_causal}
    lengths = [6, 0, 1, 16]
    borders = torch.tensor([0, *lengths]).cumsum(0)
    y = lsh_attention(qk, v, rotations, cu_seqlens=borders, **options)
    parts = [
        lsh_attention(q_s, v_s, rotations, **options)
        for q_s, v_s in zip(qk.split(lengths, 2), v.split(lengths, 2), strict=True)
        if q_s.shape[2]
    ]
    assert_near(y, torch.cat(parts, 2), 1e-12)


@combines
def test_causal_masks_are_exact_but_the_grouping_sees_the_future(combine):
    qk, v, rotations = make_inputs()
    options = {"combine": combine, "is_causal": True}
    jacobian = torch.autograd.functional.jacobian(
        lambda qk, v: lsh_attention(qk, v, rotations, chunk_size=4, **options).sum(-1), (qk, v)
    )
    for grad in jacobian:  # (B, H, T, B, H, T, ...)
        reach = grad.abs().amax((0, 1, 3, 4, 6))
        assert (reach.triu(1) == 0).all()
        assert (reach.tril() != 0).any()
    other_qk, other_v = qk.clone(), v.clone()
    other_qk[:, :, -4:], other_v[:, :, -4:] = -3 * qk[:, :, -4:] + 1, 1e6
    for chunk_size, holds in ((T, True), (4, False)):
        y, changed = (
            lsh_attention(*x, rotations, chunk_size=chunk_size, **options)[:, :, :-4]
            for x in ((qk, v), (other_qk, other_v))
        )
        # Another value can only be another choice among earlier tokens: 1e6 never comes through.
        assert changed.abs().max() <= v.abs().max()
        assert torch.allclose(y, changed, rtol=1e-12, atol=1e-12) == holds


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


@combines
def test_autocast_narrows_nothing_inside(combine):
    inputs = make_inputs(dtype=torch.float32)
    expected = lsh_attention(*inputs, chunk_size=4, combine=combine)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lsh_attention(*inputs, chunk_size=4, combine=combine), expected)


def test_numerical_gradients():
    qk, v, rotations = make_inputs(7)
    for combine in COMBINES:
        torch.autograd.gradcheck(
            lambda qk, v, c=combine: lsh_attention(qk, v, rotations, chunk_size=2, combine=c),
            leaves(qk, v),
            fast_mode=True,
        )


def test_huge_tokens_stay_finite():
    qk, v, rotations = make_inputs(dtype=torch.float32)
    for combine in COMBINES:
        found = value_and_gradients(
            lsh_attention, 1e30 * qk, v, rotations, chunk_size=4, combine=combine
        )
        assert all(x.isfinite().all() for x in found)


def test_keys_have_length_1_and_zero_stays_zero():
    x = torch.randn(1, 1, 4, 3)
    x[..., 1, :], x[..., 2, :] = 0, 1e30 * x[..., 2, :]
    x.requires_grad_()
    keys = unit_keys(x)
    assert_near(keys.norm(dim=-1), torch.tensor([[[1.0, 0, 1, 1]]]), 1e-6)
    (grad,) = torch.autograd.grad((keys * torch.randn(3)).sum(), x)
    assert grad.isfinite().all()
    assert (grad[..., 1, :] == 0).all()


def test_buckets_follow_the_direction_and_opposites_part():
    keys, _, rotations = make_inputs()
    buckets = hash_buckets(keys, rotations)
    assert buckets.shape == (B, H, R, T)
    assert len(buckets.unique()) == 6
    assert torch.equal(hash_buckets(0.1 * keys, rotations), buckets)
    assert torch.equal(hash_buckets(-keys, rotations), (buckets + 3) % 6)


def test_chunks_hold_each_token_once_and_hidden_ones_last():
    buckets = torch.tensor([2, 0, 1, 0, 2, 1, 0])[None, None, None]
    mask = torch.tensor([[True, True, False, True, True, True, True]])
    chunks = sort_into_chunks(buckets, mask, chunk_size=3)
    assert chunks.position[0, 0, 0].flatten()[:7].tolist() == [1, 3, 6, 5, 0, 4, 2]
    assert chunks.valid[0, 0, 0].tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert chunks.slot[0, 0, 0].tolist() == [4, 0, 6, 1, 5, 3, 2]


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qk": torch.zeros(2, 3, 4)}, ValueError, r"q must have shape \(B, H, T, features\)"),
        ({"v": torch.zeros(B, H, T - 1, V)}, ValueError, r"k and v must agree in \(B, H, T\)"),
        ({"rotations": torch.ones(3, 4, 3).long()}, TypeError, "rotations must be of a floating"),
        ({"rotations": torch.ones(3, 5, 3)}, ValueError, r"\(rounds, 4, .* got \(3, 5, 3\)"),
        ({"rotations": torch.ones(4, 3)}, ValueError, r"rotations must .* got \(4, 3\)"),
        ({"rotations": torch.ones(0, 4, 3)}, ValueError, r"not empty, got \(0, 4, 3\)"),
        (
            {"rotations": torch.ones(3, 4, 3, device="meta")}, ValueError,
            r"rotations must be on the device of the keys \(cpu\), got meta",
        ),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"chunks_before": -1}, ValueError, "chunks_before must be at least 0, got -1"),
        ({"chunks_after": True}, TypeError, "chunks_after must be an int, got bool True"),
        ({"combine": "sum"}, ValueError, "combine must be one of mean, logsumexp; got 'sum'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [lsh_attention, lsh_attention_quadratic])
def test_errors(form, change, error, message):
    qk, v, rotations = make_inputs(dtype=torch.float32)
    given = {"qk": qk, "v": v, "rotations": rotations, **change}
    with pytest.raises(error, match=message):
        as_users_have_it(form)(given.pop("qk"), given.pop("v"), given.pop("rotations"), **given)


def test_a_reach_must_be_whole():
    with pytest.raises(TypeError, match=r"chunks_after must be an int, got float 0\.5"):
        as_users_have_it(check_reach)("chunks_after", 0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout_p": 1.0}, ValueError, "dropout_p must be at least 0 and below 1, got 1"),
        ({"key_mask": torch.ones(B, T)}, TypeError, "key_mask must be bool"),
        ({"key_mask": torch.ones(B, 2).bool()}, ValueError, "key_mask must have shape"),
        ({"cu_seqlens": torch.tensor([0, T])}, ValueError, "cu_seqlens needs a batch of size 1"),
    ],
)
def test_errors_of_masks_and_dropout(options, error, message):
    with pytest.raises(error, match=message):
        as_users_have_it(lsh_attention)(*make_inputs(), **options)
