"""What other codes call the parts of a ``VisionTransformer``, as rules for each tensor.

| layout | of | axes |
|---|---|---|
| "google" | Google's ``.npz`` files, plain and hybrid | (in, out), (height, width, in, out) |
| "big-vision" | the same authors' later code, ``.npz`` | as above; see ``vit_google`` |
| "big-vision-scan" | the same with all layers in one | a layer's axis before all others |
| "timm" | state dicts of timm, plain and hybrid | (out, in), (out, in, height, width) |
| "hf-v4", "hf-v5" | state dicts of transformers before 5, and since | as above |

In Google's attention the heads have an axis of their own, so these files tell their number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subquad.layers.heads import Heads
from subquad.models.vision_transformer import VisionTransformer
from subquad.models.vit_backbone import Backbone
from subquad.models.vit_stems import HybridStem
from subquad.ops.checks import check_choice
from subquad.pretrained.naming import Rule, moved, same

VitLayout = Literal["google", "big-vision", "big-vision-scan", "timm", "hf-v4", "hf-v5"]
LAYOUTS: tuple[VitLayout, ...] = (
    "google", "big-vision", "big-vision-scan", "timm", "hf-v4", "hf-v5",
)  # fmt: skip
GOOGLE: tuple[VitLayout, ...] = ("google", "big-vision", "big-vision-scan")
ATTENTION = "MultiHeadDotProductAttention_1"


Leaf = Literal["weight", "scale", "bias"]


@dataclass(frozen=True, kw_only=True)
class Names:
    """Where a layout keeps each part; ``block`` is a prefix, with {i} for the layer."""

    is_flax: bool = False
    stem: str
    class_token: str
    table: str
    block: str
    mixer_norm: str
    qkv: tuple[str, ...]
    out: str
    feed_forward_norm: str
    inner: str
    outer: str
    norm: str
    pre_logits: str
    head: str

    def leaf(self, part: str, kind: Leaf = "weight") -> str:
        """Return the name of a part's weight (of a norm's, "scale") or bias."""
        if self.is_flax:
            return f"{part}/{'kernel' if kind == 'weight' else kind}"
        return f"{part}.{'weight' if kind == 'scale' else kind}"


_GOOGLE_NAMES = Names(
    is_flax=True, stem="embedding", class_token="cls",
    table="Transformer/posembed_input/pos_embedding", block="Transformer/encoderblock_{i}/",
    mixer_norm="LayerNorm_0",
    qkv=(f"{ATTENTION}/query", f"{ATTENTION}/key", f"{ATTENTION}/value"), out=f"{ATTENTION}/out",
    feed_forward_norm="LayerNorm_2", inner="MlpBlock_3/Dense_0", outer="MlpBlock_3/Dense_1",
    norm="Transformer/encoder_norm", pre_logits="pre_logits", head="head",
)  # fmt: skip
NAMES: dict[VitLayout, Names] = {
    **dict.fromkeys(GOOGLE, _GOOGLE_NAMES),
    "timm": Names(
        stem="patch_embed.proj", class_token="cls_token", table="pos_embed", block="blocks.{i}.",
        mixer_norm="norm1", qkv=("attn.qkv",), out="attn.proj",
        feed_forward_norm="norm2", inner="mlp.fc1", outer="mlp.fc2",
        # Of older versions; later ones have no such layer and refuse it.
        norm="norm", pre_logits="pre_logits.fc", head="head",
    ),
    "hf-v4": Names(
        stem="vit.embeddings.patch_embeddings.projection", class_token="vit.embeddings.cls_token",
        table="vit.embeddings.position_embeddings", block="vit.encoder.layer.{i}.",
        mixer_norm="layernorm_before",
        qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        out="attention.output.dense", feed_forward_norm="layernorm_after",
        inner="intermediate.dense", outer="output.dense",
        norm="vit.layernorm", pre_logits="vit.pooler.dense", head="classifier",
    ),
    "hf-v5": Names(
        stem="vit.embeddings.patch_embeddings.projection", class_token="vit.embeddings.cls_token",
        table="vit.embeddings.position_embeddings", block="vit.layers.{i}.",
        mixer_norm="layernorm_before", qkv=tuple(f"attention.{part}_proj" for part in "qkv"),
        out="attention.o_proj", feed_forward_norm="layernorm_after",
        inner="mlp.fc1", outer="mlp.fc2",
        norm="vit.layernorm", pre_logits="vit.pooler.dense", head="classifier",
    ),
}  # fmt: skip


def vit_rules(model: VisionTransformer, layout: VitLayout) -> dict[str, Rule]:
    """Return a rule for each parameter of ``model``.

    Raises:
        TypeError: if the model is no ``VisionTransformer``.
        ValueError: if the layout is unknown, or has no names for a part that the model has.
    """
    check_is_vit(model)
    check_choice("layout", layout, LAYOUTS)
    _check_model(model, layout)
    names = NAMES[layout]
    rules = _conv("stem.proj", names.stem, names)
    rules["stem.proj.bias"] = same(names.leaf(names.stem, "bias"))
    rules["class_token"] = same(names.class_token)
    rules["positions.table"] = same(names.table)
    block: Any
    for i, block in enumerate(model.blocks):
        ours, theirs = f"blocks.{i}.", names.block.format(i=i)
        rules |= _norm(f"{ours}mixer_norm", theirs + names.mixer_norm, names)
        rules |= _attention(f"{ours}mixer.heads.", theirs, block.mixer.heads, names)
        rules |= _norm(f"{ours}feed_forward_norm", theirs + names.feed_forward_norm, names)
        rules |= _linear(f"{ours}feed_forward.inner", theirs + names.inner, names)
        rules |= _linear(f"{ours}feed_forward.outer", theirs + names.outer, names)
    rules |= _norm("norm", names.norm, names)
    rules |= _linear("pre_logits", names.pre_logits, names) | _linear("head", names.head, names)
    if isinstance(model.stem, HybridStem):
        rules |= (_flax_backbone if names.is_flax else _timm_backbone)(model.stem.backbone, names)
    parameters = {name for name, _ in model.named_parameters()}
    nameless = sorted(parameters - set(rules))
    if nameless:
        raise ValueError(
            f"model must have no parameters that the layout {layout} has no names for, "
            f"got {', '.join(nameless)}"
        )
    return {name: rule for name, rule in rules.items() if name in parameters}


def check_is_vit(model: VisionTransformer) -> None:
    """Refuse any other model.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"model must be a VisionTransformer, got {type(model).__name__}")


def _check_model(model: VisionTransformer, layout: VitLayout) -> None:
    allowed: dict[str, tuple[str, ...]] = {
        "positions": ("learned",),
        "position_place": ("stem",),
        "pooling": ("class",) if layout.startswith("hf") else ("class", "mean"),
        "stem": ("patch", "r-ti", "r26", "r50", "r50-3")
        if layout in ("google", "timm")
        else ("patch",),
    }
    for name, values in allowed.items():
        if model.config[name] not in values:
            raise ValueError(
                f"model must have the {name} {' or '.join(values)} for the layout {layout}, "
                f"got {model.config[name]}"
            )
    for i, block in enumerate(model.blocks):
        heads = getattr(block.mixer, "heads", None)
        if (
            not isinstance(heads, Heads)
            or heads.context_dim is not None
            or heads.share_qk
            or heads.head_dim != heads.value_dim
        ):
            raise ValueError(
                "model must have mixers that project tokens to heads of q, k and v of one width, "
                f"got {type(block.mixer).__name__} in blocks.{i}"
            )


def _transposed(x: Tensor) -> Tensor:
    return x.t()


def _linear(ours: str, theirs: str, names: Names) -> dict[str, Rule]:
    weight = names.leaf(theirs)
    return {
        f"{ours}.weight": moved(weight, _transposed, _transposed)
        if names.is_flax
        else same(weight),
        f"{ours}.bias": same(names.leaf(theirs, "bias")),
    }


def _norm(ours: str, theirs: str, names: Names) -> dict[str, Rule]:
    return {
        f"{ours}.weight": same(names.leaf(theirs, "scale")),
        f"{ours}.bias": same(names.leaf(theirs, "bias")),
    }


def _conv(ours: str, theirs: str, names: Names) -> dict[str, Rule]:
    if not names.is_flax:
        return {f"{ours}.weight": same(f"{theirs}.weight")}
    rule = moved(
        f"{theirs}/kernel", lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)
    )
    return {f"{ours}.weight": rule}


def _attention(ours: str, theirs: str, heads: Heads, names: Names) -> dict[str, Rule]:
    if names.is_flax:
        return _flax_attention(ours, theirs, heads, names)
    rules = _linear(f"{ours}out_proj", theirs + names.out, names)
    for part in ("weight", "bias"):
        rules[f"{ours}qkv_proj.{part}"] = Rule(
            theirs=tuple(f"{theirs}{name}.{part}" for name in names.qkv),
            join=torch.cat,
            part=_thirds if len(names.qkv) == 3 else lambda x: [x],
        )
    return rules


def _thirds(x: Tensor) -> list[Tensor]:
    return list(x.chunk(3))


def _flax_attention(ours: str, theirs: str, heads: Heads, names: Names) -> dict[str, Rule]:
    by_head = (heads.num_heads, heads.head_dim)
    at = [theirs + name for name in names.qkv]
    return {
        f"{ours}qkv_proj.weight": Rule(  # each (D, h, a), head by head as in our rows
            theirs=tuple(f"{name}/kernel" for name in at),
            join=lambda parts: torch.cat([x.flatten(1).t() for x in parts]),
            part=lambda x: [y.t().reshape(-1, *by_head) for y in _thirds(x)],
        ),
        f"{ours}qkv_proj.bias": Rule(
            theirs=tuple(f"{name}/bias" for name in at),
            join=lambda parts: torch.cat([x.flatten() for x in parts]),
            part=lambda x: [y.reshape(by_head) for y in _thirds(x)],
        ),
        f"{ours}out_proj.weight": moved(
            f"{theirs}{names.out}/kernel",
            lambda x: x.flatten(0, 1).t(),
            lambda x: x.t().reshape(*by_head, -1),
        ),
        f"{ours}out_proj.bias": same(f"{theirs}{names.out}/bias"),
    }


def _backbone(
    backbone: Backbone, names: Names, root: tuple[str, str], at: Callable[[int, int, str], str]
) -> dict[str, Rule]:
    rules = _conv("stem.backbone.conv", root[0], names)
    rules |= _norm("stem.backbone.norm", root[1], names)
    for s, stage in enumerate(backbone.stages):
        assert isinstance(stage, nn.Sequential)
        for b, block in enumerate(stage):
            ours = f"stem.backbone.stages.{s}.{b}."
            for n in "123":
                rules |= _conv(f"{ours}conv{n}", at(s, b, f"conv{n}"), names)
                rules |= _norm(f"{ours}norm{n}", at(s, b, f"norm{n}"), names)
            if not isinstance(block.shortcut, nn.Identity):
                rules |= _conv(f"{ours}shortcut.0", at(s, b, "conv_shortcut"), names)
                rules |= _norm(f"{ours}shortcut.1", at(s, b, "norm_shortcut"), names)
    return rules


def _flax_backbone(backbone: Backbone, names: Names) -> dict[str, Rule]:
    def at(s: int, b: int, part: str) -> str:
        part = part.replace("norm", "gn").replace("shortcut", "proj")
        return f"block{s + 1}/unit{b + 1}/{part}"

    return _backbone(backbone, names, ("conv_root", "gn_root"), at)


def _timm_backbone(backbone: Backbone, names: Names) -> dict[str, Rule]:
    def at(s: int, b: int, part: str) -> str:
        kind, _, shortcut = part.partition("_")
        part = f"downsample.{kind}" if shortcut else part
        return f"patch_embed.backbone.stages.{s}.blocks.{b}.{part}"

    stem = "patch_embed.backbone." + ("stem." if len(backbone.stages) else "")
    return _backbone(backbone, names, (f"{stem}conv", f"{stem}norm"), at)
