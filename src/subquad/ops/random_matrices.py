"""Random matrices whose rows are the directions of random features.

Of M rows in K dimensions, drawn

    IID          each from N(0, I_K), all independent;
    ORTHOGONAL   in blocks of K rows that are orthogonal to each other, each row still uniform in
                 direction (Haar), its length that of an independent Gaussian vector;
    HADAMARD     as ORTHOGONAL, but of products of Hadamard and random sign matrices, which are
                 drawn in O(K^2 log K) a block in place of O(K^3). Only nearly uniform in direction.

``regularized`` gives every row the length sqrt(K) in place of a Gaussian vector's.

A block is the Q of a Gaussian matrix G = Q R. Q is Haar only if the diagonal of R is positive,
which LAPACK does not see to; without the correction the estimator exp(w . x) is biased.
Sources: Choromanski et al. 2021, sections 2.4 and 3 ("Rethinking Attention with Performers");
Yu et al. 2016, "Orthogonal Random Features" (the Hadamard blocks); Mezzadri 2007 (the signs).
"""

import enum
import math

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.checks import check_positive

Generator = torch.Generator | None


class Rows(enum.Enum):
    """How the rows of a random matrix depend on each other; see the module's docstring."""

    IID = "iid"
    ORTHOGONAL = "orthogonal"
    HADAMARD = "hadamard"


def random_matrix(
    num_rows: int,
    width: int,
    *,
    rows: Rows = Rows.ORTHOGONAL,
    regularized: bool = False,
    generator: Generator = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "M K"]:
    """Draw M = ``num_rows`` directions in K = ``width`` dimensions.

    The draw is made on the CPU whatever the device, so a seed means one matrix everywhere.

    Args:
        num_rows: M; more than K make several blocks, of which the last may be cut.
        width: K.
        rows: how they are drawn.
        regularized: whether each has the length sqrt(K).
        generator: of the CPU; torch's global one by default.
        device: where the result shall be.
        dtype: of the draw and of the result, float32 or float64.

    Raises:
        TypeError: if a number is not an int, ``rows`` no ``Rows``, or ``dtype`` another.
        ValueError: if a number is below 1, or ``width`` no power of 2 where HADAMARD needs one.
    """
    check_matrix(num_rows, width, rows)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device="cpu")

    num_blocks = -(-num_rows // width)
    if rows is Rows.IID:
        drawn = gaussian(num_rows, width)
        if not regularized:
            return drawn.to(device)
        directions = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    elif rows is Rows.ORTHOGONAL:
        directions = haar(gaussian(num_blocks, width, width)).flatten(0, 1)[:num_rows]
    else:
        directions = _hadamard(num_blocks, width, generator, dtype).flatten(0, 1)[:num_rows]
    lengths: Tensor | float = math.sqrt(width)
    if not regularized:
        lengths = torch.linalg.vector_norm(gaussian(num_rows, width), dim=1, keepdim=True)
    scaled: Tensor = directions * lengths
    return scaled.to(device)


def check_matrix(num_rows: int, width: int, rows: Rows) -> None:
    """Check what ``random_matrix`` checks of its shape, for those who draw later."""
    check_positive("num_rows", num_rows)
    check_positive("width", width)
    if not isinstance(rows, Rows):
        raise TypeError(f"rows must be one of {', '.join(map(str, Rows))}, got {rows!r}")
    if rows is Rows.HADAMARD and width & (width - 1):
        raise ValueError(f"width must be a power of 2 for {rows}, got {width}")


def haar(gaussian: Float[Tensor, "N K K"]) -> Float[Tensor, "N K K"]:
    """Return orthogonal matrices, uniformly distributed if the given ones are Gaussian."""
    q, r = torch.linalg.qr(gaussian)
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1, 1).to(gaussian.dtype)
    rows: Tensor = (q * signs.unsqueeze(-2)).mT
    return rows


def hadamard_transform(x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N K"]:
    """Multiply the last axis by the orthogonal Hadamard matrix in O(K log K); K a power of 2."""
    width = x.shape[-1]
    half = 1
    while half < width:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        first, second = pairs.unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        half *= 2
    scaled: Tensor = x * width**-0.5
    return scaled


def _hadamard(
    num_blocks: int, width: int, generator: Generator, dtype: torch.dtype
) -> Float[Tensor, "N K K"]:
    """Return products (H D)^3 of Hadamard matrices H and random diagonal signs D."""
    block = torch.eye(width, dtype=dtype).expand(num_blocks, width, width)
    for _ in range(3):
        bits = torch.randint(2, (num_blocks, 1, width), generator=generator, device="cpu")
        block = hadamard_transform(block * (2 * bits - 1).to(dtype))
    return block
