"""Lambda layers with a part left out, or normalised otherwise: what lambda-ablations compares.

Source: Bello 2021, "LambdaNetworks", the appendix on ablations. It is known from reports only, so
over which axes its norms run is our reading: the softmax of queries over their K channels, the
2-norm of keys over the context, as their softmax is.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.layers.lambda_layer import LambdaLayer, by_head
from subquad.models.small_resnet import PooledNorm
from subquad.ops.checks import check_choice
from subquad.ops.lambda_layer import apply_content
from subquad.ops.lambda_position import position_interactions

Keys = Literal["softmax", "l2", "none"]
Queries = Literal["none", "softmax"]


class AblatedLambdaLayer(LambdaLayer):
    """A lambda layer without one of its parts; (B, C, H, W) -> (B, D, H, W).

    Args:
        in_channels, out_channels: C and D.
        keys: what is done to each channel of the keys, over the context.
        queries: "softmax" over the channels of each query, or "none".
        has_content: whether there are content lambdas; without them there are no keys.
        has_position: whether there are position lambdas; ``window`` and ``grid`` are then not used.
        window, grid, options: see ``LambdaLayer``.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if an option does not fit, or neither part is left.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        keys: Keys = "softmax",
        queries: Queries = "none",
        has_content: bool = True,
        has_position: bool = True,
        window: int | None = None,
        grid: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        check_choice("keys", keys, ("softmax", "l2", "none"))
        check_choice("queries", queries, ("none", "softmax"))
        if not (has_content or has_position):
            raise ValueError("one of has_content and has_position must be True, got neither")
        where: dict[str, Any] = {"window": window, "grid": grid} if has_position else {}
        super().__init__(in_channels, out_channels, **where, **options)
        self.keys, self.queries = keys, queries
        if not has_content:
            self.widths = (self.widths[0], 0, self.widths[2])
            self.qkv = nn.Linear(in_channels, sum(self.widths), bias=False)
            self.reset_parameters()

    def forward(
        self, x: Float[Tensor, "B C *grid"], *, key_mask: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B D *grid"]:
        """Apply the layer, to images without hidden pixels.

        Raises:
            ValueError: if ``key_mask`` is given.
        """
        if key_mask is not None:
            raise ValueError("key_mask must be None in a layer for comparisons, got a mask")
        projected = self.qkv.weight @ x.flatten(2)
        q, k, v = torch.split(projected, list(self.widths), dim=1)
        q = by_head(q if self.norm_q is None else self.norm_q(q), self.num_heads)
        v = by_head(v if self.norm_v is None else self.norm_v(v), self.intra_depth)
        if self.queries == "softmax":
            q = q.softmax(-1)
        y = torch.zeros(1, dtype=v.dtype, device=v.device)
        if self.widths[1]:
            keys = self._normalised_keys(by_head(k, self.intra_depth))
            y = y + apply_content(q, torch.einsum("bumk,bumv->bkv", keys, v))
        if self.table is not None:
            y = y + position_interactions(q, v, self.table, grid=tuple(x.shape[2:]), form=self.form)
        return y.transpose(2, 3).reshape(len(x), self.out_channels, *x.shape[2:])

    def _normalised_keys(self, k: Float[Tensor, "B U M K"]) -> Float[Tensor, "B U M K"]:
        if self.keys == "softmax":
            return k.softmax(2)
        return F.normalize(k, dim=2) if self.keys == "l2" else k


def ablate(model: nn.Module, **changed: Any) -> None:
    """Put an ``AblatedLambdaLayer`` in the place of each lambda layer, options but these alike.

    Args:
        model: changed in place; new weights are drawn.
        changed: arguments of ``AblatedLambdaLayer``. ``window`` None is a global context.
    """
    for module in model.modules():
        if isinstance(module, PooledNorm) and isinstance(module.layer, LambdaLayer):
            module.layer = _ablated(module.layer, module.grid, changed)


def _ablated(
    layer: LambdaLayer, grid: tuple[int, int], changed: dict[str, Any]
) -> AblatedLambdaLayer:
    options: dict[str, Any] = {
        "num_heads": layer.num_heads,
        "head_dim": layer.head_dim,
        "intra_depth": layer.intra_depth,
        "window": layer.table.shape[2] if layer.table is not None and layer.is_local else None,
        **changed,
    }
    if options["window"] is None:
        options["grid"] = grid
    return AblatedLambdaLayer(layer.in_channels, layer.out_channels, **options)
