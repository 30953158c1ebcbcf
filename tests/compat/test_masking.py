"""Mask objects: True keeps, in every form of every mask."""

import pytest
import torch

from subquad.compat.fast_transformers.masking import (
    BaseMask,
    FullMask,
    LengthMask,
    TriangularCausalMask,
)

RAGGED = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
MASKS = {
    "lengths": (LengthMask(torch.tensor([2, 1, 3, 0])), RAGGED),
    "lengths, longer": (
        LengthMask(torch.tensor([2, 0], dtype=torch.int32), max_len=4, device="cpu"),
        torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool(),
    ),
    "matrix": (FullMask(RAGGED), RAGGED),
    "matrix by name": (FullMask(mask=RAGGED), RAGGED),
    "square": (FullMask(3), torch.ones(3, 3).bool()),
    "square by name": (FullMask(N=3), torch.ones(3, 3).bool()),
    "rectangle": (FullMask(2, 3), torch.ones(2, 3).bool()),
    "rectangle by name": (FullMask(N=2, M=3, device="cpu"), torch.ones(2, 3).bool()),
    "triangle": (TriangularCausalMask(3), torch.ones(3, 3).tril().bool()),
    "triangle as a matrix": (
        FullMask(torch.ones(3, 3).tril().bool()),
        torch.ones(3, 3).tril().bool(),
    ),
    "triangle, cut": (
        FullMask(torch.ones(2, 3).tril().bool()),
        torch.ones(2, 3).tril().bool(),
    ),
    "one token": (TriangularCausalMask(1), torch.ones(1, 1).bool()),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_form_keeps_what_the_matrix_keeps(name):
    mask, expected = MASKS[name]
    assert isinstance(mask, BaseMask)
    assert torch.equal(mask.bool_matrix, expected)
    assert mask.shape == expected.shape
    assert torch.equal(mask.float_matrix, expected.float())
    hidden = torch.where(expected, 0.0, -torch.inf)
    assert torch.equal(mask.additive_matrix, hidden)
    assert torch.equal(mask.lengths, expected.sum(1))
    assert mask.all_ones == bool(expected.all())
    square = expected.shape[0] == expected.shape[1]
    triangle = square and torch.equal(expected, torch.ones(expected.shape).tril().bool())
    assert mask.lower_triangular == triangle


def test_a_mask_keeps_its_own_matrix():
    matrix = torch.ones(2, 2).bool()
    mask = FullMask(matrix)
    matrix[0, 0] = False
    assert mask.all_ones


def test_a_long_mask_costs_nothing_until_it_is_asked_for():
    length = 10**6  # its matrix would take a terabyte
    mask = TriangularCausalMask(length)
    assert mask.shape == FullMask(length).shape == (length, length)
    assert mask.lower_triangular
    assert not mask.all_ones


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FullMask(torch.ones(2, 2)), TypeError, "mask must be bool with True = keep"),
        (lambda: FullMask(), TypeError, "mask must be a bool tensor, or N must be given"),
        (lambda: FullMask(0), ValueError, "N must be at least 1, got 0"),
        (lambda: FullMask(2, 0), ValueError, "M must be at least 1, got 0"),
        (lambda: LengthMask(torch.ones(2)), TypeError, "lengths must be of an integer dtype"),
        (lambda: LengthMask(torch.ones(2).bool()), TypeError, "lengths must be of an integer"),
        (lambda: LengthMask(torch.tensor([5, 2]), 4), ValueError, r"0 to max_len \(4\), got 5"),
        (lambda: LengthMask(torch.tensor([5, -2])), ValueError, r"0 to max_len \(5\), got -2"),
        (lambda: TriangularCausalMask(0), ValueError, "N must be at least 1, got 0"),
        (lambda: TriangularCausalMask(2.0), TypeError, "N must be an int, got float"),
        (lambda: FullMask(~RAGGED).lengths, ValueError, "must keep a prefix of each row"),
    ],
)
def test_mask_errors(make, error, message, unhooked):
    with pytest.raises(error, match=message):
        make()


def test_lengths_are_one_list(unhooked):
    with pytest.raises(ValueError, match=r"lengths must have shape \(N,\) .* got \(1, 2\)"):
        LengthMask(torch.ones(1, 2).long())
