"""One residual block: a mixer, a position-wise feed-forward network, two norms.

Post-norm, as in the linear transformer's released code: x = norm(x + mixer(x)). Pre-norm:
x = x + mixer(norm(x)). Source: Katharopoulos et al. 2020, equation 1.
"""

from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.ops.checks import check_choice, check_fraction, check_positive

Norm = Literal["post", "pre"]
Activation = Literal["relu", "gelu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


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
        hidden = self.dropout(ACTIVATIONS[self.activation](self.inner(x)))
        mapped: Tensor = self.outer(hidden)
        return mapped


class Block(nn.Module):
    """A mixer and a feed-forward network with residuals; it does not know which mixer it holds."""

    mixer: Any

    def __init__(
        self,
        mixer: nn.Module,
        d_model: int,
        d_ff: int,
        *,
        norm: Norm = "post",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("post", "pre"))
        self.norm = norm
        self.mixer = mixer
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
        self.mixer_norm = nn.LayerNorm(d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the block on a whole sequence."""
        y = self.mixer(self._mixer_input(x), key_mask=key_mask, cu_seqlens=cu_seqlens)
        return self._finish(x, y)

    def prefill(
        self, x: Float[Tensor, "B T D"], state: Any, *, key_mask: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Run it on a stretch of tokens, going on from the mixer's ``state``."""
        y, state = self.mixer.prefill(self._mixer_input(x), state, key_mask=key_mask)
        return self._finish(x, y), state

    def step(self, x_t: Float[Tensor, "B D"], state: Any) -> tuple[Float[Tensor, "B D"], Any]:
        """Run it on one more token; ``state`` stays as it is."""
        y, state = self.mixer.step(self._mixer_input(x_t), state)
        return self._finish(x_t, y), state

    def step_(self, x_t: Float[Tensor, "B D"], state: Any) -> tuple[Float[Tensor, "B D"], Any]:
        """Run it on one more token; ``state`` may be overwritten."""
        y, state = self.mixer.step_(self._mixer_input(x_t), state)
        return self._finish(x_t, y), state

    def _mixer_input(self, x: Tensor) -> Tensor:
        return self.mixer_norm(x) if self.norm == "pre" else x

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        if self.norm == "pre":
            finished: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            x = self.mixer_norm(x)
            finished = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return finished
