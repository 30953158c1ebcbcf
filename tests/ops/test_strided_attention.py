"""Strided attention: blocks, masks and the growing state against the definition."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import TOLERANCE, as_users_have_it, assert_near, draw_qkv, leaves, three_masked_rows
from subquad.ops.state import load_state, map_state, save_state, state_size_bytes
from subquad.ops.strided_attention import (
    strided_attention,
    strided_attention_cached,
    strided_attention_quadratic,
    strided_attention_step,
    strided_state,
)

B, H, T, K, V = 3, 2, 23, 4, 5


def make_qkv(dtype=torch.float64, shape=(B, H, T), seed=0):
    return draw_qkv(shape, K, V, dtype, seed)


def empty(q, window):
    return strided_state(len(q), H, K, V, q, window=window)


def compare(form, inputs, options, tolerance):
    """Compare values and gradients of ``form`` with the definition's in float64."""
    results = []
    for run, dtype in ((form, inputs[0].dtype), (strided_attention_quadratic, torch.float64)):
        at = leaves(*(x.to(dtype) for x in inputs))
        y = run(*at, **options)
        assert y.dtype == dtype
        upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
        results.append([y, *torch.autograd.grad(y, at, upstream)])
    assert_near(*results, tolerance)


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_definition_is_the_definition(is_causal, stride):
    q, k, v = make_qkv(shape=(1, 1, 9))
    y = strided_attention_quadratic(q, k, v, window=3, is_causal=is_causal, stride=stride)
    for i in range(9):
        near = [j for j in range(9) if i - 3 < j < i + 3]
        columns = [j for j in range(9) if (j + 1) % stride == 0]
        seen = [j for j in {*near, *columns} if j <= i or not is_causal]
        weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(K)) for j in seen]
        expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True))
        assert_near(y[0, 0, i], expected / sum(weights), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_equal_the_definition_in_each_dtype(dtype, masked, stride, is_causal):
    options = {
        "window": 5, "is_causal": is_causal, "stride": stride, "scale": 0.3,
        "key_mask": three_masked_rows(T) if masked else None,
    }  # fmt: skip
    # In half precision SDPA rounds the weights too, and the gradients are differences of them.
    factor = 8 if dtype.itemsize == 2 else 1
    compare(
        lambda q, k, v, **options: strided_attention(q, k, v, block_size=4, **options),
        make_qkv(dtype), options, TOLERANCE[dtype] * factor,
    )  # fmt: skip


SHAPES = list(product([1, 5, 41], [1, 6, 50], [1, 4, 60], [1, 3, None]))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_any_length_window_and_block_size_equals_the_definition(is_causal, masked):
    for index, (seq_len, window, stride, block_size) in enumerate(SHAPES):
        q, k, v = make_qkv(shape=(B, H, seq_len), seed=index)
        options = {"window": window, "is_causal": is_causal, "stride": stride}
        if masked:
            options["key_mask"] = three_masked_rows(seq_len)
        at, same = leaves(q, k, v), leaves(q, k, v)
        y = strided_attention(*at, block_size=block_size, **options)
        expected = strided_attention_quadratic(*same, **options)
        actual = [y, *torch.autograd.grad(y.square().sum(), at)]
        expected = [expected, *torch.autograd.grad(expected.square().sum(), same)]
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-11)


def test_a_window_over_everything_is_softmax_attention():
    q, k, v = make_qkv()
    for is_causal in (False, True):
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        assert_near(
            strided_attention(q, k, v, window=T, stride=7, is_causal=is_causal), expected, 1e-12
        )


@pytest.mark.parametrize("garbage", [torch.nan, 1e30, -1e30, torch.inf])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("form", ["bidirectional", "causal", "cached"])
def test_garbage_in_padded_positions_changes_nothing(form, stride, garbage):
    mask = three_masked_rows(T)
    at = mask[:, None, :, None]
    results = []
    for value in (0.5, garbage):
        inputs = leaves(*(torch.where(at, x, value) for x in make_qkv(torch.float32)))
        if form == "cached":
            state = empty(inputs[0], 5)
            y, state = strided_attention_cached(
                *inputs, state, stride=stride, key_mask=mask, block_size=4
            )
            assert all(x.isfinite().all() for x in state[:5])
        else:
            y = strided_attention(
                *inputs, window=5, is_causal=form == "causal", stride=stride,
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
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("form", ["blocks", "cached"])
def test_the_future_does_not_change_the_past_by_a_bit(form, stride, dtype):
    q, k, v = make_qkv(dtype)
    _, past = strided_attention_cached(*make_qkv(dtype, seed=1), empty(q, 6), stride=stride)

    def run():
        if form == "cached":
            return strided_attention_cached(q, k, v, past, stride=stride, block_size=3)[0]
        return strided_attention(q, k, v, window=6, is_causal=True, stride=stride, block_size=3)

    before = run()
    for j in (22, 9, 6, 1):
        for x in (q, k, v):
            x[:, :, j] = 1e30
        after = run()
        assert torch.equal(before[:, :, :j], after[:, :, :j])
        assert not torch.equal(before[:, :, j:], after[:, :, j:])


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(1, T - 1), max_size=T - 1, unique=True).map(sorted),
    masked=st.sets(st.integers(0, T - 1)),
    window=st.sampled_from([1, 2, 5, 40]),
    stride=st.sampled_from([1, 4, 30]),
    in_place=st.booleans(),
)
def test_any_split_over_the_state_gives_one_pass(cuts, masked, window, stride, in_place):
    """``masked`` names the stretches that come with a key_mask; single tokens without are steps."""
    q, k, v = make_qkv()
    mask, outputs = three_masked_rows(T), []
    state = empty(q, window)
    for a, b in pairwise([0, *cuts, T]):
        if a not in masked:
            mask[:, a:b] = True
        before, kept = state, map_state(torch.clone, state)
        if b == a + 1 and a not in masked:
            token = (x[:, :, a] for x in (q, k, v))
            y, state = strided_attention_step(*token, state, stride=stride, in_place=in_place)
            y = y.unsqueeze(2)
        else:
            stretch = (x[:, :, a:b] for x in (q, k, v))
            key_mask = mask[:, a:b] if a in masked else None
            y, state = strided_attention_cached(
                *stretch, state, stride=stride, key_mask=key_mask, block_size=2
            )
        if not in_place:
            assert all(map(torch.equal, kept[:5], before[:5]))
        columns = b // stride  # the state grows by one key and value a stride, and says so
        assert columns <= state.column_k.shape[2] <= (2 * columns if in_place else columns)
        outputs.append(y)
    assert torch.equal(state.position, mask.sum(1))
    expected = strided_attention_quadratic(
        q, k, v, window=window, is_causal=True, stride=stride, key_mask=mask
    )
    assert_near(torch.cat(outputs, dim=2), expected, 1e-12)


def test_a_step_in_place_writes_into_the_tables_that_it_got():
    q, k, v = (x[:, :, 0] for x in make_qkv())
    _, state = strided_attention_step(q, k, v, empty(q, 4), stride=1)
    state = state._replace(length=0)  # there is room for one column
    _, new = strided_attention_step(q, k, v, state, stride=1, in_place=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(new[:4], state[:4], strict=True))
    _, newer = strided_attention_step(q, k, v, new, stride=1)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(new[:4], newer[:4], strict=True))


def test_gradients_flow_through_the_state():
    results = []
    for split in (False, True):
        inputs = leaves(*make_qkv())
        options = {"window": 6, "stride": 4}
        if split:
            _, state = strided_attention_cached(
                *(x[:, :, :9] for x in inputs), empty(inputs[0], 6), stride=4
            )
            _, state = strided_attention_step(*(x[:, :, 9] for x in inputs), state, stride=4)
            y, _ = strided_attention_cached(*(x[:, :, 10:] for x in inputs), state, stride=4)
        else:
            y = strided_attention_quadratic(*inputs, is_causal=True, **options)[:, :, 10:]
        results.append(torch.autograd.grad(y.square().sum(), inputs))
    assert_near(*results, 1e-11)


def test_a_state_is_saved_and_loaded(tmp_path):
    inputs, path = make_qkv(), tmp_path / "state.safetensors"
    for stride in (4, 60):
        _, state = strided_attention_cached(*inputs, empty(inputs[0], 6), stride=stride)
        save_state(state, path)
        loaded = load_state(path, like=empty(inputs[0][:1], 6))
        assert all(map(torch.equal, loaded[:5], state[:5]))
        assert loaded.length == state.length == T


def test_the_state_grows_by_a_key_and_value_a_stride():
    window, stride, rooms = 4, 3, []
    token = [x[:, :, 0] for x in make_qkv(torch.float32)]
    slot = B * H * (K + V) * 4
    for in_place in (False, True):
        state = empty(token[0], window)
        for t in range(1, 40):
            _, state = strided_attention_step(*token, state, stride=stride, in_place=in_place)
            columns = state.column_k.shape[2]
            assert state_size_bytes(state) == slot * (window + columns) + 8 * B
            assert in_place or columns == t // stride
        rooms.append(columns)
    assert rooms == [13, 16]
    _, state = strided_attention_cached(*make_qkv(), empty(make_qkv()[0], window), stride=stride)
    assert state.column_k.shape[2] == T // stride


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=5).filter(any),
    is_causal=st.booleans(),
    stride=st.sampled_from([1, 4]),
)
def test_packed_is_one_by_one(lengths, is_causal, stride):
    options = {"window": 3, "is_causal": is_causal, "stride": stride, "block_size": 2}
    inputs = leaves(*make_qkv(shape=(1, H, sum(lengths))))
    borders = torch.tensor([0, *lengths]).cumsum(0)
    spans = [slice(a, b) for a, b in pairwise(borders.tolist()) if b > a]
    packed = strided_attention(*inputs, cu_seqlens=borders, **options)
    parts = [strided_attention(*(x[:, :, span] for x in inputs), **options) for span in spans]
    results = [
        [y, *torch.autograd.grad(y.square().sum(), inputs)] for y in (packed, torch.cat(parts, 2))
    ]
    assert_near(*results, 1e-10)


def test_options_that_do_not_fit_are_refused():
    q, k, v = make_qkv()
    attend, cached = as_users_have_it(strided_attention), as_users_have_it(strided_attention_cached)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        attend(q, k, v, window=0, stride=2)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        attend(q, k, v, window=2, stride=0)
    with pytest.raises(ValueError, match="stride must be at least 1, got -1"):
        cached(q, k, v, empty(q, 3), stride=-1)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        attend(q, k, v, window=2, stride=2, block_size=0)
    with pytest.raises(ValueError, match="must have the same length when is_causal or packed"):
        attend(q[:, :, 1:], k, v, window=2, stride=2)
    state = empty(q, 3)
    with pytest.raises(ValueError, match=r"state\.k must have shape \(3, 2, 3, 4\), got \(1, 2, 3"):
        cached(q, k, v, empty(q[:1], 3), stride=2)
    with pytest.raises(ValueError, match=r"state\.v must have shape \(3, 2, 3, 5\), got \(3, 2, 2"):
        cached(q, k, v, state._replace(v=state.v[:, :, 1:]), stride=2)
    with pytest.raises(ValueError, match=r"state\.column_v must have shape \(3, 2, 0, 5\), got"):
        cached(q, k, v, state._replace(column_v=state.column_v[:1]), stride=2)
    with pytest.raises(ValueError, match=r"state\.position must have shape \(3,\), got \(2,\)"):
        cached(q, k, v, state._replace(position=state.position[1:]), stride=2)
    with pytest.raises(TypeError, match=r"state\.k must have the dtype of k \(torch\.float64\)"):
        cached(q, k, v, empty(q.float(), 3), stride=2)


@pytest.mark.compile
# The compiler's own doing while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_it_compiles_whole_with_the_same_gradients(is_causal, masked):
    torch._dynamo.reset()
    inputs = leaves(*make_qkv(shape=(B, H, 200)))
    options = {"window": 8, "stride": 5, "is_causal": is_causal}
    options["key_mask"] = three_masked_rows(200) if masked else None
    compiled = torch.compile(strided_attention, fullgraph=True, backend="aot_eager")
    results = []
    for form in (compiled, strided_attention):
        y = form(*inputs, **options)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert_near(*results, 1e-12)
