"""Weights of a Vision Transformer as they come: which layout, and what they tell of the model."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from subquad.models.vit_stems import STAGES, reduction
from subquad.ops.checks import check_choice
from subquad.pretrained.vit_files import array_as_tensor, read_tensors
from subquad.pretrained.vit_google import as_google, google_prefix, google_variant
from subquad.pretrained.vit_names import GOOGLE, LAYOUTS, NAMES, VitLayout

Source = str | Path | Mapping[str, Any]
_HF_STEM = NAMES["hf-v5"].leaf(NAMES["hf-v5"].stem)
_TIMM_STEM = NAMES["timm"].leaf(NAMES["timm"].stem)
_UNIT = {
    "timm": re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\."),
    "google": re.compile(r"block(\d+)/unit(\d+)/"),
}
_ROOT = {
    "timm": ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight"),
    "google": ("conv_root/kernel",),
}


class VitWeights(NamedTuple):
    """Tensors by the names of ``layout`` (those of "google" in all of Google's), and their source.

    ``what`` names the source at the beginning of an error.
    """

    tensors: dict[str, Tensor]
    layout: VitLayout
    what: str


def detect_vit_layout(weights: Source) -> VitLayout:
    """Return the layout of weights by the names that are present.

    Args:
        weights: names to tensors or arrays, or a file; see ``load_vit_weights``.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if a name is no string, or a value no tensor and no array of numbers.
        ValueError: if the file cannot be read, or no layout has such names.
    """
    return read_vit_weights(weights).layout


def read_vit_weights(weights: Source, layout: VitLayout | None = None) -> VitWeights:
    """Return weights by name, all of them read; raises as ``detect_vit_layout`` does.

    Raises:
        ValueError: moreover, if they are of another layout than ``layout``.
    """
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
    what = "weights"
    if isinstance(weights, str | Path):
        what = f"weights in {weights}"
        found = read_tensors(Path(weights), _of_image_network)
    elif isinstance(weights, Mapping):
        found = {name: _as_tensor(name, weights[name]) for name in _of_image_network(weights)}
    else:
        raise TypeError(
            f"weights must be a file's name or names to tensors, got {type(weights).__name__}"
        )
    prefix = google_prefix(found)
    if prefix is not None:
        found = {name.removeprefix(prefix): x for name, x in found.items()}
    if _HF_STEM.removeprefix("vit.") in found:  # transformers' model without a head
        found = {f"vit.{name}": x for name, x in found.items()}
    detected = _layout(found)
    if detected is None:
        names = sorted(found)
        raise ValueError(
            f"{what} must be of a Vision Transformer in one of the layouts {', '.join(LAYOUTS)}, "
            f"got {len(names)} names{''.join(f', {name}' for name in names[:3])}"
        )
    if layout is not None and layout != detected and not {layout, detected} <= {*GOOGLE}:
        raise ValueError(f"{what} must be in the layout {layout}, got {detected}")
    return VitWeights(as_google(found, what) if detected in GOOGLE else found, detected, what)


def _of_image_network(names: Iterable[Any]) -> list[str]:
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"weights must have strings as names, got {name!r}")
    prefix = google_prefix(names) or ""
    return [name for name in names if name.startswith(prefix)]


def _as_tensor(name: str, x: Any) -> Tensor:
    try:
        return x if isinstance(x, Tensor) else array_as_tensor(x)
    except TypeError as error:
        raise TypeError(f"weights must be tensors or arrays, {name} is not: {error}") from error


def _layout(names: Iterable[str]) -> VitLayout | None:
    names = set(names)
    if google_prefix(names) is not None:
        return google_variant(names)
    if _TIMM_STEM in names:
        return "timm"
    if _HF_STEM not in names:
        return None
    return "hf-v4" if any(name.startswith("vit.encoder.layer.") for name in names) else "hf-v5"


def has_class_row(rows: int, layout: VitLayout, patches: int | None = None) -> bool:
    """Return whether a table of a model with a class token has a row for it.

    Some codes give the class token no position: big_vision, and timm's no_embed_class. Square grids
    tell, as no two squares but 0 and 1 are neighbours; else the number of the model's patches does.
    """
    if layout in ("big-vision", "big-vision-scan"):
        return rows != patches and _is_square(rows - 1)
    if rows - 1 == patches:
        return True
    return not _is_square(rows) and (rows != patches or _is_square(rows - 1))


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def model_options(weights: VitWeights) -> dict[str, Any]:
    """Return the options of a ``VisionTransformer`` that its weights tell.

    Raises:
        ValueError: if a tensor that tells is missing, or tells of no such model.
    """
    tensors, names, what = weights.tensors, NAMES[weights.layout], weights.what

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].dim() != axes:
            got = tuple(tensors[name].shape) if name in tensors else "none"
            raise ValueError(f"{what} must hold {name} of {axes} axes, got {got}")
        return tuple(tensors[name].shape)

    def linear(name: str, axes: int = 2) -> tuple[int, ...]:
        """Return (out, in) or (out, in, height, width)."""
        size = shape(names.leaf(name), axes)
        return (*size[:-3:-1], *size[:-2]) if names.is_flax else size

    d_model, in_channels, height, width = linear(names.stem, 4)
    if height != width:
        raise ValueError(f"{what} must have square patches, got {height} x {width}")
    before, after = map(re.escape, names.block.split("{i}"))
    layers = filter(None, map(re.compile(rf"{before}(\d+){after}").match, tensors))
    block = names.block.format(i=0)
    options: dict[str, Any] = {"d_model": d_model, "num_layers": len({x[1] for x in layers})}
    options["d_ff"] = linear(block + names.inner)[0]
    if names.is_flax:
        options["num_heads"] = shape(names.leaf(block + names.qkv[0]), 3)[1]
    stem = _stem(weights)
    if stem != "patch":
        root = next(name for name in _ROOT[_family(weights)] if name in tensors)
        in_channels = shape(root, 4)[2 if names.is_flax else 1]
    options |= {"stem": stem, "patch_size": height * reduction(stem), "in_channels": in_channels}
    has_class = names.class_token in tensors
    options["pooling"] = "class" if has_class else "mean"
    rows = shape(names.table, 3)[1]
    rows -= has_class and has_class_row(rows, weights.layout)
    if _is_square(rows):
        options["image_size"] = math.isqrt(rows) * options["patch_size"]
    if names.leaf(names.head) in tensors:
        options["num_classes"] = linear(names.head)[0]
    options["pre_logits"] = names.leaf(names.pre_logits) in tensors
    return options


def _family(weights: VitWeights) -> str:
    return "google" if weights.layout in GOOGLE else "timm"


def _stem(weights: VitWeights) -> str:
    family = _family(weights)
    if not any(name in weights.tensors for name in _ROOT[family]):
        return "patch"
    units = {found.groups() for found in map(_UNIT[family].match, weights.tensors) if found}
    stages = sorted({int(stage) for stage, _ in units})
    counts = tuple(sum(int(stage) == s for stage, _ in units) for s in stages)
    for stem, known in STAGES.items():
        if known == counts:
            return stem
    raise ValueError(
        f"{weights.what} must have a residual network of "
        f"{', '.join(str(known) for known in STAGES.values())} blocks, got {counts}"
    )
