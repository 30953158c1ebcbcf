"""What the Triton kernels refuse and how they cut their work; needs no triton."""

import subprocess
import sys

import pytest
import torch

from subquad.kernels.triton import linear_attention as kernels
from subquad.kernels.triton._launch import kernel, products
from subquad.kernels.triton.plan import blocks, plan


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
