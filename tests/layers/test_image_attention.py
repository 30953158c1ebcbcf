"""Attention over images: each layer against its equation, pixel by pixel; shifts, sizes, errors."""

import pytest
import torch

from helpers import assert_near
from subquad.layers.image_attention import (
    AxialImageAttention,
    GlobalImageAttention,
    LinearImageAttention,
    LocalImageAttention,
)

HEADS, CHANNELS, OUT = 2, 6, 8


def made(kind, **options):
    torch.manual_seed(0)
    return kind(CHANNELS, OUT, num_heads=HEADS, **options).double()


def image(height=5, width=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, CHANNELS, height, width, generator=generator, dtype=torch.float64)


def projected(layer, x):
    """Return queries, keys and values, each (B, heads, H, W, K)."""
    y = torch.einsum("oc,bchw->bohw", layer.qkv.weight, x)
    return [
        part.reshape(len(x), HEADS, -1, *x.shape[2:]).permute(0, 1, 3, 4, 2)
        for part in y.chunk(3, 1)
    ]


def by_definition(layer, x, embedding, sees=lambda i, j, a, b: True):
    """Return y[n] = sum_m softmax_m(q_n (k_m + r_nm) / sqrt(K)) v_m, a pixel after another."""
    q, k, v = projected(layer, x)
    height, width = x.shape[2:]
    pixels = [(i, j) for i in range(height) for j in range(width)]
    y = torch.zeros_like(v)
    for i, j in pixels:
        seen = [place for place in pixels if sees(i, j, *place)]
        keys = torch.stack([k[:, :, a, b] + embedding(a - i, b - j) for a, b in seen], 2)
        values = torch.stack([v[:, :, a, b] for a, b in seen], 2)
        scores = torch.einsum("bak,bamk->bam", q[:, :, i, j], keys) / keys.shape[-1] ** 0.5
        y[:, :, i, j] = torch.einsum("bam,bamk->bak", scores.softmax(-1), values)
    return y.permute(0, 1, 4, 2, 3).reshape(len(x), OUT, height, width)


def global_definition(layer, x):
    rows, columns = layer.rows, layer.columns

    def embedding(down, across):
        return rows.table[down + rows.length - 1] + columns.table[across + columns.length - 1]

    return by_definition(layer, x, embedding)


def local_definition(layer, x):
    reach = layer.window // 2

    def embedding(down, across):
        return torch.cat([layer.rows[down + reach], layer.columns[across + reach]])

    return by_definition(
        layer, x, embedding, lambda i, j, a, b: abs(a - i) <= reach and abs(b - j) <= reach
    )


def axial_definition(layer, x):
    across, down = layer.along_rows, layer.along_columns

    def of_row(_, offset):
        return across.offsets.table[offset + across.offsets.length - 1]

    def of_column(offset, _):
        return down.offsets.table[offset + down.offsets.length - 1]

    x = by_definition(across, x, of_row, lambda i, j, a, b: i == a)
    return by_definition(down, x, of_column, lambda i, j, a, b: j == b)


def linear_definition(layer, x):
    q, k, v = projected(layer, x)
    phi_q, phi_k = (torch.nn.functional.elu(part) + 1 for part in (q, k))
    weights = torch.einsum("baijk,bamnk->baijmn", phi_q, phi_k)
    y = torch.einsum("baijmn,bamnv->baijv", weights, v) / weights.sum((4, 5)).unsqueeze(-1)
    if layer.near is not None:
        padded = torch.nn.functional.pad(v, (0, 0, 1, 1, 1, 1))
        kernel = layer.near.weight[:, 0].reshape(HEADS, -1, 3, 3)
        height, width = x.shape[2:]
        for i in range(3):
            for j in range(3):
                near = padded[:, :, i : i + height, j : j + width]
                y = y + near * kernel[:, None, None, :, i, j]
    return y.permute(0, 1, 4, 2, 3).reshape(len(x), OUT, *x.shape[2:])


CASES = [
    pytest.param(GlobalImageAttention, {"grid": (5, 4)}, global_definition, id="global"),
    pytest.param(GlobalImageAttention, {"grid": (7, 9)}, global_definition, id="global, larger"),
    pytest.param(LocalImageAttention, {"window": 3}, local_definition, id="local"),
    pytest.param(LocalImageAttention, {"window": 7}, local_definition, id="local, whole image"),
    pytest.param(AxialImageAttention, {"grid": (5, 4)}, axial_definition, id="axial"),
    pytest.param(AxialImageAttention, {"grid": (6, 8)}, axial_definition, id="axial, larger"),
    pytest.param(LinearImageAttention, {}, linear_definition, id="linear"),
    pytest.param(LinearImageAttention, {"window": 3}, linear_definition, id="linear and near"),
]


@pytest.mark.parametrize("size", [(5, 4), (1, 3), (1, 1)])
@pytest.mark.parametrize(("kind", "options", "definition"), CASES)
def test_values_and_gradients_are_those_of_the_equation(kind, options, definition, size):
    layer, x = made(kind, **options), image(*size).requires_grad_()
    wanted = [x, *layer.parameters()]
    found, expected = layer(x), definition(layer, x)
    assert found.shape == (2, OUT, *size)
    assert_near(found, expected, 1e-12)
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weights).sum(), wanted)
    expected_gradients = torch.autograd.grad(
        (expected * weights).sum(), wanted, allow_unused=True, materialize_grads=True
    )
    scale = max(g.norm() for g in expected_gradients)
    for gradient, wanted_gradient in zip(gradients, expected_gradients, strict=True):
        assert (gradient - wanted_gradient).norm() < 1e-11 * scale


@pytest.mark.parametrize("size", [(9, 5), (17, 8)])
def test_blocks_are_seamless(size, monkeypatch):
    layer, x = made(LocalImageAttention, window=5), image(*size).requires_grad_()
    found = layer(x)
    weights = torch.randn_like(found)
    wanted = [x, *layer.parameters()]
    gradients = torch.autograd.grad((found * weights).sum(), wanted)
    monkeypatch.setattr("subquad.layers.local_image_attention.BLOCK", 99)
    expected = layer(x)
    assert_near(found, expected, 1e-12)
    assert_near(gradients, torch.autograd.grad((expected * weights).sum(), wanted), 1e-12)


def test_what_stands_outside_a_window_changes_nothing():
    layer, x = made(LocalImageAttention, window=3), image(7, 7)
    before = layer(x)[:, :, 2, 2]
    x[:, :, 4:], x[:, :, :, 4:] = 99.0, -99.0
    assert torch.equal(layer(x)[:, :, 2, 2], before)


def test_an_axial_layer_sees_all_pixels_and_a_line_only_its_own():
    layer, x = made(AxialImageAttention, grid=(4, 5)), image(4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 1, 2].sum(), x, retain_graph=True)
    assert (gradient[0].abs().sum(0) > 0).all()
    (gradient,) = torch.autograd.grad(layer.along_rows(x)[0, :, 1, 2].sum(), x)
    assert (gradient[0].abs().sum(0).sum(1) > 0).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("kind", "options", "definition"), CASES)
def test_other_dtypes_and_meta_tensors(kind, options, definition):
    layer, x = made(kind, **options), image()
    expected = layer(x)
    assert_near(layer.float()(x.float()), expected, 1e-5)
    assert_near(layer.bfloat16()(x.bfloat16()), expected, 3e-2)
    with torch.device("meta"):
        layer = kind(CHANNELS, OUT, num_heads=HEADS, **options)
    assert layer(image().to("meta").float()).shape == expected.shape


def test_output_channels_are_those_of_the_input_unless_given():
    assert LinearImageAttention(8).out_channels == 8
    assert AxialImageAttention(8, grid=(2, 2))(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LocalImageAttention, {"window": 4}, "window must be odd, got 4"),
        (LocalImageAttention, {"window": 0}, "window must be at least 1, got 0"),
        (LocalImageAttention, {"num_heads": 8}, "out_channels must be an even multiple of num_h"),
        (LinearImageAttention, {"window": 2}, "window must be odd, got 2"),
        (LinearImageAttention, {"num_heads": 3}, "out_channels must be divisible by 3, got 8"),
        (GlobalImageAttention, {"grid": (3,)}, r"grid must be height and width, got \(3,\)"),
        (AxialImageAttention, {"grid": (3, 0)}, "grid must be at least 1, got 0"),
        (AxialImageAttention, {"grid": (3, 3), "num_heads": 0}, "num_heads must be at least 1, go"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(CHANNELS, OUT, **options)


@pytest.mark.parametrize("kind", [GlobalImageAttention, AxialImageAttention])
def test_an_image_larger_than_the_tables_is_refused(kind):
    with pytest.raises(ValueError, match=r"x must be of at most 3 x 4 pixels, .* got 5 x 4"):
        made(kind, grid=(3, 4))(image())


def test_an_image_of_other_channels_is_refused(unhooked):
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 6, H, W\), got \(2, 5, 3, 3"):
        made(LocalImageAttention)(torch.zeros(2, 5, 3, 3).double())
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 6, H, W\), got \(6, 3, 3\)"):
        made(AxialImageAttention, grid=(3, 3))(torch.zeros(6, 3, 3).double())


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        (GlobalImageAttention, {"grid": (3, 3)}, ["qkv.weight", "rows.table", "columns.table"]),
        (LocalImageAttention, {"window": 3}, ["rows", "columns", "qkv.weight"]),
        (
            AxialImageAttention,
            {"grid": (3, 3)},
            [
                f"along_{line}.{name}"
                for line in ("rows", "columns")
                for name in ("qkv.weight", "offsets.table")
            ],
        ),
        (LinearImageAttention, {"window": 3}, ["qkv.weight", "near.weight"]),
    ],
)
def test_weights_have_the_names_that_saved_networks_have(kind, options, names):
    assert list(made(kind, **options).state_dict()) == names
    assert "num_heads=2" in repr(made(kind, **options))


@pytest.mark.parametrize(("kind", "options", "definition"), CASES)
def test_an_empty_batch_and_images_that_lie_otherwise_in_memory(kind, options, definition):
    layer, x = made(kind, **options), image()
    if kind is not LinearImageAttention:  # whose operator takes no empty tensor
        assert layer(x[:0]).shape == (0, OUT, 5, 4)
    expected = layer(x)
    assert_near(layer(x.contiguous(memory_format=torch.channels_last)), expected, 1e-12)
    assert_near(layer(x.mT.contiguous().mT), expected, 1e-12)
