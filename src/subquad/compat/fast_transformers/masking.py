"""Masks as objects. In all of them True means keep, as in ``key_mask`` everywhere in this library.

Axes: N batch, L queries, S keys.
"""

import abc
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.ops.checks import check_positive


class BaseMask(abc.ABC):
    """A boolean matrix in the forms that callers ask for; subclasses give ``bool_matrix``."""

    @property
    @abc.abstractmethod
    def bool_matrix(self) -> Bool[Tensor, "rows keys"]:
        """The mask itself, True = keep."""

    @property
    def shape(self) -> torch.Size:
        """Rows and keys."""
        return self.bool_matrix.shape

    @cached_property
    def float_matrix(self) -> Float[Tensor, "rows keys"]:
        """1 = keep, 0 = hide."""
        return self.bool_matrix.float()

    @cached_property
    def additive_matrix(self) -> Float[Tensor, "rows keys"]:
        """0 = keep, -inf = hide: what is added to the scores of a softmax."""
        return self.float_matrix.log()

    @cached_property
    def lengths(self) -> Int[Tensor, " rows"]:
        """How many keys each row keeps.

        Raises:
            ValueError: if a row keeps a key behind one that it hides.
        """
        kept = self.bool_matrix.sum(-1)
        prefix = torch.arange(self.shape[-1], device=kept.device) < kept.unsqueeze(-1)
        if not torch.equal(prefix, self.bool_matrix):
            raise ValueError(
                "mask must keep a prefix of each row to have lengths, got one that not"
            )
        return kept

    @cached_property
    def all_ones(self) -> bool:
        """Whether nothing is hidden."""
        return bool(self.bool_matrix.all())

    @cached_property
    def lower_triangular(self) -> bool:
        """Whether row i keeps keys 0 to i and no other."""
        rows, keys = self.shape
        return rows == keys and torch.equal(
            self.bool_matrix, torch.ones_like(self.bool_matrix).tril()
        )


class FullMask(BaseMask):
    """Any boolean matrix: ``FullMask(matrix)``; or one that keeps all: ``FullMask(N, M)``.

    Args:
        mask: a bool tensor, or an int, which counts as N.
        N: rows of a mask that keeps all.
        M: keys of it, by default N.
        device: where such a mask is made.

    Raises:
        TypeError: if the tensor is not bool, or neither a tensor nor a size is given.
    """

    def __init__(
        self,
        mask: Tensor | int | None = None,
        N: int | None = None,
        M: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(mask, Tensor):
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be bool with True = keep, got {mask.dtype}")
            self._matrix = mask.clone()
            return
        rows, keys = (N, M) if mask is None else (mask, N if M is None else M)
        if rows is None:
            raise TypeError("mask must be a bool tensor, or N must be given, got neither")
        check_positive("N", rows)
        check_positive("M", rows if keys is None else keys)
        # One number, seen as a matrix: the mask of a long sequence costs nothing.
        one = torch.ones(1, 1, dtype=torch.bool, device=device)
        self._matrix = one.expand(rows, rows if keys is None else keys)

    @property
    def bool_matrix(self) -> Bool[Tensor, "rows keys"]:
        """The mask itself, True = keep."""
        return self._matrix


class LengthMask(BaseMask):
    """Row i keeps the first ``lengths[i]`` keys.

    Args:
        lengths: how many tokens of each sequence count, (N,).
        max_len: keys L, by default the largest length; give it where the batch is padded further.
        device: by default that of ``lengths``.

    Raises:
        TypeError: if ``lengths`` is not of an integer dtype.
        ValueError: if it is no list of numbers, or a length is not from 0 to ``max_len``.
    """

    def __init__(
        self,
        lengths: Int[Tensor, " N"],
        max_len: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be of an integer dtype, got {lengths.dtype}")
        if lengths.dim() != 1 or len(lengths) == 0:
            raise ValueError(
                f"lengths must have shape (N,) with N >= 1, got {tuple(lengths.shape)}"
            )
        low, high = (int(x) for x in torch.aminmax(lengths))
        max_len = high if max_len is None else int(max_len)
        if low < 0 or high > max_len:
            raise ValueError(
                f"lengths must lie from 0 to max_len ({max_len}), got {low if low < 0 else high}"
            )
        lengths = lengths.to(lengths.device if device is None else device)
        self._matrix = torch.arange(max_len, device=lengths.device) < lengths.unsqueeze(1)

    @property
    def bool_matrix(self) -> Bool[Tensor, "rows keys"]:
        """The mask itself, True = keep."""
        return self._matrix


class TriangularCausalMask(BaseMask):
    """Row i keeps keys 0 to i. The matrix is made only if someone asks for it.

    Args:
        N: rows and keys.
        device: where the matrix would be made.
    """

    def __init__(self, N: int, device: torch.device | str = "cpu") -> None:
        check_positive("N", N)
        self._size, self._device = N, device

    @property
    def shape(self) -> torch.Size:
        """Rows and keys."""
        return torch.Size([self._size, self._size])

    @cached_property
    def _matrix(self) -> Tensor:
        return torch.ones(self.shape, dtype=torch.bool, device=self._device).tril()

    @property
    def bool_matrix(self) -> Bool[Tensor, "rows keys"]:
        """The mask itself, True = keep."""
        return self._matrix

    @cached_property
    def all_ones(self) -> bool:
        """True for a single token only."""
        return self._size == 1

    @cached_property
    def lower_triangular(self) -> bool:
        """True."""
        return True
