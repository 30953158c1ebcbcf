"""What a Vision Transformer is built of by its options: their checks, its blocks, its grid."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from subquad.layers.block import Block
from subquad.layers.checkpointing import check_checkpointing
from subquad.layers.linformer import LinformerAttention
from subquad.models.mixing import is_asked_for, layer_factories, mixer_options, takes
from subquad.models.vit_positions import PLACES, Grid
from subquad.models.vit_resample import METHODS
from subquad.ops.checks import check_choice, check_fraction, check_positive, check_positive_number

POOLINGS = ("class", "mean", "sequence")
ACTIVATIONS = ("gelu", "gelu-tanh")


def check_options(config: dict[str, Any]) -> None:
    """Check the options of a model that no part of it checks.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if an option does not fit.
    """
    for name in ("num_classes", "d_model", "num_layers", "num_heads", "d_ff"):
        check_positive(name, config[name])
    for name, known in (
        ("pooling", POOLINGS), ("position_place", PLACES), ("activation", ACTIVATIONS),
        ("resampling", tuple(METHODS)),
    ):  # fmt: skip
        check_choice(name, config[name], known)
    for name in ("dropout", "attention_dropout", "drop_path"):
        check_fraction(name, config[name])
    check_positive_number("norm_eps", config["norm_eps"])
    check_checkpointing(config["checkpointing"])
    if config["positions"] == "relative" and config["position_place"] != "layers":
        raise ValueError(
            'position_place must be "layers" with positions="relative", '
            f"got {config['position_place']!r}"
        )


def make_blocks(config: dict[str, Any], grid: Grid) -> list[Block]:
    """Return the blocks of a model, for the tokens of ``grid`` where that matters.

    Mixers that know a grid (lambda layers) see the patches on it, a class token before them, unless
    a ``functools.partial`` of one says another, or None.

    Raises:
        ValueError: if a mixer is unknown, or lacks an option that is asked for.
    """
    seq_len = math.prod(grid) + (config["pooling"] == "class")
    asked: dict[str, Any] = {}
    if config["positions"] == "relative":
        asked["relative_len"] = seq_len
    if config["attention_dropout"]:
        asked["attention_dropout"] = config["attention_dropout"]
    d_model, num_heads, count = (config[n] for n in ("d_model", "num_heads", "num_layers"))
    factories = layer_factories(config["mixer"], count, num_heads)
    for factory in factories:
        for option in asked:
            _check_option(factory, option)
    given: Any = {"head_dim": None, "value_dim": None, "rotary": False, "max_len": seq_len}
    return [
        Block(
            factory(
                d_model, num_heads, is_causal=False, **mixer_options(factory, **given), **asked,
                **({"grid": grid} if is_asked_for(factory, "grid") else {}),
            ),
            d_model, config["d_ff"], norm="pre", activation=config["activation"],
            dropout=config["dropout"], norm_eps=config["norm_eps"],
            drop_path=config["drop_path"] * i / max(1, count - 1),
            repeat_mixer=config["checkpointing"] == "mixers",
        )
        for i, factory in enumerate(factories)
    ]  # fmt: skip


def sides_of(image_size: int | Sequence[int]) -> Grid:
    """Return height and width.

    Raises:
        TypeError: if a side is not an int.
        ValueError: if one is below 1, or there are not one or two.
    """
    if not isinstance(image_size, int | Sequence):
        raise TypeError(
            "image_size must be an int or a sequence, "
            f"got {type(image_size).__name__} {image_size!r}"
        )
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size must be a side, or height and width, got {image_size}")
    for side in sides:
        check_positive("image_size", side)
    return sides


def grid_of(sides: Sequence[int], patch_size: int) -> Grid:
    """Return how many patches are down and across.

    Raises:
        ValueError: if a side is no multiple of the patch's.
    """
    height, width = sides
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"sides of images must be multiples of patch_size ({patch_size}), "
            f"got {height} x {width}"
        )
    return height // patch_size, width // patch_size


def sees_grid(model: Any) -> bool:
    """Return whether a mixer sees the patches on the grid of ``image_size``."""
    return any(getattr(block.mixer, "grid", None) is not None for block in model.blocks)


def check_other_grid(model: Any, name: str, grid: Grid, *, kept: bool = False) -> None:
    """Refuse a grid other than the model's where it is built in.

    Linformer layers take fewer patches than theirs; but where the grid is ``kept``, a model that is
    saved would be built with fewer weights.

    Raises:
        ValueError: if the model cannot take it.
    """
    if grid == model.grid:
        return
    rule = "the sides of"
    if sees_grid(model):
        reason = "lambda layers"
    elif model.config["positions"] == "relative":
        reason = "relative positions"
    elif any(isinstance(block.mixer, LinformerAttention) for block in model.blocks):
        reason = "Linformer layers"
        if not kept:
            if math.prod(grid) <= math.prod(model.grid):
                return
            rule = "at most the patches of"
    else:
        return
    height, width = (side * model.patch_size for side in model.grid)
    raise ValueError(
        f"{name} must have {rule} image_size ({height} x {width}) with {reason}, "
        f"got {grid[0] * model.patch_size} x {grid[1] * model.patch_size}"
    )


def check_images(name: str, x: Tensor, channels: int, *, is_batch: bool) -> None:
    """Require float images (B, C, H, W), or one (C, H, W), not empty.

    Raises:
        TypeError: if ``x`` is not floating.
        ValueError: if its shape is another.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {x.dtype}")
    if x.dim() != 3 + is_batch or x.shape[-3] != channels or 0 in x.shape:
        shape = f"({'B, ' if is_batch else ''}{channels}, H, W)"
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(x.shape)}")


def _check_option(factory: Any, option: str) -> None:
    if not takes(factory, option):
        asked = 'positions="relative"' if option == "relative_len" else option
        name = getattr(getattr(factory, "func", factory), "__name__", repr(factory))
        raise ValueError(f"{asked} needs a mixer with the option {option}, got {name}")
