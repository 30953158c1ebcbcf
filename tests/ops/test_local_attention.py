"""Local attention: blocks, global tokens, masks and the rolling state against the definition."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import TOLERANCE, as_users_have_it, assert_near, draw_qkv, leaves, three_masked_rows
from subquad.ops.local_attention import (
    local_attention,
    local_attention_cached,
    local_attention_quadratic,
    local_state,
)
from subquad.ops.window import Cut, _windows

B, H, T, K, V = 3, 2, 23, 4, 5


def make_qkv(dtype=torch.float64, shape=(B, H, T), seed=0):
    return draw_qkv(shape, K, V, dtype, seed)


def empty(q, window, num_global=0):
    return local_state(len(q), H, K, V, q, window=window, num_global=num_global)


def compare(form, inputs, options, tolerance):
    """Compare values and gradients of ``form`` with the definition's in float64."""
    results = []
    for run, dtype in ((form, inputs[0].dtype), (local_attention_quadratic, torch.float64)):
        at = leaves(*(x.to(dtype) for x in inputs))
        y = run(*at, **options)
        assert y.dtype == dtype
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
        results.append([y, *torch.autograd.grad(y, at, upstream)])
    assert_near(*results, tolerance)


@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_definition_is_the_definition(is_causal, num_global):
    q, k, v = make_qkv(shape=(1, 1, 9))
    y = local_attention_quadratic(q, k, v, window=3, is_causal=is_causal, num_global=num_global)
    for i in range(9):
        near = [j for j in range(9) if i - 3 < j < i + 3]
        first = [j for j in range(9) if j < num_global or i < num_global]
        seen = [j for j in {*near, *first} if j <= i or not is_causal]
        weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(K)) for j in seen]
        expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True))
        assert_near(y[0, 0, i], expected / sum(weights), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_equal_the_definition_in_each_dtype(dtype, masked, num_global, is_causal):
    options = {
        "window": 5, "is_causal": is_causal, "num_global": num_global, "scale": 0.3,
        "key_mask": three_masked_rows(T) if masked else None,
    }  # fmt: skip
    # In half precision SDPA rounds the weights too, and the gradients are differences of them.
    factor = 8 if dtype.itemsize == 2 else 1
    compare(
        lambda q, k, v, **options: local_attention(q, k, v, block_size=4, **options),
        make_qkv(dtype), options, TOLERANCE[dtype] * factor,
    )  # fmt: skip


SHAPES = list(product([1, 5, 41], [1, 6, 50], [0, 2, 60], [1, 3, None]))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_any_length_window_and_block_size_equals_the_definition(is_causal, masked):
    for index, (seq_len, window, num_global, block_size) in enumerate(SHAPES):
        q, k, v = make_qkv(shape=(B, H, seq_len), seed=index)
        options = {"window": window, "is_causal": is_causal, "num_global": num_global}
        if masked:
            options["key_mask"] = three_masked_rows(seq_len)
        at, same = leaves(q, k, v), leaves(q, k, v)
        y = local_attention(*at, block_size=block_size, **options)
        expected = local_attention_quadratic(*same, **options)
        actual = [y, *torch.autograd.grad(y.square().sum(), at)]
        expected = [expected, *torch.autograd.grad(expected.square().sum(), same)]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-11)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_window_wider_than_a_block_of_keys_of_the_cpu_kernel(is_causal):
    q, k, v = make_qkv(shape=(1, 1, 1700), dtype=torch.float32)
    compare(
        lambda q, k, v, **options: local_attention(q, k, v, block_size=256, **options),
        [q, k, v], {"window": 700, "is_causal": is_causal}, 1e-5,
    )  # fmt: skip


def test_windows_are_views():
    x = torch.randn(2, 3, 40, 4)
    windows = _windows(x, Cut(0, 5, 10, 4, 6, 40))
    assert windows.shape == (2, 3, 6, 10, 4)
    assert windows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(windows[:, :, 2], x[:, :, 13:23])


def test_a_window_over_everything_is_softmax_attention():
    q, k, v = make_qkv()
    for is_causal in (False, True):
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        assert_near(local_attention(q, k, v, window=T, is_causal=is_causal), expected, 1e-12)


@pytest.mark.parametrize("garbage", [torch.nan, 1e30, -1e30, torch.inf])
@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("form", ["bidirectional", "causal", "cached"])
def test_garbage_in_padded_positions_changes_nothing(form, num_global, garbage):
    mask = three_masked_rows(T)
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        inputs = leaves(*(torch.where(at, x, value) for x in make_qkv(torch.float32)))
        if form == "cached":
            state = empty(inputs[0], 5, num_global)
            y, state = local_attention_cached(*inputs, state, key_mask=mask, block_size=4)
            assert all(x.isfinite().all() for x in state[:4])
        else:
            y = local_attention(
                *inputs, window=5, is_causal=form == "causal", num_global=num_global,
                key_mask=mask, block_size=4,
            )  # fmt: skip
        assert y.masked_select(~at).eq(0).all()
        assert y.masked_select(at).ne(0).all()
        upstream = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for clean, planted in zip(*results, strict=True):
        assert torch.equal(clean, planted)
        assert planted.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("form", ["blocks", "cached"])
def test_the_future_does_not_change_the_past_by_a_bit(form, num_global, dtype):
    q, k, v = make_qkv(dtype)
    _, past = local_attention_cached(*make_qkv(dtype, seed=1), empty(q, 6, num_global))

    def run():
        if form == "cached":
            return local_attention_cached(q, k, v, past, block_size=3)[0]
        return local_attention(
            q, k, v, window=6, is_causal=True, num_global=num_global, block_size=3
        )

    before = run()
    for j in (22, 9, 6, 1):
        for x in (q, k, v):
            x[:, :, j] = 1e30
        after = run()
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=5).filter(any),
    is_causal=st.booleans(),
    num_global=st.sampled_from([0, 2]),
)
def test_packed_is_one_by_one(lengths, is_causal, num_global):
    options = {"window": 3, "is_causal": is_causal, "num_global": num_global, "block_size": 2}
    inputs = leaves(*make_qkv(shape=(1, H, sum(lengths))))
    borders = torch.tensor([0, *lengths]).cumsum(0)
    spans = [slice(a, b) for a, b in pairwise(borders.tolist()) if b > a]
    packed = local_attention(*inputs, cu_seqlens=borders, **options)
    parts = [local_attention(*(x[:, :, span] for x in inputs), **options) for span in spans]
    results = [
        [y, *torch.autograd.grad(y.square().sum(), inputs)] for y in (packed, torch.cat(parts, 2))
    ]
    assert_near(*results, 1e-10)


def test_memory_grows_with_the_length_alone():
    """Count the numbers that backward keeps: a matrix (T, T) among them would be seen."""

    def kept(seq_len):
        total = []

        def pack(x):
            total.append(x.numel())
            return x

        inputs = leaves(*make_qkv(torch.float32, shape=(1, 1, seq_len)))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            local_attention(*inputs, window=4, is_causal=True, block_size=4)
        return sum(total)

    assert kept(1280) < 2.2 * kept(640)


def test_options_that_do_not_fit_are_refused():
    q, k, v = make_qkv()
    attend, cached = as_users_have_it(local_attention), as_users_have_it(local_attention_cached)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        attend(q, k, v, window=0)
    with pytest.raises(ValueError, match="num_global must be at least 0, got -1"):
        attend(q, k, v, window=2, num_global=-1)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        attend(q, k, v, window=2, block_size=0)
    with pytest.raises(ValueError, match="must have the same length when is_causal or packed"):
        attend(q[:, :, 1:], k, v, window=2)
    state = empty(q, 3, 1)
    with pytest.raises(ValueError, match=r"state\.k must have shape \(3, 2, 3, 4\), got \(1, 2, 3"):
        cached(q, k, v, empty(q[:1], 3, 1))
    with pytest.raises(ValueError, match=r"state\.v must have shape \(3, 2, 3, 5\), got \(3, 2, 2"):
        cached(q, k, v, state._replace(v=state.v[:, :, 1:]))
    with pytest.raises(ValueError, match=r"state\.global_v must have shape \(3, 2, 1, 5\), got"):
        cached(q, k, v, state._replace(global_v=state.global_v[:1]))
    with pytest.raises(ValueError, match=r"state\.position must have shape \(3,\), got \(2,\)"):
        cached(q, k, v, state._replace(position=state.position[1:]))
    with pytest.raises(TypeError, match=r"state\.k must have the dtype of k \(torch\.float64\)"):
        cached(q, k, v, empty(q.float(), 3, 1))


@pytest.mark.compile
# The compiler's own doing while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_it_compiles_whole_with_the_same_gradients(is_causal, masked):
    torch._dynamo.reset()
    inputs = leaves(*make_qkv(shape=(B, H, 200)))
    options = {"window": 8, "num_global": 2, "is_causal": is_causal}
    options["key_mask"] = three_masked_rows(200) if masked else None
    compiled = torch.compile(local_attention, fullgraph=True, backend="aot_eager")
    results = []
    for form in (compiled, local_attention):
        y = form(*inputs, **options)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert_near(*results, 1e-12)
