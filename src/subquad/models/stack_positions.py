"""Positions of a stack: which encoding a name means, and its vectors in a table for loops."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.layers.positions import (
    LearnedPositions,
    NoPositions,
    PositionEncoding,
    SinusoidalAdd,
    SinusoidalConcat,
)
from subquad.ops.checks import check_choice

PositionName = Literal[
    "none", "sinusoidal", "sinusoidal-concat", "learned", "rotary", "learned-rotary"
]
POSITIONS = ("none", "sinusoidal", "sinusoidal-concat", "learned", "rotary", "learned-rotary")

Place = Callable[[Tensor, Tensor], Tensor]  # tokens (B, E) and positions (B,) to (B, D)


def position_encoding(
    name: str, d_model: int, width: int | None, max_len: int | None
) -> PositionEncoding:
    """Build the position encoding of that name; rotary is the mixers' own and adds nothing here.

    Raises:
        ValueError: if there is none of that name, or "learned" has no ``max_len``.
    """
    check_choice("positions", name, POSITIONS)
    if name == "sinusoidal-concat":
        return SinusoidalConcat(d_model // 2 if width is None else width)
    if name == "sinusoidal":
        return SinusoidalAdd(d_model)
    if name in ("learned", "learned-rotary"):
        if max_len is None:
            raise ValueError("max_len must be given with learned positions, got None")
        return LearnedPositions(max_len, d_model)
    return NoPositions()


def position_table(encoding: PositionEncoding, empty: Float[Tensor, "1 T E"]) -> Place:
    """Return what ``encoding`` does to single tokens, all of its vectors computed at once.

    Args:
        encoding: adds a vector to tokens, appends one, or leaves them alone.
        empty: tokens of 0, one for each position from 0 on.
    """
    if isinstance(encoding, NoPositions):
        return lambda x_t, position: x_t
    positions = torch.arange(empty.shape[1], device=empty.device).unsqueeze(0)
    with torch.no_grad():
        table = encoding(empty, positions)[0]
    width = empty.shape[2]
    if table.shape[1] == width:
        return lambda x_t, position: x_t + table.index_select(0, position)
    appended = table[:, width:].contiguous()
    return lambda x_t, position: torch.cat([x_t, appended.index_select(0, position)], dim=1)
