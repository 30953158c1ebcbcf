"""States as values: measure, copy, reorder, save and load any NamedTuple of tensors.

A state is a NamedTuple of tensors, ints, None, and further NamedTuples or tuples of these.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from subquad.files import atomic_write_bytes
from subquad.ops.softmax_attention import KVCache

State = TypeVar("State")

FORMAT = "subquad-state"


def map_state(fn: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply ``fn`` to each tensor: ``map_state(torch.clone, state)`` forks a generation, and
    ``map_state(lambda x: x[rows], state)`` picks or repeats rows of the batch (beams).
    """
    mapped: State = _map(fn, state)
    return mapped


def state_size_bytes(state: object) -> int:
    """Count the bytes of the tensors in a state; of a ``KVCache`` only the filled part."""
    if isinstance(state, KVCache):
        filled = [x[:, :, : state.length] for x in (state.k, state.v)]
        if state.key_mask is not None:
            filled.append(state.key_mask[:, : state.length])
        return sum(x.numel() * x.element_size() for x in filled)
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, tuple):
        return sum(state_size_bytes(part) for part in state)
    return 0


def save_state(state: object, path: str | Path) -> None:
    """Write a state to one safetensors file, atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    tensors = {
        name: (x if isinstance(x, Tensor) else torch.tensor(x)).detach().contiguous().clone()
        for name, x in _leaves(state)
    }
    atomic_write_bytes(Path(path), save(tensors, metadata={"format": FORMAT}))


def load_state(path: str | Path, like: State) -> State:
    """Read a state back into the structure of ``like``, for instance ``model.init_state(1)``.

    Batch size and length come from the file; device and structure from ``like``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no state, or one of another structure.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a state file, found none at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            foreign = (file.metadata() or {}).get("format") != FORMAT
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    if foreign:
        raise ValueError(f"{path} is a safetensors file, but none that save_state wrote")
    device = next((x.device for _, x in _leaves(like) if isinstance(x, Tensor)), None)
    state: State = _fill(like, found, "", path, device)
    if found:
        raise ValueError(f"{path} holds {sorted(found)[0]}, which this state has not")
    return state


def _map(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    if isinstance(state, Tensor):
        return fn(state)
    if isinstance(state, tuple):
        return _rebuilt(state, [_map(fn, part) for part in state])
    return state


def _rebuilt(like: tuple[Any, ...], parts: list[Any]) -> Any:
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _leaves(state: object, prefix: str = "") -> Iterator[tuple[str, Tensor | int]]:
    if isinstance(state, Tensor | int):
        yield prefix, state
    elif isinstance(state, tuple):
        for name, part in _named(state):
            yield from _leaves(part, f"{prefix}.{name}" if prefix else name)


def _named(state: tuple[Any, ...]) -> list[tuple[str, Any]]:
    names = getattr(state, "_fields", None) or [str(n) for n in range(len(state))]
    return list(zip(names, state, strict=True))


def _fill(
    like: Any, found: dict[str, Tensor], prefix: str, path: Path, device: torch.device | None
) -> Any:
    if isinstance(like, tuple):
        parts = [
            _fill(part, found, f"{prefix}.{name}" if prefix else name, path, device)
            for name, part in _named(like)
        ]
        return _rebuilt(like, parts)
    value = found.pop(prefix, None)
    if value is None:
        if like is None:
            return None
        raise ValueError(f"{path} lacks {prefix}, which this state needs")
    if like is None:
        return value.to(device)
    expected = torch.as_tensor(like)
    if value.dtype != expected.dtype or value.dim() != expected.dim():
        raise ValueError(
            f"{path} must hold {prefix} as {expected.dtype} with {expected.dim()} axes, "
            f"got {value.dtype} with shape {tuple(value.shape)}"
        )
    return int(value) if isinstance(like, int) else value.to(device)
