"""Softmax attention: SDPA form, cache and masks against the definition."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

import subquad
from helpers import TOLERANCE, as_users_have_it, assert_near, draw_qkv, leaves, three_masked_rows
from subquad.ops.softmax_attention import (
    KVCache,
    kv_cache,
    softmax_attention,
    softmax_attention_cached,
    softmax_attention_quadratic,
)

B, H, T, K, V = 3, 2, 12, 4, 5


def make_qkv(dtype=torch.float64, shape=(B, H, T), seed=0):
    return draw_qkv(shape, K, V, dtype, seed)


def test_the_definition_is_the_definition():
    q, k, v = make_qkv(shape=(1, 1, 4))
    for is_causal in (False, True):
        y = softmax_attention_quadratic(q, k, v, is_causal=is_causal)
        for i in range(4):
            seen = range(i + 1 if is_causal else 4)
            weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(K)) for j in seen]
            expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True))
            assert_near(y[0, 0, i], expected / sum(weights), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_fast_form_equals_the_definition(dtype, masked, scale, is_causal):
    options = {
        "is_causal": is_causal,
        "scale": scale,
        "key_mask": three_masked_rows(T) if masked else None,
    }
    results = []
    for form in (subquad.softmax_attention, softmax_attention_quadratic):
        wide = torch.float64 if form is softmax_attention_quadratic else dtype
        inputs = [x.to(wide) for x in leaves(*make_qkv(dtype))]
        inputs = leaves(*inputs)
        y = form(*inputs, **options)
        assert y.dtype == wide
        results.append([y, *torch.autograd.grad(y.sum(-1).sum(), inputs)])
    # In half precision SDPA rounds the weights too, and the gradients are differences of them.
    factor = 8 if dtype.itemsize == 2 else 1
    assert_near(*results, TOLERANCE[dtype] * factor)


def test_sdpa_agrees_where_no_row_is_empty():
    q, k, v = make_qkv()
    mask = three_masked_rows(T)
    mask[2, 0] = True
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    assert_near(subquad.softmax_attention(q, k, v, key_mask=mask), expected, 1e-12)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_near(subquad.softmax_attention(q, k, v, is_causal=True), expected, 1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(3, 11), (11, 3), (1, 1)])
def test_queries_and_keys_may_differ_in_number(queries, keys):
    q, k, v = make_qkv()
    args = (q[:, :, :queries], k[:, :, :keys], v[:, :, :keys])
    mask = three_masked_rows(T)[:, :keys]
    expected = softmax_attention_quadratic(*args, key_mask=mask)
    assert_near(subquad.softmax_attention(*args, key_mask=mask), expected, 1e-12)


@pytest.mark.parametrize("garbage", [torch.nan, 1e30, -1e30, torch.inf])
@pytest.mark.parametrize(
    ("form", "is_causal"),
    [("fast", False), ("fast", True), ("quadratic", False), ("quadratic", True), ("cached", True)],
)
def test_garbage_in_padded_positions_changes_nothing(form, is_causal, garbage):
    mask = three_masked_rows(T)
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        plant = [torch.where(at, x, value) for x in make_qkv(torch.float32)]
        if form == "quadratic":
            plant[0] = make_qkv(torch.float32)[0]  # the definition sets no query aside
        inputs = leaves(*plant)
        if form == "cached":
            y, _ = softmax_attention_cached(
                *inputs, kv_cache(B, H, K, V, like=inputs[0]), key_mask=mask
            )
        else:
            attend = subquad.softmax_attention if form == "fast" else softmax_attention_quadratic
            y = attend(*inputs, is_causal=is_causal, key_mask=mask)
        assert y[2].eq(0).all()
        y = y.masked_fill(~at, 0)
        upstream = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for clean, planted in zip(*results, strict=True):
        assert torch.equal(clean, planted)
        assert planted.isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_row_without_a_valid_key_gives_exactly_0(is_causal):
    for form in (subquad.softmax_attention, softmax_attention_quadratic):
        inputs = leaves(*make_qkv())
        y = form(*inputs, is_causal=is_causal, key_mask=three_masked_rows(T))
        assert y[2].eq(0).all()
        assert y[0].ne(0).all()
        assert y[1, :, :5].eq(0).all() == is_causal
        gradients = torch.autograd.grad(y.sum(), inputs)
        assert all(x.isfinite().all() for x in gradients)
        assert all(x[2].eq(0).all() for x in gradients)


def test_a_broken_query_that_is_not_padded_is_not_hidden():
    q, k, v = make_qkv()
    q[0, 0, 4, 1] = torch.nan
    y = subquad.softmax_attention(q, k, v, key_mask=three_masked_rows(T))
    assert y[0, 0, 4].isnan().all()
    assert y.isnan().sum() == V


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["fast", "masked", "cached"])
def test_the_future_does_not_change_the_past_by_a_bit(form, dtype):
    q, k, v = make_qkv(dtype)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 1] = False
    past = kv_cache(B, H, K, V, like=q)
    _, past = softmax_attention_cached(*make_qkv(dtype, seed=1), past)

    def run():
        if form == "cached":
            return softmax_attention_cached(q, k, v, past)[0]
        key_mask = mask if form == "masked" else None
        return subquad.softmax_attention(q, k, v, is_causal=True, key_mask=key_mask)

    before = run()
    for j in (11, 6, 1):
        for x in (q, k, v):
            x[:, :, j] = 1e30
        after = run()
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(1, T - 1), max_size=T - 1, unique=True).map(sorted),
    masked=st.sets(st.integers(0, T - 1)),
    in_place=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
def test_any_split_over_the_cache_gives_one_pass(cuts, masked, in_place, scale):
    """``masked`` names the stretches that come with a key_mask; the others have none."""
    q, k, v = make_qkv()
    mask = three_masked_rows(T)
    cache = kv_cache(B, H, K, V, like=q)
    outputs = []
    for a, b in zip([0, *cuts], [*cuts, T], strict=True):
        if a not in masked:
            mask[:, a:b] = True
        kept = [x.clone() for x in cache if isinstance(x, torch.Tensor)]
        before = cache
        y, cache = softmax_attention_cached(
            q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], cache, scale=scale, in_place=in_place,
            key_mask=mask[:, a:b] if a in masked else None,
        )  # fmt: skip
        if not in_place:
            unchanged = [x for x in before if isinstance(x, torch.Tensor)]
            assert all(map(torch.equal, kept, unchanged))
        outputs.append(y)
    assert cache.length == T
    expected = softmax_attention_quadratic(q, k, v, is_causal=True, key_mask=mask, scale=scale)
    assert_near(torch.cat(outputs, dim=2), expected, 1e-12)


def test_gradients_flow_through_the_cache_and_stop_where_it_is_detached():
    whole = leaves(*make_qkv())
    expected = softmax_attention_quadratic(*whole, is_causal=True)
    expected = torch.autograd.grad(expected[:, :, 7:].square().sum(), whole)
    for detach in (False, True):
        inputs = leaves(*make_qkv())
        cache = kv_cache(B, H, K, V, like=inputs[0])
        _, cache = softmax_attention_cached(*(x[:, :, :7] for x in inputs), cache)
        if detach:
            cache = KVCache(cache.k.detach(), cache.v.detach(), None, cache.length)
        y, _ = softmax_attention_cached(*(x[:, :, 7:] for x in inputs), cache)
        actual = torch.autograd.grad(y.square().sum(), inputs)
        assert_near([x[:, :, 7:] for x in actual], [x[:, :, 7:] for x in expected], 1e-12)
        past = [x[:, :, :7] for x in expected]
        assert_near([x[:, :, :7] for x in actual], [x * (not detach) for x in past], 1e-12)


def test_room_grows_by_doubling_in_place_only():
    token = [x[:, :, :1] for x in make_qkv()]
    cache, rooms = kv_cache(B, H, K, V, like=token[0]), []
    for _ in range(9):
        before = cache
        _, cache = softmax_attention_cached(*token, cache, in_place=True)
        rooms.append(cache.k.shape[2])
        if cache.k.shape == before.k.shape:
            assert cache.k.data_ptr() == before.k.data_ptr()
    assert rooms == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    _, cache = softmax_attention_cached(*token, cache)
    assert cache.k.shape[2] == cache.length == 10


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.booleans())
def test_packed_is_one_by_one(lengths, is_causal):
    inputs = leaves(*make_qkv(shape=(1, H, sum(lengths))))
    borders = torch.tensor([0, *lengths]).cumsum(0)
    spans = [slice(a, b) for a, b in pairwise(borders.tolist()) if b > a]
    packed = subquad.softmax_attention(*inputs, is_causal=is_causal, cu_seqlens=borders)
    parts = [
        subquad.softmax_attention(*(x[:, :, span] for x in inputs), is_causal=is_causal)
        for span in spans
    ]
    results = [
        [y, *torch.autograd.grad(y.square().sum(), inputs)] for y in (packed, torch.cat(parts, 2))
    ]
    assert_near(*results, 1e-10)


def test_dropout_is_passed_on():
    q, k, v = make_qkv()
    ones = torch.ones_like(v)
    for options in ({}, {"key_mask": torch.ones(B, T, dtype=torch.bool)}):
        y = subquad.softmax_attention(q, k, ones, dropout_p=0.5, **options)
        assert y.std() > 0.1
        assert 0.7 < y.mean() < 1.3


def test_options_that_do_not_fit_are_refused():
    q, k, v = make_qkv()
    message = "dropout_p must be at least 0 and below 1, got nan"
    with pytest.raises(ValueError, match=message):
        subquad.softmax_attention(q, k, v, dropout_p=torch.nan)
    cached = as_users_have_it(softmax_attention_cached)
    good = kv_cache(B, H, K, V, like=q)
    with pytest.raises(ValueError, match=message):
        cached(q, k, v, good, dropout_p=torch.nan)
    with pytest.raises(ValueError, match=r"cache\.k must have shape \(3, 2, 0, 4\), got \(1, 2, 0"):
        cached(q, k, v, kv_cache(1, H, K, V, like=q))
    with pytest.raises(ValueError, match=r"cache\.v must have shape \(3, 2, 0, 5\), got \(3, 2, 0"):
        cached(q, k, v, kv_cache(B, H, K, V + 1, like=q))


@pytest.mark.parametrize(("seq_len", "wide"), [(49, True), (512, False)])
def test_bfloat16_learns_in_float32_where_that_is_the_faster(monkeypatch, seq_len, wide):
    seen = []

    def spy(q, *rest, **options):
        seen.append(q.dtype)
        return torch.nn.functional.scaled_dot_product_attention(q, *rest, **options)

    monkeypatch.setattr("subquad.ops.softmax_attention.scaled_dot_product_attention", spy)
    q, k, v = (torch.randn(1, 1, seq_len, 8).bfloat16().requires_grad_() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = softmax_attention(q, k, v)
    grads = torch.autograd.grad(y.float().square().sum(), (q, k, v))
    assert seen == [torch.float32 if wide else torch.bfloat16]
    assert y.dtype == torch.bfloat16
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = softmax_attention(*exact)
    assert_near(y.double(), expected, 1e-2)
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    assert_near([g.double() for g in grads], list(wanted), 3e-2)
    with torch.no_grad():
        softmax_attention(q, k, v)
    assert seen[-1] == torch.bfloat16


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_is_added_to_the_scores(is_causal, masked):
    q, k, v = leaves(*make_qkv())
    (bias,) = leaves(torch.randn(B, H, T, T, dtype=torch.float64))
    options = {"is_causal": is_causal, "key_mask": three_masked_rows(T) if masked else None}
    y, expected = (
        attend(q, k, v, bias=bias, **options)
        for attend in (softmax_attention, softmax_attention_quadratic)
    )
    assert_near(y, expected, 1e-12)
    grads, wanted = (torch.autograd.grad(z.sin().sum(), (q, k, v, bias)) for z in (y, expected))
    assert_near(grads, list(wanted), 1e-12)
    assert (y - softmax_attention(q, k, v, **options)).norm() > 0.1 * y.norm()


def test_a_bias_that_does_not_fit_is_refused():
    attend, (q, k, v) = as_users_have_it(softmax_attention), make_qkv()
    with pytest.raises(ValueError, match=r"bias must have shape \(3, 2, 12, 12\), got \(12, 12\)"):
        attend(q, k, v, bias=torch.zeros(T, T, dtype=q.dtype))
    q, k, v = make_qkv(shape=(1, H, T))
    bias = torch.zeros(1, H, T, T, dtype=q.dtype)
    with pytest.raises(
        ValueError, match="bias and cu_seqlens must not be given together, got both"
    ):
        attend(q, k, v, bias=bias, cu_seqlens=torch.tensor([0, T]))
