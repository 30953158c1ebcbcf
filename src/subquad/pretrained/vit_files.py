"""Files of weights of other codes: read as tensors by name, written whole or not at all.

Nothing is unpickled: ``.npz`` with ``allow_pickle=False``, ``.bin``, ``.pth`` and ``.pt`` with
``weights_only=True``.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from subquad.files import atomic_path, atomic_write_bytes

TORCH_SUFFIXES = (".bin", ".pth", ".pt")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)
# Where training scripts put the weights in what they save.
_NESTED = ("state_dict", "model")

Choose = Callable[[Iterable[str]], Iterable[str]]


def read_tensors(path: Path, choose: Choose = lambda names: names) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Args:
        path: a file .npz, .safetensors, .bin, .pth or .pt; of the last three, what stands under
            "state_dict" or "model" if there is such a dict.
        choose: given all names of an .npz file, which of them to read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind, truncated or damaged, or holds anything but
            tensors.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"weights must be a file {', '.join(SUFFIXES)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a file, found none at {path}")
    with path.open("rb"):
        pass  # what may not be read is said here, and is not taken for damage below
    if path.suffix == ".npz":
        return _read_npz(path, choose)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} must be a whole .safetensors file: {error}") from error
    return _read_torch(path)


def _read_npz(path: Path, choose: Choose) -> dict[str, Tensor]:
    # Else numpy takes the file for a pickle, and says so.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be a whole .npz file, it is no zip archive")
    name = ""
    found = {}
    try:
        # Opened here: numpy leaves a file open that is damaged at the beginning.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in choose(archive.files):
                found[name] = array_as_tensor(archive[name])
    except (
        ValueError, TypeError, KeyError, EOFError, OSError, MemoryError, NotImplementedError,
        RuntimeError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        where = f", {name} cannot be read" if name else ""
        raise ValueError(f"{path} must be a whole .npz file of numbers{where}: {error}") from error
    return found


def array_as_tensor(array: Any) -> Tensor:
    """Return a numpy array as a tensor of its own.

    Raises:
        TypeError: if it is no array of numbers.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"an array is wanted, got {type(array).__name__}")
    if array.dtype == np.dtype("V2"):  # what numpy makes of bfloat16, which it does not know
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"numbers are wanted, got the dtype {array.dtype}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, EOFError,
        OSError, AttributeError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} must be a whole file of tensors alone, as torch.save writes it: {reason}"
        ) from error
    for name in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold tensors by name, got {type(found).__name__}")
    others = sorted(
        str(name)
        for name, x in found.items()
        if not (isinstance(name, str) and isinstance(x, Tensor))
    )
    if others:
        raise ValueError(
            f"{path} must hold tensors by name alone, got other things: {', '.join(others)}"
        )
    return found


def write_npz(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write an .npz file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
        ValueError: if a tensor is bfloat16, which numpy does not have.
    """
    for name, x in weights.items():
        if x.dtype == torch.bfloat16:
            raise ValueError(f"model must not be of bfloat16 to be written as .npz, {name} is")
    arrays = {name: x.detach().cpu().numpy() for name, x in weights.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_safetensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    tensors = {name: x.detach().contiguous() for name, x in weights.items()}
    atomic_write_bytes(path, save(tensors, metadata={"format": "pt"}))
