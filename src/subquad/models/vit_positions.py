"""Where a patch stands, told to a Vision Transformer by vectors added to its tokens.

Axes: h and w the grid of patches, T = h w tokens, or one more with a class token, D width.
Source: Dosovitskiy et al. 2021, appendix "Positional embedding"; for the coordinates Liu et al.
2018, "CoordConv": a linear map of (y, x), which an image of any size has.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.models.vit_resample import Resampling, resample_grid
from subquad.ops.checks import check_choice, check_divisible

Grid = tuple[int, int]
PositionName = Literal["none", "learned", "learned-2d", "coordinates", "relative"]
POSITIONS: tuple[PositionName, ...] = (
    "none", "learned", "learned-2d", "coordinates", "relative"
)  # fmt: skip
Place = Literal["stem", "layers", "shared"]
PLACES: tuple[Place, ...] = ("stem", "layers", "shared")
STD = 0.02


class NoPositions(nn.Module):
    """Nothing is added."""

    def forward(self, grid: Grid, method: Resampling) -> None:
        """Return None."""

    def resample(self, grid: Grid, method: Resampling) -> None:
        """Do nothing."""


class LearnedTable(nn.Module):
    """A vector for each patch in raster order, the class token's before them if there is one."""

    def __init__(self, grid: Grid, d_model: int, *, has_class: bool) -> None:
        super().__init__()
        self.grid, self.has_class = grid, has_class
        count = grid[0] * grid[1] + has_class
        self.table = nn.Parameter(torch.empty(1, count, d_model))
        nn.init.normal_(self.table, std=STD)

    def forward(self, grid: Grid, method: Resampling) -> Float[Tensor, "1 T D"]:
        """Return the table, resampled if its grid is another; the class token's row stays."""
        if grid == self.grid:
            return self.table
        first, patches = torch.tensor_split(self.table, (int(self.has_class),), dim=1)
        patches = resample_grid(patches.reshape(1, *self.grid, -1), grid, method).flatten(1, 2)
        return torch.cat([first, patches], dim=1)

    @torch.no_grad()
    def resample(self, grid: Grid, method: Resampling) -> None:
        """Keep the table of another grid, as a new parameter."""
        self.table = nn.Parameter(self(grid, method).clone(), self.table.requires_grad)
        self.grid = grid


class LearnedAxes(nn.Module):
    """A vector of width D / 2 for each column and each row, laid side by side in this order."""

    def __init__(self, grid: Grid, d_model: int, *, has_class: bool) -> None:
        super().__init__()
        check_divisible("d_model", d_model, 2)
        self.grid = grid
        self.columns = nn.Parameter(torch.empty(1, 1, grid[1], d_model // 2))
        self.rows = nn.Parameter(torch.empty(1, grid[0], 1, d_model // 2))
        self.class_row: nn.Parameter | None = None
        if has_class:
            self.class_row = nn.Parameter(torch.empty(1, 1, d_model))
        for table in self.parameters():
            nn.init.normal_(table, std=STD)

    def forward(self, grid: Grid, method: Resampling) -> Float[Tensor, "1 T D"]:
        """Return all patches' vectors, each axis resampled alone."""
        columns, rows = self._axes(grid, method)
        both = torch.cat([columns.expand(-1, *grid, -1), rows.expand(-1, *grid, -1)], dim=3)
        patches = both.flatten(1, 2)
        return patches if self.class_row is None else torch.cat([self.class_row, patches], dim=1)

    @torch.no_grad()
    def resample(self, grid: Grid, method: Resampling) -> None:
        """Keep the tables of another grid, as new parameters."""
        columns, rows = (x.clone() for x in self._axes(grid, method))
        self.columns = nn.Parameter(columns, self.columns.requires_grad)
        self.rows = nn.Parameter(rows, self.rows.requires_grad)
        self.grid = grid

    def _axes(self, grid: Grid, method: Resampling) -> tuple[Tensor, Tensor]:
        return (
            resample_grid(self.columns, (1, grid[1]), method),
            resample_grid(self.rows, (grid[0], 1), method),
        )


class Coordinates(nn.Module):
    """A linear map of a patch's centre (y, x), each from -1 to 1 over the image; no table.

    So a grid of any size is known without resampling. A class token stands nowhere: 0 is added.
    """

    def __init__(self, d_model: int, *, has_class: bool) -> None:
        super().__init__()
        self.has_class = has_class
        self.proj = nn.Linear(2, d_model, bias=False)
        nn.init.normal_(self.proj.weight, std=STD)

    def forward(self, grid: Grid, method: Resampling) -> Float[Tensor, "1 T D"]:
        """Return all patches' vectors."""
        weight = self.proj.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        y, x = (
            (2 * torch.arange(side, device=weight.device, dtype=dtype) + 1) / side - 1
            for side in grid
        )
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(1, -1, 2)
        if self.has_class:
            centres = torch.cat([torch.zeros_like(centres[:, :1]), centres], dim=1)
        rows: Tensor = self.proj(centres.to(weight.dtype))
        return rows

    def resample(self, grid: Grid, method: Resampling) -> None:
        """Do nothing: the map serves every grid."""


def make_positions(
    name: PositionName, grid: Grid, d_model: int, *, has_class: bool, count: int | None = None
) -> nn.Module:
    """Return the module of one table, or a list of ``count``; "relative" adds nothing to tokens.

    Raises:
        ValueError: if ``name`` is unknown, or ``d_model`` is odd where it is halved.
    """
    check_choice("positions", name, POSITIONS)
    if count is not None:
        return nn.ModuleList(
            make_positions(name, grid, d_model, has_class=has_class) for _ in range(count)
        )
    if name == "learned":
        return LearnedTable(grid, d_model, has_class=has_class)
    if name == "learned-2d":
        return LearnedAxes(grid, d_model, has_class=has_class)
    if name == "coordinates":
        return Coordinates(d_model, has_class=has_class)
    return NoPositions()


def tables_of(positions: nn.Module) -> list[Any]:
    """Return the tables of a model: one, or one for each layer."""
    return list(positions) if isinstance(positions, nn.ModuleList) else [positions]


def rows_before(
    layer: int, positions: nn.Module, grids: list[Grid], place: Place, method: Resampling
) -> Float[Tensor, "1 T D"] | None:
    """Return what is added to the tokens of images of these grids before a layer, or None."""
    if place == "stem" and layer > 0:
        return None
    tables = tables_of(positions)
    table = tables[min(layer, len(tables) - 1)]
    if isinstance(table, NoPositions):
        return None
    known = {grid: table(grid, method) for grid in dict.fromkeys(grids)}
    rows: Tensor = known[grids[0]]
    return rows if len(grids) == 1 else torch.cat([known[grid] for grid in grids], dim=1)
