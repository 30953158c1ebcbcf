"""What the Triton kernels refuse and how they cut their work; needs no triton."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from subquad.kernels.triton import linear_attention as kernels
from subquad.kernels.triton._launch import kernel, products
from subquad.kernels.triton._spans import spans_of
from subquad.kernels.triton.plan import blocks, plan, plan_packed


def _forward(q, v):
    return kernels.forward(q, q, v, None, None, None, None, None, None, True, True)


def test_importing_the_module_does_not_import_triton():
    code = (
        "import sys; import subquad.kernels.triton.linear_attention; "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_triton_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"need the package triton: pip install 'subquad\[trit"):
        kernel("_step_kernel", "step")


def test_wrong_dtypes_sizes_and_devices_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1, 1, 2, 16)
    with pytest.raises(TypeError, match=r"v must be float32, bfloat16 or float16 .* got torch.f"):
        _forward(x, x.double())
    with pytest.raises(ValueError, match=r"v's last axis must be 1 to 256 long .* got 257"):
        _forward(x, torch.zeros(1, 1, 2, 257))
    with pytest.raises(ValueError, match=r"q must not be empty .* got shape \(1, 1, 0, 16\)"):
        _forward(x[:, :, :0], x[:, :, :0])
    with pytest.raises(ValueError, match=r"q must be on a GPU .* got cpu"):
        _forward(x, x)


def test_products_are_narrow_for_bfloat16_only():
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    bfloat, half, full = (torch.zeros(1, dtype=dtype) for dtype in dtypes)
    assert products(bfloat, bfloat) == (True, "widened")  # on a CPU
    assert products(half, half) == products(half, bfloat) == (False, "tf32")
    assert products(full, bfloat) == products(bfloat, full) == (False, "tf32x3")


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("seq_len", [1, 5, 64, 130, 4096, 65536])
@pytest.mark.parametrize("num_rows", [1, 8, 132, 4096])
def test_segments_cover_the_sequence_and_none_is_empty(num_rows, seq_len, narrow):
    for num_features, value_dim in ((16, 16), (64, 80), (256, 256)):
        cut = plan(num_rows, seq_len, num_features, value_dim, narrow=narrow, num_units=132)
        assert cut.segment % cut.chunk == 0
        assert (cut.num_segments - 1) * cut.segment < seq_len <= cut.num_segments * cut.segment
        assert num_rows < 132 or cut.num_segments == 1
        for whole in ("features", "values", "neither"):
            tile = blocks(cut, num_features, value_dim, narrow=narrow, whole=whole)
            assert tile.features * tile.values <= 8192
            assert whole != "features" or tile.features >= num_features
            assert whole != "values" or tile.values >= value_dim


@pytest.mark.parametrize("lengths", [(1,), (0, 7, 0), (5, 0, 70, 1, 400), (64, 64, 64), (3000, 2)])
@pytest.mark.parametrize(("num_heads", "num_units"), [(1, 132), (8, 132), (1, 1)])
def test_spans_cover_each_packed_sequence_and_no_border(lengths, num_heads, num_units):
    cut = plan_packed(lengths, num_heads, 64, 64, narrow=True, num_units=num_units)
    assert cut.segment % cut.chunk == 0
    borders = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    table, first = spans_of(borders, cut, torch.device("cpu"))
    assert table.dtype == first.dtype == torch.int32
    assert len(first) == len(lengths) + 1
    most = 0
    for index, (begin, end) in enumerate(pairwise(borders)):
        spans = table[first[index] : first[index + 1]].tolist()
        most = max(most, len(spans))
        assert spans[0][1] == begin
        assert spans[-1][2] == end
        assert all(a[2] == b[1] for a, b in pairwise(spans))
        assert all(x[0] == index and x[3:] == [begin, end] for x in spans)
        sizes = [x[2] - x[1] for x in spans]
        assert all(0 < size <= cut.segment for size in sizes) or sizes == [0] == [end - begin]
    assert first[-1] == len(table)
    assert most == cut.num_segments


def test_packed_sequences_are_cut_only_where_processors_would_wait():
    sizes = {"narrow": True, "num_units": 132}
    assert plan_packed([4096] * 33, 4, 64, 64, **sizes).num_segments == 1
    one = plan_packed([65536], 8, 64, 64, **sizes)
    assert one == plan(8, 65536, 64, 64, **sizes)
    mixed = plan_packed([65536, *[10] * 200], 8, 64, 64, **sizes)
    assert mixed.num_segments >= one.num_segments - 1


@pytest.mark.parametrize(
    ("borders", "error", "message"),
    [
        ([0.0, 2.0], TypeError, r"cu_seqlens must be int32 or int64, got torch.float32"),
        ([0], ValueError, r"cu_seqlens must have shape \(sequences \+ 1,\), got \(1,\)"),
        ([1, 2], ValueError, r"cu_seqlens must start with 0, .* end with T = 2, got \[1, 2\]"),
        ([0, 1], ValueError, r"cu_seqlens must start with 0, .* end with T = 2, got \[0, 1\]"),
        ([0, 2, 1, 2], ValueError, r"cu_seqlens must .* never fall .* got \[0, 2, 1, 2\]"),
    ],
)
def test_borders_that_do_not_fit_are_refused(borders, error, message, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.zeros(1, 1, 2, 16)
    nothing = (None,) * 6
    with pytest.raises(error, match=message):
        kernels.forward(x, x, x, *nothing, True, True, cu_seqlens=torch.tensor(borders))


def test_packed_sequences_need_a_batch_of_one_and_a_state_each(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    borders = torch.tensor([0, 1, 2])
    x, nothing = torch.zeros(2, 1, 2, 16), (None,) * 6
    with pytest.raises(ValueError, match="cu_seqlens needs a batch of size 1, got 2"):
        kernels.forward(x, x, x, *nothing, True, True, cu_seqlens=borders)
    x, state = x[:1], torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="a row for each of the 2 sequences, got 1"):
        kernels.forward(x, x, x, *nothing[:4], state, None, True, True, cu_seqlens=borders)
