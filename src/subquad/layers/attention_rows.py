"""Which token looks at which: the attention matrix that a mixer implies, row by row.

A mixer whose outputs are sums of values, y_i = sum_j w_ij v_j, implies the matrix of the w_ij, even
where it never makes it. It is the derivative of the outputs with respect to the values. So a row
costs a backward pass, exact to rounding, in whatever time the mixer itself takes: O(T) a row for
those that are linear in T. As many rows as a head has value channels share one pass.

Axes: B batch, H heads, T time, R chosen rows, D width of a token, V value width of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.checks import check_key_mask, check_tokens


class Attended(NamedTuple):
    """One layer's outputs before they are merged and projected, and the values they are made of."""

    outputs: Float[Tensor, "B H T V"]
    values: Float[Tensor, "B H T V"]


@runtime_checkable
class ImpliesAttention(Protocol):
    """A mixer whose outputs are sums of its values."""

    def attend(
        self, x: Float[Tensor, "B T D"], *, key_mask: Bool[Tensor, "B T"] | None = None
    ) -> Attended:
        """Return outputs and values by head; the outputs are linear in the values."""
        ...


@runtime_checkable
class HasParts(Protocol):
    """A mixer that is a sum of others, their heads side by side."""

    @property
    def parts(self) -> "tuple[ImpliesAttention, ...]":
        """Return the others."""
        ...


class AttentionRows(NamedTuple):
    """Rows of the implied matrix, and the values that they weigh."""

    weights: Float[Tensor, "B H R T"]
    values: Float[Tensor, "B H T V"]


def attention_rows(
    mixer: ImpliesAttention | HasParts,
    x: Float[Tensor, "B T D"],
    rows: Sequence[int] | Int[Tensor, " R"],
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
) -> AttentionRows:
    """Return the exact weights that the chosen outputs put on all values.

    ``weights @ values`` are the mixer's outputs in these rows, before it merges its heads. Weights
    sum to 1 where the mixer divides by their sum; with rotary positions some of a linear mixer's
    may be negative.

    Args:
        mixer: in evaluation mode, or without dropout.
        x: tokens.
        rows: which outputs, each from 0 to T - 1.
        key_mask: True = keep; hidden tokens have the weight 0.

    Raises:
        TypeError: if the mixer implies no such matrix (an LSTM), or a row is not an int.
        ValueError: if a shape or a row does not fit.
    """
    if isinstance(mixer, HasParts):
        parts = [attention_rows(part, x, rows, key_mask=key_mask) for part in mixer.parts]
        return AttentionRows(*(torch.cat(both, dim=1) for both in zip(*parts, strict=True)))
    if not isinstance(mixer, ImpliesAttention):
        raise TypeError(
            "mixer must be one whose outputs are sums of values (with a method attend), "
            f"got {type(mixer).__name__}"
        )
    check_tokens("x", x, x.shape[-1])
    check_key_mask(key_mask, x, *x.shape[:2])
    chosen = _checked_rows(rows, x.shape[1])
    with torch.enable_grad():
        # x asks for a gradient so that the values have one, however frozen the weights are.
        attended = mixer.attend(x.detach().requires_grad_(), key_mask=key_mask)
        width = attended.values.shape[-1]
        blocks = [
            _rows_of(attended, chosen[first : first + width])
            for first in range(0, len(chosen), width)
        ]
    return AttentionRows(torch.cat(blocks, dim=2), attended.values.detach())


def _rows_of(attended: Attended, rows: list[int]) -> Float[Tensor, "B H R T"]:
    """Take row r of each head through value channel r: at most as many rows as channels."""
    outputs, values = attended
    pick = torch.zeros_like(outputs)
    for channel, row in enumerate(rows):
        pick[:, :, row, channel] = 1
    (weights,) = torch.autograd.grad(outputs, values, pick, retain_graph=True)
    return weights[..., : len(rows)].mT.contiguous()


def _checked_rows(rows: Sequence[int] | Tensor, seq_len: int) -> list[int]:
    chosen = rows.tolist() if isinstance(rows, Tensor) else list(rows)
    if not chosen:
        raise ValueError("rows must name at least one row, got none")
    for row in chosen:
        if isinstance(row, bool) or not isinstance(row, int):
            raise TypeError(f"rows must be ints, got {type(row).__name__} {row!r}")
        if not 0 <= row < seq_len:
            raise ValueError(f"rows must lie from 0 to {seq_len - 1}, got {row}")
    return chosen
