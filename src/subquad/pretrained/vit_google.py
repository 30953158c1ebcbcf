"""Google's ``.npz`` files of Vision Transformers: their variants as one set of names, and back.

| | "google" | "big-vision" | "big-vision-scan" |
|---|---|---|---|
| prefix | none, ``opt/target/`` while training | ``params/``, ``params/img/`` | the same |
| a layer | ``encoderblock_3/LayerNorm_2`` | ``encoderblock_3/LayerNorm_1`` | ``encoderblock/`` |
| positions | ``Transformer/posembed_input/`` | at the top | at the top |
| class token | has a position of its own | has none | has none |

Each difference is known by itself, so files that mix them are read too. What stands outside the
prefix (an optimiser's state, a text tower) is not the image network's and is left alone.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from subquad.pretrained.vit_names import NAMES, VitLayout

PREFIXES = ("opt/target/", "params/img/", "params/", "")
TABLE, CLASS = NAMES["google"].table, NAMES["google"].class_token
_STEM = NAMES["google"].leaf(NAMES["google"].stem)
_LAYER = re.compile(r"Transformer/encoderblock(_\d+)?/(.+)")
# big_vision's name of a part to Google's first.
_PARTS = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
_BACK = {theirs: part for part, theirs in _PARTS.items()}
_TABLES = ("pos_embedding", "Transformer/pos_embedding")
_GROUP_NORM = re.compile(r"(?:.+/)?gn[^/]*/(?:scale|bias)")


def google_prefix(names: Iterable[str]) -> str | None:
    """Return what stands before the names of the image network; None: there is none."""
    names = set(names)
    return next((prefix for prefix in PREFIXES if prefix + _STEM in names), None)


def google_variant(names: Iterable[str]) -> VitLayout:
    """Return which of Google's layouts names without prefix are of."""
    names = set(names)
    if any(name.startswith("Transformer/encoderblock/") for name in names):
        return "big-vision-scan"
    return "big-vision" if _TABLES[0] in names else "google"


def as_google(weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return weights of any variant, without prefix, under the names of the layout "google".

    A class token without a position stays without.

    Raises:
        ValueError: if two tensors would have one name.
    """
    found: dict[str, Tensor] = {}
    for name, x in weights.items():
        for new, y in _renamed(name, x):
            if new in found:
                raise ValueError(f"{what} must hold {new} once, got it under two names")
            found[new] = y
    return found


def _renamed(name: str, x: Tensor) -> list[tuple[str, Tensor]]:
    if name in _TABLES:
        return [(TABLE, x)]
    if _GROUP_NORM.fullmatch(name) and x.dim() == 4 and x.shape[:3] == (1, 1, 1):
        return [(name, x.flatten())]
    layer = _LAYER.fullmatch(name)
    if layer is None or x.dim() == 0:
        return [(name, x)]
    number, part = layer.groups()
    head, _, rest = part.partition("/")
    part = f"{_PARTS.get(head, head)}/{rest}"
    if number is not None:
        return [(f"Transformer/encoderblock{number}/{part}", x)]
    return [(f"Transformer/encoderblock_{i}/{part}", y) for i, y in enumerate(x)]


def as_big_vision(weights: Mapping[str, Tensor], *, is_stacked: bool) -> dict[str, Tensor]:
    """Return weights of the layout "google" as big_vision has them.

    It adds positions before it puts the class token in front, so the class token's position is
    added to the token itself here.
    """
    found = dict(weights)
    if CLASS in found:
        first, found[TABLE] = found[TABLE].tensor_split((1,), dim=1)
        found[CLASS] = found[CLASS] + first
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    for name, x in found.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            renamed[_TABLES[0] if name == TABLE else name] = x
            continue
        number, part = layer.groups()
        head, _, rest = part.partition("/")
        part = f"{_BACK.get(head, head)}/{rest}"
        if is_stacked:
            stacks.setdefault(f"Transformer/encoderblock/{part}", []).append(x)
        else:
            renamed[f"Transformer/encoderblock{number}/{part}"] = x
    renamed |= {name: torch.stack(layers) for name, layers in stacks.items()}
    return {f"params/{name}": x for name, x in renamed.items()}
