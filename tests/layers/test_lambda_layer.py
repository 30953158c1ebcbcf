"""The lambda layer: against the published package, its parts by hand, masks, grids and errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import assert_near, published_weights
from subquad.layers.lambda_layer import LambdaLayer
from subquad.ops.lambda_layer import apply_content, content_lambda, lambda_layer
from subquad.ops.linear_attention import linear_attention

ORACLES = Path(__file__).parents[1] / "oracles"


def from_lambda_networks(weights):
    """Return a state dict of lambda-networks 0.4.0 under our names."""
    projections = [weights[f"to_{name}.weight"].flatten(1) for name in "qkv"]
    ours = {"qkv.weight": torch.cat(projections)}
    ours |= {name: weight for name, weight in weights.items() if name.startswith("norm_")}
    if "rel_pos_emb" in weights:
        ours["table"] = weights["rel_pos_emb"].permute(2, 3, 0, 1)
    else:
        ours |= {"table": weights["pos_conv.weight"].squeeze(2), "bias": weights["pos_conv.bias"]}
    return ours


@pytest.mark.parametrize("form", ["rows", "fft", "convolution"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("global", {"grid": (7, 7)}),
        ("local-r5", {"window": 5, "bias": True}),
        ("local-r3-u4", {"window": 3, "bias": True, "intra_depth": 4}),
    ],
)
def test_the_published_package_computes_the_same(name, options, form):
    oracle = json.loads((ORACLES / f"lambda-networks-{name}.json").read_text())
    layer = LambdaLayer(24, 32, head_dim=6, form=form, **options).eval()
    weights = published_weights(oracle["keys"], oracle["fill_seed"])
    layer.load_state_dict(from_lambda_networks(weights))
    seed, shape = 1000 * oracle["fill_seed"] + 999, oracle["input_shape"]
    x = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    with torch.inference_mode():
        y = layer.double()(torch.from_numpy(x).double()).flatten()
    expected = torch.tensor(oracle["output_first_32"], dtype=torch.float64)
    assert len(y) == oracle["output_size"]
    assert_near(y[:32], expected, 1e-9)
    assert abs(y.norm() - oracle["output_norm"]) < 1e-9 * oracle["output_norm"]


def layer(**options):
    torch.manual_seed(0)
    options = {"head_dim": 3, "num_heads": 2, "batch_norm": False, **options}
    return LambdaLayer(6, 8, **options).double()


def image(height=5, width=4, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 6, height, width, generator=generator, dtype=torch.float64)


def test_content_is_a_mean_of_values_for_each_channel_of_the_keys():
    k = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -99.0]]).reshape(1, 1, 3, 2)
    v = torch.tensor([3.0, 6.0, 9.0]).reshape(1, 1, 3, 1)
    assert_near(content_lambda(k, v).flatten(), torch.tensor([6.0, 4.5]), 1e-6)


def test_content_is_linear_attention_without_its_denominator():
    """Keys softmaxed over positions are the mapped keys; queries are as they are."""
    q, k, v = (torch.randn(2, 1, 7, n).double() for n in (3, 3, 4))
    found = lambda_layer(q, k, v, None, grid=(7,))
    expected = linear_attention(q, k.softmax(2), v, feature_map=identity(), normalize=False)
    assert_near(found, expected, 1e-12)


def identity():
    from subquad.ops.feature_maps import identity

    return identity


def test_constant_queries_make_the_position_lambdas_a_convolution():
    lambdas = layer(window=3)
    q = torch.randn(1, 2, 1, 3).double().expand(2, 2, 20, 3)  # the same for all tokens
    v = torch.randn(2, 1, 20, 4).double()
    y = lambda_layer(q, torch.zeros(2, 1, 20, 3).double(), v, lambdas.table, grid=(5, 4))
    kernel = torch.einsum("hk,kxy->hxy", q[0, :, 0], lambdas.table[:, 0])
    picture = v.transpose(2, 3).reshape(2 * 4, 1, 5, 4)
    expected = nn.functional.conv2d(picture, kernel.unsqueeze(1), padding=1)
    expected = expected.reshape(2, 4, 2, 20).permute(0, 2, 3, 1)
    content = torch.einsum("bhnk,bv->bhnv", q, v.mean(2)[:, 0])  # equal keys: a mean
    assert_near(y, expected + content, 1e-12)


def test_a_shift_of_what_is_inside_shifts_the_output():
    lambdas = layer(window=3)
    x = torch.zeros(1, 6, 9, 9).double()
    x[:, :, 3:6, 3:6] = torch.randn(6, 3, 3).double()
    y, shifted = lambdas(x), lambdas(x.roll((1, 2), (2, 3)))
    assert_near(shifted, y.roll((1, 2), (2, 3)), 1e-12)


def test_a_second_slice_of_zeros_is_no_slice():
    one, two = layer(window=3), layer(window=3, intra_depth=2)
    q, k, v = one.widths
    with torch.no_grad():
        two.qkv.weight.zero_()
        for start, size, into in ((0, q, 0), (q, k, q), (q + k, v, q + 2 * k)):
            two.qkv.weight[into : into + size] = one.qkv.weight[start : start + size]
        two.table.copy_(torch.cat([one.table, torch.randn_like(one.table)], 1))
    assert_near(two(image()), one(image()), 1e-12)


def test_the_output_is_linear_in_queries_and_in_values():
    q, k, v = (torch.randn(2, h, 6, n).double() for h, n in ((3, 4), (1, 4), (1, 5)))
    table = torch.randn(4, 1, 11).double()
    y = lambda_layer(q, k, v, table, grid=(6,))
    assert_near(lambda_layer(2 * q, k, v, table, grid=(6,)), 2 * y, 1e-12)
    assert_near(lambda_layer(q, k, 3 * v, table, grid=(6,)), 3 * y, 1e-12)


OPTIONS = ({"window": 3}, {"grid": (5, 4)}, {"window": 5, "bias": True, "intra_depth": 2}, {})


@pytest.mark.parametrize("options", OPTIONS)
def test_lambdas_are_kept_and_applied(options):
    lambdas = layer(**options)
    context, x = image(), image().flip(3)
    kept = lambdas.summarise(context)
    assert_near(lambdas.apply_lambdas(context, kept), lambdas(context), 1e-12)
    assert lambdas.apply_lambdas(x, kept).shape == (2, 8, 5, 4)
    if not options:  # content alone goes with any grid
        assert lambdas.apply_lambdas(x[:, :, :3], kept).shape == (2, 8, 3, 4)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_effective_weights_times_values_are_the_output(options, masked):
    lambdas, x, rows = layer(**options), image(), [0, 7, 19]
    if lambdas.bias is not None:
        nn.init.zeros_(lambdas.bias)  # what it adds is no value's
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[:, rows] = True
    mask = mask if masked else None
    weights = lambdas.effective_weights(x, rows, key_mask=mask)
    values = lambdas.summarise(x, key_mask=mask).values
    found = torch.einsum("bhrum,bumv->bhvr", weights, values).flatten(1, 2)
    assert_near(found, lambdas(x, key_mask=mask).flatten(2)[:, :, rows], 1e-12)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_a_mask_hides_changes_nothing(options, batch_norm):
    lambdas = layer(**options, batch_norm=batch_norm)
    x = image()
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 11:], mask[1, :3] = False, False
    hidden = ~mask.reshape(2, 1, 5, 4)
    y = lambdas(x.masked_fill(hidden, 0), key_mask=mask)
    buffers = {name: b.clone() for name, b in lambdas.named_buffers()}
    other = layer(**options, batch_norm=batch_norm)
    broken = x.masked_fill(hidden, torch.nan).requires_grad_()
    again = other(broken, key_mask=mask)
    assert torch.equal(y, again)
    for name, b in other.named_buffers():
        assert torch.equal(b, buffers[name])  # the statistics of what is valid
    again.sum().backward()
    assert torch.isfinite(broken.grad).all()
    assert not broken.grad[hidden.expand_as(x)].any()
    assert all(torch.isfinite(p.grad).all() for p in other.parameters())
    if lambdas.table is not None:
        assert not y[hidden.expand_as(y)].any()


def test_the_context_of_a_row_without_valid_tokens_is_nothing():
    mask = torch.tensor([[True] * 20, [False] * 20])
    y = layer(window=3)(image(), key_mask=mask)
    assert not y[1].any()
    assert y[0].any()


def test_any_grid_with_a_window_and_smaller_ones_with_a_table():
    local, large, small = layer(window=3), layer(grid=(6, 7)), layer(grid=(5, 4))
    assert local(image(9, 2)).shape == (2, 8, 9, 2)
    small.load_state_dict({
        "qkv.weight": large.qkv.weight, "table": large.table[:, :, 1:-1, 3:-3],
    })  # fmt: skip
    assert_near(large(image()), small(image()), 1e-12)
    with pytest.raises(ValueError, match=r"of at most \(5, 4\), that of the table, got \(5, 5\)"):
        small(image(5, 5))


def test_a_table_is_resampled_on_request():
    lambdas = layer(grid=(5, 4), intra_depth=2)
    before = lambdas.table.detach().clone()
    lambdas.resample((9, 7))
    assert lambdas.table.shape == (3, 2, 17, 13)
    assert_near(lambdas.table[:, :, ::2, ::2], before, 1e-12)
    assert lambdas(image(9, 7)).shape == (2, 8, 9, 7)
    with pytest.raises(ValueError, match="resample must be called on a layer with a grid"):
        layer(window=3).resample((9, 7))
    with pytest.raises(ValueError, match=r"grid must have 2 axes, got \(9,\)"):
        lambdas.resample((9,))


@pytest.mark.parametrize("num_axes", [1, 3])
def test_grids_of_one_and_three_axes(num_axes):
    sizes = (3, 4, 2)[:num_axes]
    x = torch.randn(2, 6, *sizes).double()
    for options in ({"window": 3}, {"grid": sizes}, {}):
        assert layer(num_axes=num_axes, **options)(x).shape == (2, 8, *sizes)


def test_parameters_are_as_many_as_the_paper_counts():
    lambdas = LambdaLayer(64, window=23, bias=True)
    projections, norms = 64 * (64 + 16 + 16), 2 * (64 + 16)
    assert sum(p.numel() for p in lambdas.parameters()) == projections + norms + 23 * 23 * 16 + 16


def test_first_weights_are_the_papers():
    torch.manual_seed(0)
    lambdas = LambdaLayer(256, 256, window=23)
    q, k, v = lambdas.qkv.weight.split(lambdas.widths)
    for weight, expected in ((q, (16 * 256) ** -0.5), (k, 256**-0.5), (v, 256**-0.5)):
        assert abs(weight.std() / expected - 1) < 0.05
    assert abs(lambdas.table.std() - 1) < 0.05


def test_half_precision_and_autocast():
    lambdas = LambdaLayer(6, 8, head_dim=3, grid=(5, 4))
    x = image().float()
    expected = lambdas.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(lambdas(x), expected, 2e-2)
    assert_near(lambdas.bfloat16()(x.bfloat16()), expected, 3e-2)


def test_it_builds_without_memory():
    with torch.device("meta"):
        assert LambdaLayer(64, grid=(64, 64)).table.is_meta


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 4}, ValueError, "window must be odd, got 4"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": 3, "grid": (5, 4)}, ValueError, r"only one of window and grid .* got 3 and"),
        ({"grid": (5, 0)}, ValueError, r"grid must have 1 to 3 axes of at least 1 token"),
        ({"num_heads": 3}, ValueError, r"num_heads must divide out_channels \(8\), got 3"),
        ({"num_axes": 4}, ValueError, "num_axes must be 1, 2 or 3, got 4"),
        ({"bias": True}, ValueError, "bias must be False without window and grid, got True"),
        ({"head_dim": 2.0}, TypeError, "head_dim must be an int"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        layer(**options)


def test_inputs_that_do_not_fit_are_refused(unhooked):
    lambdas, x = layer(window=3), image()
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 6\) and 2 axes of tokens"):
        lambdas(x[:, :5])
    with pytest.raises(ValueError, match=r"x must have the shape \(B, 6\) and 2 axes of tokens"):
        lambdas(x.flatten(2))
    with pytest.raises(ValueError, match="key_mask must have shape"):
        lambdas(x, key_mask=torch.ones(2, 19, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must lie on the grid of the context, \(5, 4\), got"):
        lambdas.apply_lambdas(x[:, :, :3], lambdas.summarise(x))
    with pytest.raises(ValueError, match=r"rows must be from 0 to 19, got \[20\]"):
        lambdas.effective_weights(x, [20])
    with pytest.raises(ValueError, match=r"k and v must have the shapes \(B, U, M, K\)"):
        content_lambda(torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 4, 3))
    with pytest.raises(TypeError, match="k must be of floating point"):
        content_lambda(torch.zeros(2, 1, 5, 3).long(), torch.zeros(2, 1, 5, 3))


@pytest.mark.parametrize(
    ("shape", "grid", "tokens"),
    [
        ((1, 2, 6, 3), (2, 3), 6),  # another batch, which would be broadcast
        ((2, 2, 1, 3), (2, 3), 6),
        ((2, 2, 6, 1), (2, 3), 6),
        ((2, 6, 3), (2, 3), 6),
        ((2, 2, 6, 3), (2, 2), 4),
    ],
)
def test_queries_of_other_tokens_are_refused(shape, grid, tokens, unhooked):
    k, v = torch.zeros(2, 1, 6, 3), torch.zeros(2, 1, 6, 4)
    got = re.escape(f"N = {tokens} tokens of the grid, got {shape} and (2, 1, 6, 3)")
    with pytest.raises(ValueError, match=got):
        lambda_layer(torch.zeros(shape), k, v, None, grid=grid)


def test_a_lambda_is_not_applied_to_queries_of_other_examples(unhooked):
    with pytest.raises(ValueError, match=r"with the B, K = \(2, 3\) of the lambdas, got \(1, 2,"):
        apply_content(torch.zeros(1, 2, 6, 3), torch.zeros(2, 3, 4))
    k, v = torch.zeros(2, 1, 6, 3), torch.zeros(2, 1, 6, 4)
    with pytest.raises(TypeError, match=r"q must be of floating point, got torch\.int64"):
        lambda_layer(torch.zeros(2, 2, 6, 3).long(), k, v, None, grid=(6,))


@pytest.mark.parametrize("options", OPTIONS)
def test_effective_weights_of_a_row_without_valid_tokens_are_0_and_so_is_their_gradient(options):
    lambdas, x = layer(**options), image().requires_grad_()
    mask = torch.tensor([[True] * 20, [False] * 20])
    weights = lambdas.effective_weights(x, [0, 3], key_mask=mask)
    assert weights[0].any()
    assert not weights[1].any()
    weights.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1].any()
    assert all(torch.isfinite(p.grad).all() for p in lambdas.parameters() if p.grad is not None)


def test_lambdas_of_a_context_leave_the_statistics_of_queries_alone_and_the_other_way():
    lambdas, plain = layer(window=3, batch_norm=True), layer(window=3, batch_norm=True)
    context, x = image(), 10 * image() + 5
    lambdas.apply_lambdas(x, lambdas.summarise(context))
    assert int(lambdas.norm_q.num_batches_tracked) == 1
    assert int(lambdas.norm_v.num_batches_tracked) == 1
    plain(context)
    assert_near(lambdas.norm_v.running_var, plain.norm_v.running_var, 1e-12)


def test_a_table_of_one_token_is_that_of_offset_0():
    lambdas = layer(grid=(3, 3))
    middle = lambdas.table[:, :, 2:3, 2:3].detach().clone()
    lambdas.table.requires_grad_(False)
    lambdas.resample((1, 1))
    assert torch.equal(lambdas.table, middle)
    assert not lambdas.table.requires_grad


def test_a_grid_too_large_is_refused_before_anything_changes(unhooked):
    lambdas = layer(grid=(3, 3), batch_norm=True)
    for call in (lambdas, lambdas.summarise, lambda x: lambdas.effective_weights(x, [0])):
        with pytest.raises(ValueError, match="must lie on a grid of at most"):
            call(image())
    assert int(lambdas.norm_q.num_batches_tracked) == 0
    with pytest.raises(ValueError, match=r"form must be one of auto, .*; got 'bogus'"):
        layer(window=3, form="bogus")
    content = layer()
    with pytest.raises(ValueError, match=r"x must have the batch size of the context \(1\), got 2"):
        content.apply_lambdas(image(), content.summarise(image(batch=1)))


@pytest.mark.parametrize("form", ["rows", "fft"])
def test_a_second_derivative_is_right_or_refused(form):
    lambdas, exact = layer(window=3, form=form), layer(window=3, form="einsum")
    found = []
    for one in (lambdas, exact):
        x = image().requires_grad_()
        (slope,) = torch.autograd.grad(one(x).sum(), x, create_graph=True)
        if form == "fft" and one is lambdas:
            with pytest.raises(RuntimeError, match="differentiate twice"):
                slope.square().sum().backward()
            return
        found.append(torch.autograd.grad(slope.square().sum(), [x, *one.parameters()]))
    assert_near(found[0], found[1], 1e-10)
