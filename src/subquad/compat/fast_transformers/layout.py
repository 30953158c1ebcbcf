"""Weights as fast-transformers names and cuts them, and our own: one map, used both ways.

There, query, key and value have a matrix each, ``layers.0.attention.query_projection.weight``;
here they are rows of one, ``blocks.0.mixer.heads.qkv_proj.weight``. The encoder and its recurrent
twin are laid out alike. The two hooks make ``state_dict`` and ``load_state_dict`` speak the
published names, also where the model is a part of a larger one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RENAMED = {
    "attention.out_projection": "mixer.heads.out_proj",
    "linear1": "feed_forward.inner",
    "linear2": "feed_forward.outer",
    "norm1": "mixer_norm",
    "norm2": "feed_forward_norm",
}


class Place(NamedTuple):
    """Where a published tensor lies: a key of our stack, and the rows that it fills."""

    key: str
    start: int
    stop: int


def published_layout(stack: nn.Module) -> dict[str, Place]:
    """Return the place of each tensor that the published model of these sizes has."""
    places: dict[str, Place] = {}
    blocks: Any = stack.blocks
    for n, block in enumerate(blocks):
        for part in ("weight", "bias"):
            for theirs, ours in RENAMED.items():
                key = f"blocks.{n}.{ours}.{part}"
                places[f"layers.{n}.{theirs}.{part}"] = Place(key, 0, len(stack.get_parameter(key)))
            start, key = 0, f"blocks.{n}.mixer.heads.qkv_proj.{part}"
            heads = block.mixer.heads
            widths = (heads.head_dim, heads.head_dim, heads.value_dim)
            for name, width in zip(("query", "key", "value"), widths, strict=True):
                stop = start + heads.num_heads * width
                theirs = f"layers.{n}.attention.{name}_projection.{part}"
                places[theirs], start = Place(key, start, stop), stop
    if isinstance(stack.final_norm, nn.LayerNorm):
        for part in ("weight", "bias"):
            key = f"final_norm.{part}"
            places[f"norm.{part}"] = Place(key, 0, len(stack.get_parameter(key)))
    return places


def save_published(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: Any
) -> None:
    """Rename what a state dict holds of ``module``; torch calls this as ``state_dict`` ends."""
    parts = tuple(f"{prefix}{name}." for name, _ in module.named_children())
    ours = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(parts)}
    for name, place in published_layout(_stack(module)).items():
        tensor = ours[f"{prefix}model.stack.{place.key}"]
        state_dict[prefix + name] = tensor[place.start : place.stop]


def load_published(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Rename what is to be loaded, in place; torch calls this as ``load_state_dict`` begins.

    Every missing, unexpected and misshapen tensor is noted by its published name, and torch puts
    all of them into one RuntimeError. What is missing keeps the value that it has.
    """
    given = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    stack = _stack(module)
    places = published_layout(stack)
    missing_keys += [prefix + name for name in places if name not in given]
    unexpected_keys += [prefix + name for name in given if name not in places]
    gathered: dict[str, list[Tensor]] = {}
    for name, place in places.items():
        own = stack.get_parameter(place.key).detach()[place.start : place.stop]
        tensor = given.get(name, own)
        if tensor.shape != own.shape:
            error_msgs.append(
                f"{prefix}{name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}"
            )
            tensor = own
        gathered.setdefault(place.key, []).append(tensor)
    for key, rows in gathered.items():
        # The copy into the parameter, which is torch's, takes any device; cat takes one only.
        whole = rows[0] if len(rows) == 1 else torch.cat([x.to(rows[0].device) for x in rows])
        for name, _ in module.named_children():
            state_dict[f"{prefix}{name}.stack.{key}"] = whole


def speak_published_layout(module: nn.Module) -> None:
    """Give ``module`` the two hooks; its children ``model`` (and ``twin``) hold a ``stack``."""
    hooks: Any = module  # torch has not typed these two
    hooks.register_state_dict_post_hook(save_published)
    hooks.register_load_state_dict_pre_hook(load_published)


def _stack(module: nn.Module) -> nn.Module:
    return module.get_submodule("model.stack")
