"""Queries, keys and values for ``subquad approx``: a user's file, or random numbers.

A file is .npz or .safetensors with the arrays q, k and, if there is one, v, each of the shape (T,
width), (H, T, width) or (B, H, T, width). Nothing is unpickled.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.bench.approximation_options import RandomInput

# Added to the seed, for directions drawn of the same seed would be the queries, and no draw at all.
OTHER_SEED = 1_000_000_007
AXES = "(T, width), (H, T, width) or (B, H, T, width)"


class Tokens(NamedTuple):
    """q and k (B, H, T, K), and v (B, H, T, V) or None; float64."""

    q: Tensor
    k: Tensor
    v: Tensor | None


def random_tokens(given: RandomInput) -> Tokens:
    """Draw q and k of the wanted length and normal v, the same for the same ``given``."""
    generator = torch.Generator().manual_seed(given.seed + OTHER_SEED)
    shape = (1, given.heads, given.seq_len, given.head_dim)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return Tokens(given.norm * F.normalize(q, dim=-1), given.norm * F.normalize(k, dim=-1), v)


def read_tokens(path: Path) -> Tokens:
    """Read q, k and, if it is there, v.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such file, or its arrays do not fit.
    """
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"the file must be .npz or .safetensors, got {path.name}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    missing = [name for name in ("q", "k") if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "none"
        raise ValueError(f"{path.name} must hold arrays q and k, got {found}")
    return checked_tokens(arrays["q"], arrays["k"], arrays.get("v"))


def checked_tokens(q: Tensor, k: Tensor, v: Tensor | None = None) -> Tokens:
    """Return q, k and v with four axes and in float64, on the CPU.

    Raises:
        TypeError: if one does not hold floating-point numbers.
        ValueError: if shapes do not fit each other, or a number is not finite.
    """
    given = {"q": q, "k": k} | ({} if v is None else {"v": v})
    wide: dict[str, Tensor] = {}
    for name, x in given.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, got {x.dtype}")
        if not 2 <= x.dim() <= 4 or 0 in x.shape:
            raise ValueError(f"{name} must have the shape {AXES}, got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite, got NaN or an infinity")
        wide[name] = x.detach().cpu().double().reshape(*(1,) * (4 - x.dim()), *x.shape)
    q, k = wide["q"], wide["k"]
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "q and k must have as many heads and the same width, got "
            f"{tuple(q.shape)} and {tuple(k.shape)} for (B, H, T, K)"
        )
    values = wide.get("v")
    if values is not None and values.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must have as many heads and tokens as k, got {tuple(values.shape)} and "
            f"{tuple(k.shape)} for (B, H, T, width)"
        )
    return Tokens(q, k, values)


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    arrays: dict[str, Tensor] = {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for name in ("q", "k", "v"):
                if name in file.files:
                    arrays[name] = torch.from_numpy(np.ascontiguousarray(file[name]))
            if not arrays:
                arrays = {name: torch.empty(0) for name in file.files}
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error):
        raise ValueError(
            f"{path.name} must be a .npz file of plain numbers, got one that cannot be read so"
        ) from None
    return arrays


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError:
        raise ValueError(
            f"{path.name} must be a .safetensors file, got one that cannot be read so"
        ) from None
