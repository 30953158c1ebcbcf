"""Where a token stands, told to the model: nothing, added, concatenated, or rotated into q and k.

Axes: B batch, T time, D model width, K head width. Positions are integers (B, T) that count the
valid tokens before, so left padding, right padding and packing all number a sequence alike.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.ops.checks import check_divisible, check_positive
from subquad.ops.packing import packed_positions
from subquad.ops.rotation import Rotation

Positions = Int[Tensor, "B T"]


def token_positions(
    x: Float[Tensor, "B T D"],
    *,
    key_mask: Bool[Tensor, "B T"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    start: Int[Tensor, " B"] | None = None,
) -> Positions:
    """Number the tokens of ``x``, going on from ``start``; padded ones get any valid number."""
    if cu_seqlens is not None:
        return packed_positions(cu_seqlens)
    if key_mask is None:
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    else:
        positions = (key_mask.long().cumsum(1) - 1).clamp(min=0)
    return positions if start is None else positions + start[:, None]


def next_position(
    start: Int[Tensor, " B"], seq_len: int, key_mask: Bool[Tensor, "B T"] | None
) -> Int[Tensor, " B"]:
    """Return the position after a stretch of ``seq_len`` tokens."""
    return start + (seq_len if key_mask is None else key_mask.sum(1))


@runtime_checkable
class PositionEncoding(Protocol):
    """What a model asks: the width that is left for the token, and tokens with positions in."""

    def token_width(self, d_model: int) -> int:
        """Return how wide the tokens must come in for the result to be ``d_model`` wide."""
        ...

    def __call__(self, x: Float[Tensor, "B T E"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Put positions into tokens."""
        ...


class NoPositions(nn.Module):
    """Tell the model nothing about order; causal attention can still find some."""

    def token_width(self, d_model: int) -> int:
        """Return ``d_model``."""
        return d_model

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Return ``x``."""
        return x


class SinusoidalConcat(nn.Module):
    """Sines and cosines beside the token, as the linear transformer's released code has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = Sinusoid(width)

    def token_width(self, d_model: int) -> int:
        """Return ``d_model`` less the sinusoid's width.

        Raises:
            ValueError: if nothing is left.
        """
        if self.waves.width >= d_model:
            raise ValueError(
                f"position width must be below d_model ({d_model}), got {self.waves.width}"
            )
        return d_model - self.waves.width

    def forward(self, x: Float[Tensor, "B T E"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Concatenate the waves behind ``x``."""
        waves = self.waves(positions, x.dtype)
        return torch.cat([x, waves.expand(*x.shape[:2], -1)], dim=-1)


class SinusoidalAdd(nn.Module):
    """Sines and cosines added to the token (Vaswani et al. 2017)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.waves = Sinusoid(d_model)

    def token_width(self, d_model: int) -> int:
        """Return ``d_model``."""
        return d_model

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Add the waves to ``x``."""
        added: Tensor = x + self.waves(positions, x.dtype)
        return added


class LearnedPositions(nn.Module):
    """A learned vector a position, added; positions from ``max_len`` on are refused."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        check_positive("max_len", max_len)
        self.max_len = max_len
        self.embedding = nn.Embedding(max_len, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def token_width(self, d_model: int) -> int:
        """Return ``d_model``."""
        return d_model

    def forward(self, x: Float[Tensor, "B T D"], positions: Positions) -> Float[Tensor, "B T D"]:
        """Add each position's vector to ``x``.

        Raises:
            ValueError: if a position is ``max_len`` or above.
        """
        if not (positions.is_meta or torch.compiler.is_compiling()):
            last = int(positions.max())
            if last >= self.max_len:
                raise ValueError(f"positions must be below max_len ({self.max_len}), got {last}")
        added: Tensor = x + self.embedding(positions)
        return added


class Sinusoid(nn.Module):
    """Waves of width W: sine at even, cosine at odd channels, wavelengths 2 pi to 20,000 pi."""

    def __init__(self, width: int) -> None:
        super().__init__()
        check_positive("position width", width)
        check_divisible("position width", width, 2)
        self.width = width

    def forward(self, positions: Positions, dtype: torch.dtype) -> Float[Tensor, "B T W"]:
        """Return the waves at the given positions, in ``dtype``."""
        angles = position_angles(positions, self.width, dtype, base=10_000.0)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


class Rotary(nn.Module):
    """Angles of rotary positions for vectors of ``width`` numbers."""

    def __init__(self, width: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        check_positive("rotary width", width)
        check_divisible("rotary width", width, 2)
        self.width, self.base = width, base

    def forward(self, positions: Positions, dtype: torch.dtype) -> Rotation:
        """Return the rotation of tokens at ``positions``, in ``dtype`` but float32 or wider."""
        angles = position_angles(positions, self.width, dtype, base=self.base)
        return Rotation(angles.cos(), angles.sin())


def position_angles(
    positions: Positions, width: int, dtype: torch.dtype, *, base: float
) -> Float[Tensor, "B T P"]:
    """Return the angles of waves or rotations at ``positions``, in radians.

    In float32 or wider whatever ``dtype`` is: bf16 has 8 bits, too few to tell position 783 from
    784. For that reason the wavelengths are no buffer either: casting a model would round them.
    """
    inverse = inverse_wavelengths(width, base=base, device=positions.device)
    dtype = torch.promote_types(dtype, torch.float32)
    return positions.unsqueeze(-1).to(dtype) * inverse.to(dtype)


def inverse_wavelengths(
    width: int, *, base: float, device: torch.device | None = None
) -> Float[Tensor, " P"]:
    """Return base^(-2i / width) for i = 0 .. width / 2 - 1, in radians per position."""
    return torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(base) / width))
