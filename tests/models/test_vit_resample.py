"""Grids of vectors at other sizes: each method beside the code that it is taken from."""

import pytest
import torch
from torch.nn import functional as F

from helpers import assert_near
from subquad.models.vit_resample import METHODS, resample_grid

GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 5), (6, 2)), ((5, 1), (2, 4)), ((4, 4), (1, 9))]


def table(grid, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *grid, 6, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_zoom_is_scipys_of_order_1(old, new):
    ndimage = pytest.importorskip("scipy.ndimage")
    x = table(old)
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = torch.tensor(ndimage.zoom(x[0].numpy(), factors, order=1))
    assert_near(resample_grid(x, new, "zoom")[0], expected, 1e-12)


def test_zoom_by_hand():
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]]).reshape(1, 2, 2, 1)
    y = resample_grid(x, (2, 4), "zoom")
    assert y[0, :, :, 0].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bilinear", {"mode": "bilinear", "antialias": False}),
        ("bicubic-antialias", {"mode": "bicubic", "antialias": True}),
        ("bicubic", {"mode": "bicubic"}),
    ],
)
def test_the_others_are_what_timm_and_transformers_call(method, options, old, new):
    x = table(old, torch.float32)
    expected = F.interpolate(x.permute(0, 3, 1, 2), size=new, **options).permute(0, 2, 3, 1)
    assert torch.equal(resample_grid(x, new, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_differ_and_keep_what_is_constant(method):
    x = table((6, 6))
    others = [resample_grid(x, (4, 5), m) for m in METHODS if m != method]
    assert all((resample_grid(x, (4, 5), method) - y).norm() > 1e-2 * y.norm() for y in others)
    assert resample_grid(x, (6, 6), method) is x
    assert_near(resample_grid(torch.ones(1, 3, 5, 2), (7, 4), method), torch.ones(1, 7, 4, 2), 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(method, dtype):
    x = table((4, 4), dtype)
    y = resample_grid(x, (7, 3), method)
    assert y.dtype == dtype
    assert torch.equal(y, resample_grid(x.float(), (7, 3), method).to(dtype))


def test_gradients_and_errors(unhooked):
    x = table((2, 3)).requires_grad_()
    for method in METHODS:
        assert torch.autograd.gradcheck(lambda x, m=method: resample_grid(x, (3, 2), m), (x,))
    with pytest.raises(ValueError, match=r"method must be one of zoom, bilinear, .* got 'cubic'"):
        resample_grid(x, (3, 2), "cubic")
