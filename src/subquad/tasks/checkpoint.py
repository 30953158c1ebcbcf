"""One file holds all that a training run needs to go on: checkpoint.safetensors. Never a pickle.

Tensors: ``model.<name>``, ``optimizer.<key>.<parameter>``, ``optimizer_number.<key>.<parameter>``,
``average.<name>`` and ``average_updates`` (only where the weights are averaged), ``rng.cpu``,
``rng.cuda``, ``losses``. The header's metadata holds format, version, a checksum of
the tensors and, as JSON, the step, the settings that must not change and the progress that may.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from subquad.files import atomic_write_bytes
from subquad.tasks.averaging import WeightAverage

FORMAT = "subquad-training-checkpoint"
VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file says.

    Args:
        step: updates of the weights done so far.
        settings: JSON values, by group and name, that a run which goes on must share.
        progress: JSON values that tell how far the run got.
        tensors: all tensors by name, on the CPU.
    """

    step: int
    settings: dict[str, dict[str, Any]]
    progress: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``, whole or not at all.

    Raises:
        OSError: if it cannot be written; an earlier checkpoint is then untouched.
    """
    state = {k: getattr(checkpoint, k) for k in ("step", "settings", "progress")}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": _checksum(checkpoint.tensors),
        "state": json.dumps(state, default=_name),
    }
    atomic_write_bytes(path, safetensors.torch.save(checkpoint.tensors, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that :func:`write_checkpoint` wrote.

    Raises:
        ValueError: if the file is truncated, damaged, of another kind or of a newer version.
        OSError: if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # A clone, for the loaded tensor is a view of the file, which may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a whole safetensors file, but is cut off or another file ({error})"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} must be a training checkpoint of subquad, but it is another file")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} must be a checkpoint of version {VERSION}, got {metadata.get('version')}"
        )
    if metadata.get("checksum") != _checksum(tensors):
        raise ValueError(f"{path} is damaged: its tensors do not match their checksum")
    try:
        return Checkpoint(tensors=tensors, **json.loads(metadata["state"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read") from error


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Tensor]:
    """Return copies on the CPU of all that an update reads: weights, optimiser, random state."""
    tensors = {f"model.{name}": _copy(value) for name, value in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if value is None:  # the momentum of plain gradient descent
                continue
            kind = "optimizer" if isinstance(value, Tensor) else "optimizer_number"
            tensors[f"{kind}.{key}.{names[id(p)]}"] = _copy(torch.as_tensor(value))
    if average is not None:
        tensors |= {f"average.{name}": _copy(value) for name, value in average.tensors().items()}
        tensors["average_updates"] = torch.tensor(average.updates)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> None:
    """Put what :func:`capture` returned back; all is checked before anything is changed.

    Raises:
        ValueError: if a tensor of the model, the optimiser or the average is missing, unknown or of
            another shape or dtype; all are then as before.
    """
    weights = _part(tensors, "model.")
    own = model.state_dict()
    _same_tensors(weights, own)
    averaged = {} if average is None else average.tensors()
    _same_tensors(_part(tensors, "average."), averaged)
    state = _optimizer_state(tensors, model, optimizer)
    torch.set_rng_state(tensors["rng.cpu"])
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])  # into the model's own memory: alignment can change rounding
        for name, value in averaged.items():
            value.copy_(tensors[f"average.{name}"])
    if average is not None:
        average.updates = int(tensors["average_updates"])
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def check_settings(path: Path, found: Checkpoint, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse a checkpoint of a run with other settings.

    Raises:
        ValueError: naming the first setting that differs.
    """
    for group, wanted in json.loads(json.dumps(settings, default=_name)).items():
        had = found.settings.get(group, {})
        for name in sorted(wanted.keys() | had.keys()):
            if had.get(name) != wanted.get(name):
                raise ValueError(
                    f"{path} was made with another {group}: {name} was {had.get(name)!r}, "
                    f"got {wanted.get(name)!r}; give the same settings or another folder"
                )


def _optimizer_state(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """Return the optimiser's state by the numbers that its ``load_state_dict`` wants."""
    names = {id(p): name for name, p in model.named_parameters()}
    order = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {names[id(p)]: i for i, p in enumerate(order)}
    state: dict[int, dict[str, Any]] = {}
    for kind in ("optimizer", "optimizer_number"):
        for full_name, value in _part(tensors, f"{kind}.").items():
            key, name = full_name.split(".", 1)
            if name not in numbers:
                raise ValueError(f"the checkpoint's optimiser knows {name}, this model does not")
            p = order[numbers[name]]
            if value.ndim and value.shape != p.shape:
                raise ValueError(
                    f"{key} of {name} must have the shape {tuple(p.shape)}, "
                    f"got {tuple(value.shape)} in the checkpoint"
                )
            entry = state.setdefault(numbers[name], {})
            entry[key] = _laid_out_as(p, value) if kind == "optimizer" else value.item()
    return state


def _same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(found.keys() ^ wanted.keys()):
        which = "lacks" if name in wanted else "has"
        raise ValueError(
            f"the checkpoint is of another model: it {which} the tensor {name}, unlike this model"
        )
    for name, value in wanted.items():
        other = found[name]
        if (other.shape, other.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"the checkpoint is of another model: {name} must be {value.dtype} "
                f"{tuple(value.shape)}, got {other.dtype} {tuple(other.shape)}"
            )


def _name(value: object) -> str:
    """Return what stands in JSON for a setting that is an object, for instance a mixer's class."""
    return getattr(value, "__qualname__", type(value).__qualname__)


def _laid_out_as(p: Tensor, value: Tensor) -> Tensor:
    """Return a copy of ``value``; a moment lies in memory as its weight does, channels last too.

    The fused optimisers walk through both side by side.
    """
    if value.ndim == 0:
        return value.clone()
    return torch.empty_like(p, dtype=value.dtype, device="cpu").copy_(value)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _copy(value: Tensor) -> Tensor:
    # A clone of its own, contiguous: safetensors takes neither shared nor strided memory.
    return value.detach().to("cpu", copy=True).contiguous()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of names, dtypes, shapes and bytes of all tensors."""
    crc = 0
    for name in sorted(tensors):
        value = tensors[name]
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
