"""State dicts of lambda networks in other libraries' layouts: theirs to ours, and ours to theirs.

| layout | of | names |
|---|---|---|
| "timm" | a ``LambdaResNet`` with the stem "tiered" | byoanet's lambda_resnet26t and its like |
| "d-li14" | a ``LambdaResNet`` with the stem "plain" | a ResNet of torchvision, lambdas in conv2 |
| "lambda-networks" | a ``LambdaLayer`` of two axes | lucidrains' LambdaLayer |

Every tensor of one side is made of tensors of the other side, so nothing is lost either way; the
counters of batch-norm go along.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from subquad.layers.lambda_layer import LambdaLayer
from subquad.models.lambda_resnet import LambdaResNet
from subquad.models.resnet_blocks import Bottleneck, LambdaStage
from subquad.ops.checks import check_choice
from subquad.pretrained.naming import (
    Rule,
    check_finite,
    check_names,
    expected_shapes,
    moved,
    same,
)

Layout = Literal["timm", "d-li14", "lambda-networks"]
LAYOUTS: tuple[Layout, ...] = ("timm", "d-li14", "lambda-networks")
INDICES = ".self_attn.rel_pos_indices"  # in timm's older files; it follows from the table's shape
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_lambda_weights(model: nn.Module, weights: Mapping[str, Tensor], layout: Layout) -> None:
    """Load a state dict of another library into ``model``, all of it or nothing.

    Args:
        model: a ``LambdaResNet``, or a ``LambdaLayer`` for "lambda-networks".
        weights: names to tensors; the indices into tables of timm's older files are passed over.
        layout: whose names they are.

    Raises:
        TypeError: if the model is none of that layout.
        ValueError: if the layout is unknown or does not fit the model's options; or with every name
            that is missing, unexpected, of another shape, or NaN or infinite in the model's
            precision.
    """
    rules = _rules(model, layout)
    found = model.state_dict()
    if layout == "timm":
        weights = {name: x for name, x in weights.items() if not name.endswith(INDICES)}
    check_names(expected_shapes(rules, found), weights, layout)
    check_finite(rules, weights, found)
    joined = {ours: rule.join([weights[n] for n in rule.theirs]) for ours, rule in rules.items()}
    assert {n: x.shape for n, x in joined.items()} == {n: x.shape for n, x in found.items()}
    model.load_state_dict(joined)


def lambda_weights(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Return ``model``'s weights under the names of another library, to be loaded there.

    Raises:
        TypeError: if the model is none of that layout.
        ValueError: if the layout is unknown or does not fit the model's options.
    """
    found = model.state_dict()
    return {
        name: x.clone()
        for ours, rule in _rules(model, layout).items()
        for name, x in zip(rule.theirs, rule.part(found[ours]), strict=True)
    }


def _rules(model: nn.Module, layout: Layout) -> dict[str, Rule]:
    check_choice("layout", layout, LAYOUTS)
    kind = LambdaLayer if layout == "lambda-networks" else LambdaResNet
    if not isinstance(model, kind):
        raise TypeError(
            f"model must be a {kind.__name__} for the layout {layout}, got {type(model).__name__}"
        )
    if isinstance(model, LambdaLayer):
        return _layer_rules(model, "", "", _LUCIDRAINS)
    assert isinstance(model, LambdaResNet)
    needed = _TIMM_OPTIONS if layout == "timm" else _D_LI14_OPTIONS
    for name, value in needed.items():
        if model.config[name] != value:
            raise ValueError(
                f"model must have the {name} {value!r} for the layout {layout}, "
                f"got {model.config[name]!r}"
            )
    if any("S" in kinds for kinds in model.config["stages"]):
        raise ValueError(f"model must have no squeeze-excitation for the layout {layout}")
    return _timm_rules(model) if layout == "timm" else _d_li14_rules(model)


# What a state dict does not tell, and these libraries do not offer otherwise. timm's activation is
# that of the network's name: ReLU or SiLU.
_TIMM_OPTIONS = {"stem": "tiered", "shortcut": "conv", "pooling": 2, "intra_depth": 1}
_D_LI14_OPTIONS = {"stem": "plain", "shortcut": "conv", "pooling": 3, "activation": "relu"}


def _timm_rules(model: LambdaResNet) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for n in range(len(model.stem.convs)):
        rules |= _conv_rules(f"stem.convs.{n}", f"stem.conv{n + 1}.conv", f"stem.conv{n + 1}.bn")
    for name, block in _blocks(model):
        parts = {"narrow": "conv1_1x1", "widen": "conv3_1x1", "shortcut": "shortcut"}
        if not isinstance(block.spatial, LambdaStage):
            parts["spatial"] = "conv2_kxk"
        for ours, theirs in parts.items():
            if not isinstance(getattr(block, ours), nn.Identity):
                at = f"{name}.{theirs}"
                rules |= _conv_rules(f"{name}.{ours}", f"{at}.conv", f"{at}.bn")
        if isinstance(block.spatial, LambdaStage):
            rules |= _norm_rules(f"{name}.spatial.norm", f"{name}.post_attn")
            ours, layer = f"{name}.spatial.lambdas.", block.spatial.lambdas
            rules |= _layer_rules(layer, ours, f"{name}.self_attn.", _TIMM)
    return rules | {f"head.{part}": same(f"head.fc.{part}") for part in ("weight", "bias")}


def _d_li14_rules(model: LambdaResNet) -> dict[str, Rule]:
    rules = _conv_rules("stem.convs.0", "conv1", "bn1")
    for name, block in _blocks(model):
        _, stage, number = name.split(".")
        at = f"layer{int(stage) + 1}.{number}."
        rules |= _conv_rules(f"{name}.narrow", f"{at}conv1", f"{at}bn1")
        rules |= _conv_rules(f"{name}.widen", f"{at}conv3", f"{at}bn3")
        if not isinstance(block.shortcut, nn.Identity):
            rules |= _conv_rules(f"{name}.shortcut", f"{at}downsample.0", f"{at}downsample.1")
        if isinstance(block.spatial, LambdaStage):
            ours, layer = f"{name}.spatial.lambdas.", block.spatial.lambdas
            rules |= _layer_rules(layer, ours, f"{at}conv2.", _D_LI14)
            rules |= _norm_rules(f"{name}.spatial.norm", f"{at}bn2")
        else:
            rules |= _conv_rules(f"{name}.spatial", f"{at}conv2", f"{at}bn2")
    return rules | {f"head.{part}": same(f"fc.{part}") for part in ("weight", "bias")}


def _blocks(model: LambdaResNet) -> list[tuple[str, Bottleneck]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Bottleneck)]


@dataclass(frozen=True, kw_only=True)
class _LayerNames:
    """Where a library keeps the parts of a lambda layer; no table: it has no such form."""

    qkv: tuple[str, ...]
    conv: str
    conv_axes: Callable[[Tensor], Tensor]  # (K, U, r, r) as the library has it
    from_conv: Callable[[Tensor], Tensor]
    table: str | None
    table_axes: Callable[[Tensor], Tensor] = lambda x: x.permute(2, 3, 0, 1)
    from_table: Callable[[Tensor], Tensor] = lambda x: x.permute(2, 3, 0, 1)


_TIMM = _LayerNames(
    qkv=("qkv.weight",), conv="conv_lambda",
    conv_axes=lambda x: x.unsqueeze(-1), from_conv=lambda x: x.squeeze(-1),
    table="pos_emb", table_axes=lambda x: x[:, 0].permute(1, 2, 0),
    from_table=lambda x: x.permute(2, 0, 1).unsqueeze(1),
)  # fmt: skip
_D_LI14 = _LayerNames(
    qkv=("conv_qkv.weight",), conv="lambda_conv", conv_axes=lambda x: x.unsqueeze(2),
    from_conv=lambda x: x.squeeze(2), table=None,
)  # fmt: skip
_LUCIDRAINS = _LayerNames(
    qkv=("to_q.weight", "to_k.weight", "to_v.weight"), conv="pos_conv",
    conv_axes=lambda x: x.unsqueeze(2), from_conv=lambda x: x.squeeze(2), table="rel_pos_emb",
)  # fmt: skip


def _layer_rules(layer: LambdaLayer, ours: str, theirs: str, names: _LayerNames) -> dict[str, Rule]:
    if layer.num_axes != 2 or layer.norm_q is None or layer.table is None:
        raise ValueError(
            "model must have lambda layers of two axes with batch_norm and position lambdas, got "
            f"{layer.num_axes} axes, batch_norm={layer.norm_q is not None}, "
            f"table={layer.table is not None}"
        )
    widths = list(layer.widths) if len(names.qkv) > 1 else [sum(layer.widths)]
    rules = {
        f"{ours}qkv.weight": Rule(
            theirs=tuple(theirs + name for name in names.qkv),
            join=lambda parts: torch.cat(parts).flatten(1),
            part=lambda x: [y[..., None, None] for y in torch.split(x, widths)],
        )
    }
    for norm in ("norm_q", "norm_v"):
        rules |= _norm_rules(ours + norm, theirs + norm)
    if layer.is_local != (layer.bias is not None):
        raise ValueError(
            "model must have lambda layers with a bias where they have a window, and without where "
            f"they have none, got {'a' if layer.is_local else 'no'} window and "
            f"{'no' if layer.bias is None else 'a'} bias"
        )
    if layer.is_local:
        at = f"{theirs}{names.conv}."
        rules[f"{ours}table"] = moved(f"{at}weight", names.from_conv, names.conv_axes)
        rules[f"{ours}bias"] = same(f"{at}bias")
        return rules
    height, width = layer.table.shape[2:]
    if names.table is None or height != width:
        raise ValueError(
            "model must have a window or, in layouts that have tables, a square grid in its "
            f"lambda layers, got a table of {height} x {width}"
        )
    at = theirs + names.table
    rules[f"{ours}table"] = moved(at, names.from_table, names.table_axes)
    return rules


def _conv_rules(ours: str, conv: str, norm: str) -> dict[str, Rule]:
    weight = {f"{ours}.conv.weight": same(f"{conv}.weight")}
    return weight | _norm_rules(f"{ours}.norm", norm)


def _norm_rules(ours: str, theirs: str) -> dict[str, Rule]:
    return {f"{ours}.{part}": same(f"{theirs}.{part}") for part in NORM}
