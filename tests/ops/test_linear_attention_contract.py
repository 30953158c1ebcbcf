"""The contract on linear attention: padding, packing, causality, denominators of 0, precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import subquad
from helpers import FEATURE_MAPS, assert_near, draw_qkv, leaves, three_masked_rows
from subquad.ops import feature_maps
from subquad.ops.linear_attention import (
    linear_attention_causal,
    linear_attention_chunked,
    linear_attention_quadratic,
)
from subquad.ops.linear_attention_step import linear_attention_step
from subquad.ops.linear_state import LinearState, linear_state

B, H, T, D, V = 3, 2, 12, 4, 5
GARBAGE = [torch.nan, 1e30, -1e30, torch.inf]


def make_qkv(dtype=torch.float64, shape=(B, H, T), seed=0):
    return draw_qkv(shape, D, V, dtype, seed)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_garbage_in_padded_positions_changes_nothing(dtype, name, is_causal, garbage):
    """Not a bit of a valid output, and not a bit of any gradient."""
    mask = three_masked_rows(T)
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        inputs = leaves(*(torch.where(at, x, value) for x in make_qkv(dtype)))
        decay = -torch.rand(B, H, T, generator=torch.Generator().manual_seed(1), dtype=dtype)
        if is_causal:
            inputs += leaves(decay.masked_fill(~mask[:, None], value))
        y = subquad.linear_attention(
            *inputs[:3], is_causal=is_causal, key_mask=mask,
            feature_map=FEATURE_MAPS[name](H, D), normalize=name != "identity",
            log_decay=inputs[3] if is_causal else None,
        )  # fmt: skip
        assert y[2].eq(0).all()
        y = y.masked_fill(~at, 0)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for clean, planted in zip(*results, strict=True):
        assert torch.equal(clean, planted)
        assert planted.isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_row_without_a_valid_key_gives_exactly_0(is_causal):
    inputs = leaves(*make_qkv())
    y = subquad.linear_attention(*inputs, is_causal=is_causal, key_mask=three_masked_rows(T))
    assert y[2].eq(0).all()
    assert y[0].ne(0).all()
    assert y[1, :, :5].eq(0).all() == is_causal
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    assert all(x[2].eq(0).all() for x in gradients)


def test_a_broken_query_that_is_not_padded_is_not_hidden():
    q, k, v = make_qkv()
    q[0, 0, 4, 1] = torch.nan
    y = subquad.linear_attention(q, k, v, key_mask=three_masked_rows(T))
    assert y[0, 0, 4].isnan().all()
    assert y.isnan().sum() == V


@pytest.mark.parametrize(
    ("is_causal", "decay"),
    [(False, "none"), (True, "none"), (True, "token"), (True, "feature")],
)
def test_a_mask_is_the_definition_with_these_keys_taken_out(is_causal, decay):
    """A hidden token neither adds to the state nor lets it decay."""
    q, k, v = make_qkv()
    mask = three_masked_rows(T)
    shape = {"none": None, "token": (B, H, T), "feature": (B, H, T, D)}[decay]
    g = None if shape is None else -torch.rand(shape, dtype=torch.float64)
    y = subquad.linear_attention(q, k, v, is_causal=is_causal, key_mask=mask, log_decay=g)
    for row in range(2):
        keep = mask[row]
        part = [x[row : row + 1, :, keep] for x in (q, k, v)]
        part_g = None if g is None else g[row : row + 1, :, keep]
        expected = linear_attention_quadratic(
            feature_maps.elu_plus_one(part[0]), feature_maps.elu_plus_one(part[1]), part[2],
            is_causal=is_causal, log_decay=part_g,
        )  # fmt: skip
        assert_near(y[row : row + 1, :, keep], expected, 1e-12)


def attend_packed(qkv, lengths, log_decay, **options):
    borders = torch.tensor([0, *lengths]).cumsum(0)
    return subquad.linear_attention(*qkv, cu_seqlens=borders, log_decay=log_decay, **options)


def attend_one_by_one(qkv, lengths, log_decay, **options):
    outputs, start = [], 0
    for length in lengths:
        span = slice(start, start + length)
        g = None if log_decay is None else log_decay[:, :, span]
        if length:
            part = [x[:, :, span] for x in qkv]
            outputs.append(subquad.linear_attention(*part, log_decay=g, **options))
        start += length
    return torch.cat(outputs, dim=2)


def attend_padded(side):
    def attend(qkv, lengths, log_decay, **options):
        longest = max(lengths) + 2
        place = torch.arange(longest)
        mask = torch.stack(
            [place < n if side == "right" else place >= longest - n for n in lengths]
        )

        def padded(x):
            rows = x.new_full((len(lengths), longest, *x[0, :, 0].shape), torch.nan)
            return rows.index_put(mask.nonzero(as_tuple=True), x[0].transpose(0, 1)).transpose(1, 2)

        g = None if log_decay is None else padded(log_decay)
        y = subquad.linear_attention(*map(padded, qkv), key_mask=mask, log_decay=g, **options)
        return y.transpose(1, 2)[mask].transpose(0, 1).unsqueeze(0)

    return attend


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    long=st.sampled_from([0, 70]),
    is_causal=st.booleans(),
    decay=st.sampled_from([None, (), (D,)]),
)
def test_left_padding_is_right_padding_is_packing_is_one_by_one(lengths, long, is_causal, decay):
    lengths = [*lengths, long]
    total = sum(lengths)
    inputs = leaves(*make_qkv(shape=(1, H, total)))
    if is_causal and decay is not None:
        inputs += leaves(-torch.rand(1, H, total, *decay, dtype=torch.float64))
    results = []
    for form in (attend_one_by_one, attend_packed, attend_padded("left"), attend_padded("right")):
        y = form(inputs[:3], lengths, inputs[3] if len(inputs) > 3 else None, is_causal=is_causal)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for result in results[1:]:
        assert_near(result, results[0], 1e-10)


def test_a_packed_neighbour_is_never_seen():
    q, k, v = make_qkv(shape=(1, H, T))
    borders = torch.tensor([0, 5, 5, T], dtype=torch.int32)
    y = subquad.linear_attention(q, k, v, cu_seqlens=borders)
    k[:, :, 5:], v[:, :, 5:] = torch.nan, torch.nan
    other = subquad.linear_attention(q, k, v, cu_seqlens=borders)
    assert torch.equal(y[:, :, :5], other[:, :, :5])


@pytest.mark.parametrize("chunk_size", [1, 5, 64, None])
@pytest.mark.parametrize("kind", ["none", "token", "feature"])
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_the_future_does_not_change_the_past_by_a_bit(name, kind, chunk_size):
    feature_map = FEATURE_MAPS[name](H, D)
    shape = {"none": None, "token": (), "feature": (feature_map.num_features(D),)}[kind]
    q, k, v = make_qkv(torch.float32)
    g = None if shape is None else -torch.rand(B, H, T, *shape)
    state = linear_state(B, H, feature_map.num_features(D), V, like=v)
    state = LinearState(torch.randn_like(state.kv), torch.rand_like(state.k_sum))

    def run():
        return linear_attention_chunked(
            feature_map(q), feature_map(k), v, state, log_decay=g,
            normalize=name != "identity", chunk_size=chunk_size,
        )[0]  # fmt: skip

    before = run()
    for j in (11, 6, 1):
        for x in (q, k, v):
            x[:, :, j] = 1e30
        if g is not None:
            g[:, :, j] = -1e30
        after = run()
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_denominator_of_0_gives_0_and_no_gradient_in_every_form(is_causal):
    """relu of negative keys is 0. Row 0: all keys; row 1: the first four."""
    q, k, v = make_qkv()
    k[0] = -k[0].abs()
    k[1, :, :4] = -k[1, :, :4].abs()
    q = q.abs()
    results = []
    for form in ("fast", "quadratic", "chunks of 3", "steps"):
        inputs = leaves(q, k, v)
        phi_q, phi_k = feature_maps.relu(inputs[0]), feature_maps.relu(inputs[1])
        state = linear_state(B, H, D, V, like=v)
        if form == "fast":
            y = subquad.linear_attention(
                *inputs, is_causal=is_causal, feature_map=feature_maps.relu
            )
        elif form == "quadratic":
            y = linear_attention_quadratic(phi_q, phi_k, inputs[2], is_causal=is_causal)
        elif not is_causal:
            continue
        elif form == "chunks of 3":
            y, _ = linear_attention_chunked(phi_q, phi_k, inputs[2], state, chunk_size=3)
        else:
            outputs = []
            for t in range(T):
                token = (phi_q[:, :, t], phi_k[:, :, t], inputs[2][:, :, t])
                y, state = linear_attention_step(*token, state)
                outputs.append(y)
            y = torch.stack(outputs, dim=2)
        assert y[0].eq(0).all()
        assert y[1, :, :4].eq(0).all() == is_causal
        gradients = torch.autograd.grad(y.sum(), inputs)
        assert all(x[0].eq(0).all() for x in gradients)
        assert all(x.isfinite().all() for x in gradients)
        results.append([y, *gradients])
    for result in results[1:]:
        assert_near(result, results[0], 1e-10)


def test_keys_wider_than_the_values_are_summed_in_their_dtype():
    q, k, v = make_qkv()
    y = linear_attention_causal(q.double().exp(), k.double().exp(), v.float())
    wide = linear_attention_causal(q.double().exp(), k.double().exp(), v.float().double())
    assert torch.equal(y, wide.float())
