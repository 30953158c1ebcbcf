"""States are values: counted, copied, reordered, written and read back."""

import resource
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from subquad.ops.linear_state import LinearState, linear_state
from subquad.ops.softmax_attention import KVCache, kv_cache, softmax_attention_cached
from subquad.ops.state import load_state, map_state, save_state, state_size_bytes


class Nested(NamedTuple):
    layers: tuple[Any, ...]
    position: torch.Tensor
    note: None = None


def filled_cache(key_mask=None, length=5):
    k, v = torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 6)
    return softmax_attention_cached(k, k, v, kv_cache(2, 3, 4, 6, like=k), key_mask=key_mask)[1]


def make_state(key_mask=None):
    linear = LinearState(torch.randn(2, 3, 4, 6), torch.rand(2, 3, 4))
    return Nested((linear, filled_cache(key_mask)), torch.tensor([5, 5]))


def empty_state():
    ones = torch.ones(1)
    layers = (linear_state(1, 3, 4, 6, like=ones), kv_cache(1, 3, 4, 6, like=ones))
    return Nested(layers, torch.zeros(1, dtype=torch.long))


def leaves_of(state):
    if isinstance(state, tuple):
        return [leaf for part in state for leaf in leaves_of(part)]
    return [state]


def assert_same(a, b):
    assert type(a) is type(b)
    for x, y in zip(leaves_of(a), leaves_of(b), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


def test_bytes_are_those_of_what_is_filled():
    linear = linear_state(8, 8, 32, 32, like=torch.ones(1, dtype=torch.bfloat16))
    assert state_size_bytes(linear) == 8 * 8 * (32 * 32 + 32) * 4
    assert state_size_bytes(filled_cache()) == 2 * 3 * 5 * (4 + 6) * 4
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert state_size_bytes(filled_cache(mask)) == 2 * 3 * 5 * (4 + 6) * 4 + 2 * 5
    roomy = KVCache(torch.ones(2, 3, 9, 4), torch.ones(2, 3, 9, 6), torch.ones(2, 9).bool(), 5)
    assert state_size_bytes(roomy) == state_size_bytes(filled_cache(mask))
    assert state_size_bytes(make_state()) == 2 * 3 * (24 + 4) * 4 + 2 * 3 * 5 * 10 * 4 + 16
    assert state_size_bytes((None, 3)) == 0


def test_a_fork_shares_nothing():
    state = make_state()
    fork = map_state(torch.clone, state)
    assert_same(state, fork)
    for x, y in zip(leaves_of(state), leaves_of(fork), strict=True):
        if isinstance(x, torch.Tensor):
            assert x.data_ptr() != y.data_ptr()


def test_rows_can_be_picked_and_repeated():
    state = make_state(torch.rand(2, 5) < 0.5)
    beams = map_state(lambda x: x[[1, 1, 0]], state)
    assert isinstance(beams.layers[1], KVCache)
    assert beams.layers[1].length == 5
    for x, y in zip(leaves_of(state), leaves_of(beams), strict=True):
        if isinstance(x, torch.Tensor):
            assert torch.equal(y, torch.stack([x[1], x[1], x[0]]))


@pytest.mark.parametrize("masked", [False, True])
def test_a_state_comes_back_from_its_file(tmp_path, masked):
    state = make_state(torch.rand(2, 5) < 0.5 if masked else None)
    save_state(state, tmp_path / "state.safetensors")
    assert_same(load_state(str(tmp_path / "state.safetensors"), like=empty_state()), state)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_view_and_a_gradient_do_not_hinder_saving(tmp_path):
    kv = torch.randn(4, 2, 6, requires_grad=True).permute(1, 0, 2)[None]
    state = LinearState(kv, kv[..., 0])
    save_state(state, tmp_path / "s")
    loaded = load_state(tmp_path / "s", like=linear_state(1, 1, 1, 1, like=kv.detach()))
    assert torch.equal(loaded.kv, kv)
    assert not loaded.kv.requires_grad


def test_files_that_are_no_state_are_refused(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(FileNotFoundError, match=f"path must be a state file, found none at {path}"):
        load_state(path, like=empty_state())
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_state(tmp_path, like=empty_state())
    save_state(make_state(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[:7], whole[:100], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path} is no whole safetensors file"):
            load_state(path, like=empty_state())
    save_file({"position": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"{path} .* none that save_state wrote"):
        load_state(path, like=empty_state())


def test_states_of_another_structure_are_refused(tmp_path):
    path = tmp_path / "state"
    state = make_state()
    save_state(state, path)
    with pytest.raises(ValueError, match=rf"{path} lacks layers\.2\.kv, which this state needs"):
        load_state(path, like=Nested((*state.layers, state.layers[0]), state.position))
    with pytest.raises(ValueError, match=rf"{path} holds layers\.1\.\w+, which this state has not"):
        load_state(path, like=Nested(state.layers[:1], state.position))
    double = Nested(map_state(torch.Tensor.double, state.layers), state.position)
    with pytest.raises(
        ValueError, match=r"must hold layers\.0\.kv as torch\.float64 with 4 axes, "
    ):
        load_state(path, like=double)
    flat = state._replace(position=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"with 2 axes, got torch\.int64 with shape \(2,\)"):
        load_state(path, like=flat)
    number = state._replace(position=7)
    with pytest.raises(ValueError, match=r"must hold position as torch\.int64 with 0 axes, got"):
        load_state(path, like=number)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "state"
    save_state(make_state(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path} cannot be written: File too large"):
            save_state(make_state(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
