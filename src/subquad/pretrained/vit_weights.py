"""Weights of Vision Transformers: from files of Google, timm and transformers, and to them.

The layouts are those of ``vit_names``. What names do not tell is which GELU, which epsilons and
which residual network's constants a model was trained with: the ``style`` of its presets.
"""

from collections.abc import Mapping
from math import isqrt, prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_positions import LearnedTable
from subquad.models.vit_presets import STYLES, Style
from subquad.models.vit_resample import METHODS, Resampling, resample_grid
from subquad.ops.checks import check_choice
from subquad.pretrained.naming import check_finite, check_names, expected_shapes, is_plain
from subquad.pretrained.vit_files import write_npz, write_safetensors
from subquad.pretrained.vit_google import as_big_vision
from subquad.pretrained.vit_names import GOOGLE, NAMES, Names, VitLayout, check_is_vit, vit_rules
from subquad.pretrained.vit_source import (
    Source,
    VitWeights,
    has_class_row,
    model_options,
    read_vit_weights,
)
from subquad.pretrained.vit_source import detect_vit_layout as detect_vit_layout

Head = Literal["strict", "replace"]
_STYLE: dict[str, Style] = {"timm": "timm", "hf-v4": "hf", "hf-v5": "hf"}


def load_vit_weights(
    model: VisionTransformer,
    weights: Source,
    layout: VitLayout | None = None,
    *,
    head: Head = "strict",
    resample: Resampling | None = None,
) -> None:
    """Load weights of another code into ``model``, all of them or none.

    A class token's position that other code does not have becomes 0. Numbers take the model's
    precision. Buffers of mixers, such as random features, stay as they are.

    Args:
        model: of the weights' sizes; its mixers may be others than softmax, if they have heads.
        weights: names to tensors or arrays; or a file .npz, .safetensors, .bin, .pth or .pt. In a
            training state the network's own part is taken.
        layout: whose names they are; None to tell by them.
        head: "strict"; or "replace", to leave out their head and ``pre_logits`` and start with a
            head of zeros, as in fine-tuning.
        resample: how their positions are brought to the model's grid, if theirs is a square of
            another size: a method of ``VisionTransformer.resample``; None to refuse.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if the model is no ``VisionTransformer``, or a value is not a tensor or array.
        ValueError: if a file is damaged; if the model has parts that the layout has no names for;
            or with every name that is missing, unexpected, of another shape, no plain floating
            tensor, or NaN or infinite in the model's precision.
    """
    _check_options(head, resample)
    check_is_vit(model)
    if any(x.is_meta for x in model.parameters()):
        raise ValueError("model must have weights of its own, got one on the device meta")
    _load(model, read_vit_weights(weights, layout), head, resample)


def _check_options(head: Head, resample: Resampling | None) -> None:
    check_choice("head", head, ("strict", "replace"))
    if resample is not None:
        check_choice("resample", resample, tuple(METHODS))


def _load(
    model: VisionTransformer, weights: VitWeights, head: Head, resample: Resampling | None
) -> None:
    layout, ours, tensors = weights.layout, model.state_dict(), dict(weights.tensors)
    rules, names = vit_rules(model, layout), NAMES[layout]
    if head == "replace":
        kept = ("head.", "pre_logits.")
        rules = {name: rule for name, rule in rules.items() if not name.startswith(kept)}
        left = _head_names(names)
        tensors = {name: x for name, x in tensors.items() if name not in left}
    if names.table in tensors:
        tensors[names.table] = _fitted(model, layout, tensors[names.table], resample)
    expected = expected_shapes(rules, ours)
    hint = _hint(expected, tensors, names, resample)
    check_names(expected, tensors, layout, what=weights.what, hint=hint, plain=True)
    check_finite(rules, tensors, ours, what=weights.what)
    joined = {name: rule.join([tensors[n] for n in rule.theirs]) for name, rule in rules.items()}
    assert all(x.shape == ours[name].shape for name, x in joined.items())
    if head == "replace":
        model.reset_head(model.config["num_classes"])
    model.load_state_dict(joined, strict=False)


def _head_names(names: Names) -> set[str]:
    parts = (names.head, names.pre_logits)
    return {name for part in parts for name in (names.leaf(part), names.leaf(part, "bias"))}


def _hint(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], names: Names,
    resample: Resampling | None,
) -> str:  # fmt: skip
    """Return what may be asked for where the head or the positions do not fit."""

    def differs(name: str) -> bool:
        there = name in tensors
        return there != (name in expected) or (there and tensors[name].shape != expected[name])

    hint = ""
    if any(map(differs, _head_names(names))):
        hint += '; head="replace" leaves their head out'
    if names.table in tensors and differs(names.table):
        hint += (
            "; resample= brings positions to another grid" if resample is None
            else "; only positions of a square grid and of the same width can be resampled"
        )  # fmt: skip
    return hint


def _fitted(
    model: VisionTransformer, layout: VitLayout, table: Tensor, resample: Resampling | None
) -> Tensor:
    """Return a table of theirs with a class token's row if the model has one, and resampled.

    Where that cannot be, its shape is another than the model's.
    """
    positions = model.positions
    assert isinstance(positions, LearnedTable)
    wanted, patches, has_class = positions.table, prod(model.grid), model.class_token is not None
    if table.dim() != 3 or table.shape[::2] != wanted.shape[::2] or not is_plain(table):
        return table
    has_row = has_class and has_class_row(table.shape[1], layout, patches)
    first, rows = table.to(wanted).tensor_split((int(has_row),), dim=1)
    if has_class and not has_row:
        first = torch.zeros_like(wanted[:, :1])
    side = isqrt(rows.shape[1])
    if resample is not None and rows.shape[1] != patches and 0 < side**2 == rows.shape[1]:
        square = rows.reshape(1, side, side, -1)
        rows = resample_grid(square, model.grid, resample).flatten(1, 2)
    return torch.cat([first, rows], dim=1)


def vit_state_dict(model: VisionTransformer, layout: VitLayout) -> dict[str, Tensor]:
    """Return copies of ``model``'s weights under the names of another code, to be loaded there.

    "big-vision" has no position for the class token: it is added to the token itself. There,
    to be the same function, a model needs the same GELU and epsilons: see the presets' ``style``.

    Raises:
        TypeError: if the model is no ``VisionTransformer``.
        ValueError: if the layout is unknown, or has no names for a part that the model has.
    """
    found = model.state_dict()
    weights = {
        name: x.detach().clone(memory_format=torch.contiguous_format)
        for ours, rule in vit_rules(model, layout).items()
        for name, x in zip(rule.theirs, rule.part(found[ours]), strict=True)
    }
    if layout in ("big-vision", "big-vision-scan"):
        return as_big_vision(weights, is_stacked=layout == "big-vision-scan")
    return weights


def save_vit_weights(model: VisionTransformer, path: str | Path, layout: VitLayout) -> None:
    """Write ``model``'s weights for another code: .npz in Google's layouts, else .safetensors.

    Raises:
        OSError: if the file cannot be written.
        TypeError: if the model is no ``VisionTransformer``.
        ValueError: if the file's name is of another kind; or as ``vit_state_dict`` raises.
    """
    path, weights = Path(path), vit_state_dict(model, layout)
    suffix = ".npz" if layout in GOOGLE else ".safetensors"
    if path.suffix != suffix:
        raise ValueError(f"path must be a file {suffix} for the layout {layout}, got {path}")
    (write_npz if suffix == ".npz" else write_safetensors)(path, weights)


def vit_options(weights: Source, layout: VitLayout | None = None) -> dict[str, Any]:
    """Return the options of a ``VisionTransformer`` that its weights tell.

    ``num_heads`` is among them in Google's layouts alone, ``image_size`` if the grid is square,
    ``num_classes`` if there is a head. Which ``style`` it has, no weights tell.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if a value is not a tensor or array.
        ValueError: if the file is damaged, or a tensor that tells is missing.
    """
    return model_options(read_vit_weights(weights, layout))


def vit_from_weights(
    weights: Source,
    layout: VitLayout | None = None,
    *,
    style: Style | None = None,
    head: Head = "strict",
    resample: Resampling | None = None,
    **changes: Any,
) -> VisionTransformer:
    """Build the model that weights are of, and load them; in evaluation mode.

    Args:
        weights: as in ``load_vit_weights``.
        layout: as there.
        style: whose code it is to agree with: "google", "timm" or "hf"; None for that of the
            layout.
        head: as there.
        resample: as there.
        changes: options of ``VisionTransformer`` in place of what the weights tell, and those that
            they do not tell: ``num_heads``, but in Google's layouts.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if a value is not a tensor or array, or an option is unknown.
        ValueError: if an option is neither given nor told, or does not fit; and as
            ``load_vit_weights`` raises.
    """
    _check_options(head, resample)
    found = read_vit_weights(weights, layout)
    options = {**model_options(found), **changes}
    for name in ("num_heads", "image_size"):
        if name not in options:
            raise ValueError(f"{name} must be given: {found.what}, in {found.layout}, tell it not")
    chosen = _STYLE.get(found.layout, "google") if style is None else style
    check_choice("style", chosen, tuple(STYLES))
    model = VisionTransformer(**{**STYLES[chosen], **options})
    _load(model, found, head, resample)
    return model.eval()
