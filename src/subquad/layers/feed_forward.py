"""The position-wise feed-forward network of a block. Source: Vaswani et al. 2017, section 3.3."""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.layers.frozen import Map, frozen, is_plain
from subquad.ops.checks import check_choice, check_fraction, check_positive

# "gelu" is the exact one, by erf; "gelu-tanh" its approximation, which JAX takes by default.
Activation = Literal["relu", "gelu", "gelu-tanh"]

ACTIVATIONS: dict[str, Map] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
}
IN_PLACE: dict[str, Map] = {**ACTIVATIONS, "relu": torch.relu_}


class FeedForward(nn.Module):
    """Two linear maps with an activation between, on each token alone."""

    def __init__(
        self, d_model: int, d_ff: int, *, activation: Activation = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_positive("d_ff", d_ff)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_fraction("dropout", dropout)
        self.activation = activation
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Map the last axis."""
        # In place, what lies between the two maps is written once; a hook may still want it.
        activate = (IN_PLACE if is_plain(self.inner) else ACTIVATIONS)[self.activation]
        return _feed(x, self.inner, activate, self.dropout, self.outer)

    def frozen(self, rows: int) -> Map:
        """Return ``forward`` as ``layers.frozen`` does for single layers."""
        inner, dropout, outer = (frozen(m, rows) for m in (self.inner, self.dropout, self.outer))
        activate = (
            ACTIVATIONS[self.activation] if inner is self.inner else IN_PLACE[self.activation]
        )
        return lambda x: _feed(x, inner, activate, dropout, outer)


def _feed(x: Tensor, inner: Map, activate: Map, dropout: Map, outer: Map) -> Tensor:
    return outer(dropout(activate(inner(x))))
