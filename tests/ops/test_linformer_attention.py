"""Linformer attention against the definition by its matrix of weights, and against softmax."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from helpers import TOLERANCE, as_users_have_it, assert_near, leaves, three_masked_rows
from subquad.ops.linformer_attention import linformer_attention, linformer_attention_quadratic

B, H, T, K, V, S, N = 3, 2, 12, 4, 5, 6, 20


def make_inputs(dtype=torch.float64, shape=(B, H, T), heads=H, slots=S, longest=N):
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    qkv = [draw(*shape, n) for n in (K, K, V)]
    return [*qkv, *(draw(heads, slots, longest) / slots**0.5 for _ in range(2))]


def test_the_definition_is_equation_7():
    q, k, v, mix_k, mix_v = make_inputs()
    for h in range(H):
        slots = torch.einsum("st,tk->sk", mix_k[h, :, :T], k[0, h])
        values = torch.einsum("st,tv->sv", mix_v[h, :, :T], v[0, h])
        y = torch.einsum("ts,sv->tv", (q[0, h] @ slots.mT / 2).softmax(-1), values)
        assert_near(linformer_attention_quadratic(q, k, v, mix_k, mix_v)[0, h], y, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, H])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_fast_form_equals_the_definition(dtype, masked, heads, scale):
    options = {"scale": scale, "key_mask": three_masked_rows(T) if masked else None}
    results = []
    for form in (linformer_attention, linformer_attention_quadratic):
        wide = torch.float64 if form is linformer_attention_quadratic else dtype
        inputs = leaves(*(x.to(wide) for x in make_inputs(dtype, heads=heads)))
        y = form(*inputs, **options)
        assert y.dtype == wide
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    factor = 8 if dtype.itemsize == 2 else 1
    assert_near(*results, TOLERANCE[dtype] * factor)


def test_full_rank_with_the_identity_is_exact_softmax_attention():
    q, k, v, _, _ = make_inputs()
    identity = torch.eye(T, dtype=torch.float64)[None]
    results = []
    for form in (
        lambda q, k, v: linformer_attention(q, k, v, identity, identity),
        scaled_dot_product_attention,
    ):
        inputs = leaves(q, k, v)
        y = form(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert_near(*results, 1e-12)


@pytest.mark.parametrize("garbage", [torch.nan, 1e30, -1e30, torch.inf])
def test_garbage_in_padded_positions_changes_nothing(garbage):
    mask = three_masked_rows(T)
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        *qkv, mix_k, mix_v = make_inputs(torch.float32)
        inputs = leaves(*(torch.where(at, x, value) for x in qkv), mix_k, mix_v)
        y = linformer_attention(*inputs, key_mask=mask)
        assert y.masked_select(~at).eq(0).all()
        assert y.masked_select(at).ne(0).all()
        upstream = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for clean, planted in zip(*results, strict=True):
        assert torch.equal(clean, planted)
        assert planted.isfinite().all()


def test_packed_is_one_by_one_and_may_be_longer_than_any_one():
    lengths = [5, 0, 1, 20, 9]
    inputs = leaves(*make_inputs(shape=(1, H, sum(lengths))))
    borders = torch.tensor([0, *lengths]).cumsum(0)
    spans = [slice(a, b) for a, b in pairwise(borders.tolist()) if b > a]
    packed = linformer_attention(*inputs, cu_seqlens=borders)
    mixing = inputs[3:]
    parts = [linformer_attention(*(x[:, :, span] for x in inputs[:3]), *mixing) for span in spans]
    results = [
        [y, *torch.autograd.grad(y.square().sum(), inputs)] for y in (packed, torch.cat(parts, 2))
    ]
    assert_near(*results, 1e-10)


def test_options_that_do_not_fit_are_refused():
    q, k, v, mix_k, mix_v = make_inputs()
    attend, one_row = as_users_have_it(linformer_attention), (q[:1], k[:1], v[:1])
    with pytest.raises(ValueError, match=r"at most 11 tokens, as many as .* columns .* got 12"):
        attend(q, k, v, mix_k[..., :11], mix_v[..., :11])
    with pytest.raises(ValueError, match=r"at most 11 tokens, .* got 12"):
        attend(*one_row, mix_k[..., :11], mix_v[..., :11], cu_seqlens=torch.tensor([0, 12]))
    with pytest.raises(ValueError, match=r"mix_v must have shape \(H or 1, S, N\) with H = 2"):
        attend(q, k, v, mix_k, mix_v[0])
    with pytest.raises(ValueError, match=r"mix_k must have shape .*got \(3, 6, 20\)"):
        attend(q, k, v, torch.cat([mix_k, mix_k[:1]]), mix_v)
    with pytest.raises(ValueError, match=r"must agree in \(S, N\), got \(6, 20\) and \(6, 19\)"):
        attend(q, k, v, mix_k, mix_v[..., 1:])
    with pytest.raises(ValueError, match="must have the same length"):
        attend(q[:, :, 1:], k, v, mix_k, mix_v)
