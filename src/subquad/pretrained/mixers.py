"""What takes the place of softmax inside an attention module of transformers: it mixes q, k and v.

The attention module keeps its own projections. A mixer here is a submodule of it, named
``subquad``, so that its random directions are in the model's state dict.

Axes: B batch, H query heads, G key heads (grouped-query attention; G divides H), T time (Tq
queries, Tk keys), K head width, V value width.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.layers.drawn_features import DrawnFeatures, Kernel
from subquad.ops.generalized_features import (
    KERNEL_FUNCTIONS,
    GeneralizedFeatures,
    GeneralizedKernel,
)
from subquad.ops.performer_attention import performer_attention
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_options import check_features
from subquad.ops.performer_state import State, performer_state
from subquad.ops.softmax_attention import softmax_attention

# Linear attention as Katharopoulos et al. 2020 have it: no directions, and no eps beside elu + 1.
ELU_PLUS_ONE = GeneralizedKernel(
    function=KERNEL_FUNCTIONS["elu_plus_one"], projected=False, eps=0.0
)

Queries = Float[Tensor, "B H Tq K"]
Keys = Float[Tensor, "B G Tk K"]
Values = Float[Tensor, "B G Tk V"]
Mixed = Float[Tensor, "B H Tq V"]


class SwappedAttention(nn.Module):
    """Random features, or a feature map, in place of softmax.

    Args:
        mixer: the name under which transformers finds it: "performer" or "linear".
        kernel: which features.
        head_dim: width K of a head.
        num_features: directions, by default what ``kernel`` chooses.
        redraw_every: new directions after so many passes in training; None: never.
        max_per_feature: causal at any magnitude; see ``performer_attention``.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number or an option does not fit.
    """

    def __init__(
        self,
        mixer: str,
        kernel: Kernel,
        head_dim: int,
        *,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        max_per_feature: bool = False,
    ) -> None:
        super().__init__()
        self.mixer, self.max_per_feature = mixer, max_per_feature
        self.features = DrawnFeatures(kernel, head_dim, num_features, redraw_every=redraw_every)
        keys = torch.empty(1, head_dim, device=self.features.schedule.device)
        check_features(
            self.features.current(), keys, scale=None, normalize=True,
            max_per_feature=max_per_feature,
        )  # fmt: skip

    def forward(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        scaling: float,
        is_causal: bool,
        key_mask: Bool[Tensor, "B Tk"] | None = None,
        dropout: float = 0.0,
    ) -> Mixed:
        """Mix; with ``is_causal`` the queries are the last Tq of Tk tokens.

        Cached keys (Tq < Tk) are summed anew: the result is exactly that of the parallel form, at a
        cost that grows with Tk as softmax's does. ``StateCache`` has a state of constant size.
        """
        _refuse_dropout(self.mixer, dropout)
        k, v = _grouped(q, k, v)
        q, k, scale, features = self._scaled(q, k, scaling, self.features())
        missing = k.shape[2] - q.shape[2] if is_causal else 0
        y = performer_attention(
            F.pad(q, (0, 0, missing, 0)) if missing else q, k, v, is_causal=is_causal,
            key_mask=key_mask, features=features, scale=scale,
            max_per_feature=self.max_per_feature and is_causal,
        )  # fmt: skip
        return y[:, :, missing:]

    def advance(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        state: State | None,
        *,
        scaling: float,
        key_mask: Bool[Tensor, "B Tq"] | None = None,
    ) -> tuple[Mixed, State]:
        """Mix the next Tq = Tk tokens, causally, going on from ``state`` (None: no past)."""
        k, v = _grouped(q, k, v)
        q, k, scale, features = self._scaled(q, k, scaling, self.features.current())
        if state is None:
            state = performer_state(
                k.shape[0], k.shape[1], k.shape[3], v.shape[3], features, v,
                max_per_feature=self.max_per_feature,
            )  # fmt: skip
        return performer_attention_chunked(
            q, k, v, state, features=features, key_mask=key_mask, scale=scale,
            max_per_feature=self.max_per_feature,
        )  # fmt: skip

    def _scaled(
        self, q: Tensor, k: Tensor, scaling: float, features: Any
    ) -> tuple[Tensor, Tensor, float | None, Any]:
        """Give the model's factor on q . k to the features, or by halves to both sides of a map."""
        if isinstance(features, GeneralizedFeatures):
            root = math.sqrt(scaling)
            return q * root, k * root, None, features
        return q, k, scaling, features

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"mixer={self.mixer}"


class KeptSoftmax(nn.Module):
    """Softmax itself, for layers that stay as they are beside swapped ones."""

    mixer = "softmax"

    def forward(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        scaling: float,
        is_causal: bool,
        key_mask: Bool[Tensor, "B Tk"] | None = None,
        dropout: float = 0.0,
    ) -> Mixed:
        """Mix; as ``SwappedAttention``, with dropout of the weights."""
        k, v = _grouped(q, k, v)
        missing = k.shape[2] - q.shape[2] if is_causal else 0
        y = softmax_attention(
            F.pad(q, (0, 0, missing, 0)) if missing else q, k, v, is_causal=is_causal,
            key_mask=key_mask, scale=scaling, dropout_p=dropout,
        )  # fmt: skip
        return y[:, :, missing:]


def _refuse_dropout(mixer: str, dropout: float) -> None:
    if dropout:
        raise ValueError(
            f"dropout of attention weights must be 0 in training with subquad_{mixer}, which has "
            f"no weights to drop, got {dropout:g}: swap(..., attention_dropout=0.0) sets it"
        )


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat keys and values for the query heads that share them."""
    times = q.shape[1] // k.shape[1]
    if times == 1:
        return k, v
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
