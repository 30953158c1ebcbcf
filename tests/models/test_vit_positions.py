"""Positions of patches: what each module gives for its grid, another, and when resampled."""

import pytest
import torch

from helpers import assert_near
from subquad.models.vit_positions import (
    Coordinates,
    LearnedAxes,
    LearnedTable,
    NoPositions,
    make_positions,
    rows_before,
)
from subquad.models.vit_resample import METHODS, resample_grid

GRID, D = (2, 3), 8


@pytest.mark.parametrize("has_class", [False, True])
def test_a_learned_table_is_given_as_it_is_and_resampled_behind_the_class_row(has_class):
    positions = LearnedTable(GRID, D, has_class=has_class)
    assert positions.table.shape == (1, 6 + has_class, D)
    assert positions(GRID, "zoom") is positions.table
    patches = positions.table[:, has_class:].reshape(1, 2, 3, D)
    for method in METHODS:
        rows = positions((4, 4), method)
        assert torch.equal(rows[:, :has_class], positions.table[:, :has_class])
        assert torch.equal(
            rows[:, has_class:].reshape(1, 4, 4, D), resample_grid(patches, (4, 4), method)
        )


@pytest.mark.parametrize("has_class", [False, True])
def test_two_tables_lie_side_by_side_columns_first(has_class):
    positions = LearnedAxes(GRID, D, has_class=has_class)
    rows = positions(GRID, "zoom")
    assert rows.shape == (1, 6 + has_class, D)
    for y in range(2):
        for x in range(3):
            row = rows[0, has_class + 3 * y + x]
            assert torch.equal(row[:4], positions.columns[0, 0, x])
            assert torch.equal(row[4:], positions.rows[0, y, 0])
    grid = rows[:, has_class:].reshape(1, 2, 3, D)
    for method in METHODS:
        expected = resample_grid(grid, (5, 4), method).flatten(1, 2)
        assert_near(positions((5, 4), method)[:, has_class:], expected, 1e-6)


def test_coordinates_are_a_linear_map_of_each_centre():
    positions = Coordinates(D, has_class=True)
    rows, (down, across) = positions(GRID, "zoom"), positions.proj.weight.unbind(1)
    assert torch.equal(rows[0, 0], torch.zeros(D))
    for i, (y, x) in enumerate([(-0.5, -2 / 3), (-0.5, 0), (-0.5, 2 / 3), (0.5, -2 / 3)]):
        assert_near(rows[0, 1 + i], y * down + x * across, 1e-6)
    assert_near(Coordinates(D, has_class=False)((3, 3), "zoom")[0, 4], torch.zeros(D), 0)


@pytest.mark.parametrize("name", ["learned", "learned-2d", "coordinates", "none"])
@pytest.mark.parametrize("has_class", [False, True])
def test_a_resampled_module_gives_what_it_gave_for_that_grid(name, has_class):
    positions = make_positions(name, GRID, D, has_class=has_class)
    before = positions((3, 5), "bilinear")
    positions.resample((3, 5), "bilinear")
    after = positions((3, 5), "zoom")
    assert (before is None) if after is None else torch.equal(before, after)
    for parameter in positions.parameters():
        assert parameter.requires_grad
        assert parameter.is_leaf


def test_which_rows_are_added_where():
    grids = [(2, 3), (1, 1), (2, 3)]
    one = make_positions("learned", GRID, D, has_class=True)
    packed = rows_before(0, one, grids, "stem", "zoom")
    alone = [rows_before(0, one, [grid], "stem", "zoom") for grid in grids]
    assert torch.equal(packed, torch.cat(alone, dim=1))
    assert rows_before(1, one, grids, "stem", "zoom") is None
    assert torch.equal(rows_before(1, one, grids, "shared", "zoom"), packed)
    many = make_positions("learned", GRID, D, has_class=True, count=3)
    assert torch.equal(rows_before(2, many, [GRID], "layers", "zoom"), many[2].table)
    nothing = make_positions("relative", GRID, D, has_class=True, count=3)
    assert all(isinstance(table, NoPositions) for table in nothing)
    assert rows_before(0, nothing, grids, "layers", "zoom") is None


def test_what_does_not_fit_is_refused(unhooked):
    with pytest.raises(ValueError, match=r"positions must be one of none, learned, .* got '2d'"):
        make_positions("2d", GRID, D, has_class=True)
    with pytest.raises(ValueError, match="d_model must be divisible by 2, got 7"):
        make_positions("learned-2d", GRID, 7, has_class=True)
