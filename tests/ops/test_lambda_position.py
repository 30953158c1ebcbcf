"""Position lambdas: every form against the definition, and small cases by hand."""

import math

import pytest
import torch

from helpers import assert_near
from subquad.ops import lambda_fft, lambda_position
from subquad.ops.lambda_fft import padded_sizes
from subquad.ops.lambda_position import (
    FORMS,
    pair_embeddings,
    pair_rows,
    position_interactions,
    position_interactions_rows,
)

CASES = {
    # grid, axes of the table, intra-depth
    "one token": ((1,), (1,), 1),
    "local, one axis": ((5,), (3,), 1),
    "global, one axis": ((6,), (11,), 2),
    "a table longer than needed": ((5,), (13,), 1),
    "global": ((4, 5), (7, 9), 2),
    "local": ((4, 5), (3, 5), 1),
    "a window larger than the grid": ((3, 4), (23, 23), 1),
    "one token of one axis": ((6, 1), (3, 1), 3),
    "three axes": ((3, 4, 2), (3, 5, 3), 2),
}


def draw(grid, sizes, depth, dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(0)
    tokens = math.prod(grid)
    shapes = ((batch, 3, tokens, 4), (batch, depth, tokens, 5), (4, depth, *sizes))
    q, v, table = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [x.to(dtype).requires_grad_() for x in (q, v, table)]


def output_and_gradients(inputs, grid, form):
    y = position_interactions(*inputs, grid=grid, form=form)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, inputs, weight.to(y.dtype))]


@pytest.mark.parametrize("form", [form for form in FORMS if form != "quadratic"])
@pytest.mark.parametrize("case", CASES)
def test_every_form_is_the_definition(case, form):
    grid, *sizes = CASES[case]
    inputs = draw(grid, *sizes)
    expected = output_and_gradients(inputs, grid, "quadratic")
    assert_near(output_and_gradients(inputs, grid, form), expected, 1e-10)


@pytest.mark.parametrize("form", ["rows", "fft"])
def test_float32_is_near_the_definition_in_float64(form):
    grid, sizes = (16, 16), (31, 31)
    expected = output_and_gradients(draw(grid, sizes, 1), grid, "einsum")
    actual = output_and_gradients(draw(grid, sizes, 1, torch.float32), grid, form)
    assert actual[0].dtype == torch.float32
    assert_near(actual, expected, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_by_hand(form):
    # One axis of three tokens; offsets -1, 0, 1 have the embeddings 10, 1, 100.
    table = torch.tensor([[[10.0, 1.0, 100.0]]])
    v = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    q = torch.tensor([1.0, 1.0, 2.0]).reshape(1, 1, 3, 1)
    y = position_interactions(q, v, table, grid=(3,), form=form)
    # Token 0 sees 1 and the token after it, 2, by offset 1; and so on.
    expected = [1 + 100 * 2, 10 * 1 + 2 + 100 * 3, 2 * (10 * 2 + 3)]
    assert_near(y.flatten(), torch.tensor(expected).float(), 1e-6)


def test_the_last_axis_of_the_grid_runs_fastest():
    table = torch.zeros(1, 1, 3, 5)
    table[0, 0, 2, 1] = 1  # one row down, one column to the left
    v = torch.arange(6.0).reshape(1, 1, 6, 1)
    q = torch.ones(1, 1, 6, 1)
    for form in FORMS:
        y = position_interactions(q, v, table, grid=(2, 3), form=form)
        assert_near(y.reshape(2, 3), torch.tensor([[0.0, 3, 4], [0, 0, 0]]), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_some_rows_of_the_embeddings_are_those_of_all(case):
    grid, *sizes = CASES[case]
    table = draw(grid, *sizes)[2]
    rows = torch.arange(math.prod(grid)).flip(0)[::2]
    assert torch.equal(pair_rows(table, grid, rows), pair_embeddings(table, grid)[rows])


def test_some_rows_do_not_make_all_pairs():
    grid = (1000, 1000)  # all pairs would be 10^12
    table = torch.arange(9.0).reshape(1, 1, 3, 3)
    (row,) = pair_rows(table, grid, torch.tensor([1000 * 7 + 999]))[..., 0, 0].reshape(-1, *grid)
    assert row[6:9, 998:].tolist() == [[0, 1], [3, 4], [6, 7]]
    assert row.count_nonzero() == 5


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_the_rows_worked_on_at_once_change_nothing(block_size):
    grid, *sizes = CASES["global"]
    q, v, table = draw(grid, *sizes)
    y = position_interactions_rows(q, v, table, grid=grid, block_size=block_size)
    expected = position_interactions(q, v, table, grid=grid, form="einsum")
    assert_near(y, expected, 1e-12)
    weight = torch.randn_like(y)
    assert_near(
        torch.autograd.grad(y, (q, v, table), weight),
        torch.autograd.grad(expected, (q, v, table), weight),
        1e-12,
    )


def test_the_slices_of_a_transform_change_nothing(monkeypatch):
    grid, *sizes = CASES["global"]
    inputs = draw(grid, *sizes)
    expected = output_and_gradients(inputs, grid, "fft")
    monkeypatch.setattr(lambda_fft, "SLICE", 1)
    assert_near(output_and_gradients(inputs, grid, "fft"), expected, 1e-12)


def test_gradients_of_the_transform_are_those_of_finite_differences():
    grid, *sizes = CASES["local"]
    inputs = draw(grid, *sizes, batch=1)
    assert torch.autograd.gradcheck(
        lambda *x: position_interactions(*x, grid=grid, form="fft"), inputs
    )


def test_no_offset_wraps_around():
    for length in range(1, 40):
        for size in range(1, 2 * length, 2):
            assert padded_sizes((length,), (size,))[0] >= length + size // 2
    assert padded_sizes((64, 64), (127, 23)) == (128, 80)


def test_an_empty_batch_and_half_precision():
    grid, *sizes = CASES["global"]
    empty = [x.detach() for x in draw(grid, *sizes, batch=0)]
    for form in ("rows", "fft"):
        assert position_interactions(*empty, grid=grid, form=form).shape == (0, 3, 20, 5)
        inputs = draw(grid, *sizes, torch.bfloat16)
        y, *grads = output_and_gradients(inputs, grid, form)
        assert {x.dtype for x in (y, *grads)} == {torch.bfloat16}
        wide = [x.detach().double().requires_grad_() for x in inputs]
        assert_near(y, position_interactions(*wide, grid=grid, form="quadratic"), 8e-3)


@pytest.mark.parametrize(
    ("batch", "side", "expected"),
    [(1, 4, "rows"), (1, 64, "fft"), (1, 16, "fft"), (32, 16, "rows")],
)
def test_auto_takes_products_where_tokens_are_few_for_the_batch(monkeypatch, batch, side, expected):
    def fail(*inputs, grid):
        raise AssertionError

    other = {"rows": "fft", "fft": "rows"}[expected]
    monkeypatch.setitem(lambda_position._FORMS, other, fail)
    q, v = torch.zeros(batch, 4, side * side, 16), torch.zeros(batch, 1, side * side, 16)
    y = position_interactions(q, v, torch.zeros(16, 1, 23, 23), grid=(side, side))
    assert y.shape == q.shape
    with pytest.raises(AssertionError):
        position_interactions(q, v, torch.zeros(16, 1, 23, 23), grid=(side, side), form=other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"form": "fast"}, ValueError, "form must be among auto, quadratic, .*, got 'fast'"),
        ({"grid": (3, 5)}, ValueError, r"with the N = 15 tokens of the grid, got \(2, 3, 20, 4\)"),
        ({"grid": (1, 1, 4, 5)}, ValueError, r"grid must have 1 to 3 axes .*, got \(1, 1, 4, 5\)"),
        ({"grid": (0, 5)}, ValueError, r"grid must have 1 to 3 axes of at least 1 token"),
        ({"v": torch.zeros(1, 2, 20, 5)}, ValueError, r"v must have the batch size of q \(2\)"),
        ({"table": torch.zeros(4, 1, 7, 9)}, ValueError, r"\(K, U\) = \(4, 2\) and 2 axes"),
        ({"table": torch.zeros(4, 2, 7)}, ValueError, r"and 2 axes of offsets, got \(4, 2, 7\)"),
        ({"table": torch.zeros(4, 2, 6, 9)}, ValueError, r"odd axes of offsets, got \(6, 9\)"),
        ({"q": torch.zeros(2, 3, 20, 4).long()}, TypeError, "q must be of floating point"),
        ({"v": torch.zeros(2, 2, 20, 5, device="meta")}, ValueError, "v must be on the device of"),
    ],
)
def test_errors(change, error, message, unhooked):
    grid, *sizes = CASES["global"]
    q, v, table = (x.detach().float() for x in draw(grid, *sizes))
    call = {"q": q, "v": v, "table": table, "grid": grid, **change}
    with pytest.raises(error, match=message):
        position_interactions(call.pop("q"), call.pop("v"), call.pop("table"), **call)
