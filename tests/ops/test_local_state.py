"""The rolling state of local attention: splits, slots, gradients, a file of it."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_near, draw_qkv, leaves, three_masked_rows
from subquad.ops.local_attention import (
    local_attention_cached,
    local_attention_quadratic,
    local_attention_step,
    local_state,
)
from subquad.ops.state import load_state, map_state, save_state, state_size_bytes

B, H, T, K, V = 3, 2, 23, 4, 5


def make_qkv(dtype=torch.float64, shape=(B, H, T), seed=0):
    return draw_qkv(shape, K, V, dtype, seed)


def empty(q, window, num_global=0):
    return local_state(len(q), H, K, V, q, window=window, num_global=num_global)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(1, T - 1), max_size=T - 1, unique=True).map(sorted),
    masked=st.sets(st.integers(0, T - 1)),
    window=st.sampled_from([1, 2, 5, 40]),
    num_global=st.sampled_from([0, 1, 4]),
    in_place=st.booleans(),
)
def test_any_split_over_the_state_gives_one_pass(cuts, masked, window, num_global, in_place):
    """``masked`` names the stretches that come with a key_mask; single tokens without are steps."""
    q, k, v = make_qkv()
    mask, outputs = three_masked_rows(T), []
    state = empty(q, window, num_global)
    size = state_size_bytes(state)
    for a, b in pairwise([0, *cuts, T]):
        if a not in masked:
            mask[:, a:b] = True
        before, kept = state, map_state(torch.clone, state)
        if b == a + 1 and a not in masked:
            token = (x[:, :, a] for x in (q, k, v))
            y, state = local_attention_step(*token, state, in_place=in_place)
            y = y.unsqueeze(2)
        else:
            stretch = (x[:, :, a:b] for x in (q, k, v))
            key_mask = mask[:, a:b] if a in masked else None
            y, state = local_attention_cached(*stretch, state, key_mask=key_mask, block_size=2)
        if not in_place:
            assert all(map(torch.equal, kept, before))
        assert state_size_bytes(state) == size
        outputs.append(y)
    assert torch.equal(state.position, mask.sum(1))
    expected = local_attention_quadratic(
        q, k, v, window=window, is_causal=True, num_global=num_global, key_mask=mask
    )
    assert_near(torch.cat(outputs, dim=2), expected, 1e-12)


def test_slots_that_no_token_has_reached_are_0():
    stretch = [x[:, :, :3] for x in make_qkv()]
    mask = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    _, state = local_attention_cached(*stretch, empty(stretch[0], 4, 5), key_mask=mask)
    for table in state[:4]:
        filled = table.ne(0).all(-1).all(1)
        assert torch.equal(filled.sum(1), mask.sum(1))
        assert table[~filled[:, None].expand(table.shape[:3])].eq(0).all()


def test_a_step_in_place_writes_into_the_tables_that_it_got():
    q, k, v = (x[:, :, 0] for x in make_qkv())
    state = empty(q, 4, 1)
    _, new = local_attention_step(q, k, v, state, in_place=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(new[:4], state[:4], strict=True))
    _, newer = local_attention_step(q, k, v, new)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(new[:4], newer[:4], strict=True))


def test_gradients_flow_through_the_state():
    results = []
    for split in (False, True):
        inputs = leaves(*make_qkv())
        options = {"window": 6, "num_global": 2}
        if split:
            _, state = local_attention_cached(
                *(x[:, :, :9] for x in inputs), empty(inputs[0], 6, 2)
            )
            _, state = local_attention_step(*(x[:, :, 9] for x in inputs), state)
            y, _ = local_attention_cached(*(x[:, :, 10:] for x in inputs), state)
        else:
            y = local_attention_quadratic(*inputs, is_causal=True, **options)[:, :, 10:]
        results.append(torch.autograd.grad(y.square().sum(), inputs))
    assert_near(*results, 1e-11)


def test_a_state_is_saved_and_loaded(tmp_path):
    inputs, path = make_qkv(), tmp_path / "state.safetensors"
    for num_global in (0, 2):
        _, state = local_attention_cached(*inputs, empty(inputs[0], 6, num_global))
        save_state(state, path)
        loaded = load_state(path, like=empty(inputs[0][:1], 6, num_global))
        assert all(map(torch.equal, loaded, state))
