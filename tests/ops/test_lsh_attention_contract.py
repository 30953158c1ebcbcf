"""The contract on LSH attention: padding, packing, causality, precision, and what it refuses."""

import pytest
import torch

from cases.lsh import (
    COMBINES,
    B,
    H,
    T,
    V,
    combines,
    directions,
    make_inputs,
    make_mask,
    value_and_gradients,
)
from helpers import TOLERANCE, as_users_have_it, assert_near, leaves
from subquad.ops.lsh_attention import check_reach, lsh_attention
from subquad.ops.lsh_definition import (
    lsh_attention_quadratic,
)


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
def test_autocast_narrows_nothing_inside(combine):
    inputs = make_inputs(dtype=torch.float32)
    expected = lsh_attention(*inputs, chunk_size=4, combine=combine)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lsh_attention(*inputs, chunk_size=4, combine=combine), expected)


def test_huge_tokens_stay_finite():
    qk, v, rotations = make_inputs(dtype=torch.float32)
    for combine in COMBINES:
        found = value_and_gradients(
            lsh_attention, 1e30 * qk, v, rotations, chunk_size=4, combine=combine
        )
        assert all(x.isfinite().all() for x in found)


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
