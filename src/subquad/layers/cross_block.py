"""One residual block of a decoder that sees a context: a mixer, cross-attention, feed-forward.

Post-norm: x = norm(x + part(x)) for each of the three parts; pre-norm: x = x + part(norm(x)).
Source: Vaswani et al. 2017, section 3.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.layers.block import Norm
from subquad.layers.checkpointing import run
from subquad.layers.feed_forward import Activation, FeedForward
from subquad.ops.checks import check_choice


class CrossState(NamedTuple):
    """What one block decodes from: its mixer's past, and what its cross-attention kept."""

    past: Any
    context: Any


class CrossBlock(nn.Module):
    """Mix tokens, let them see a context, map each; three residuals.

    Args:
        mixer: of the tokens, a ``CausalMixer`` to decode with.
        cross: a ``CrossMixer``.
        d_model: width D.
        d_ff: hidden width of the feed-forward network.
        norm: "post" or "pre".
        activation: "relu", "gelu" or "gelu-tanh" (its approximation by tanh).
        dropout: share dropped behind each part and within the feed-forward network.
        repeat_mixer: keep only the inputs of ``mixer`` and ``cross`` for the backward pass, which
            then runs them again.

    Raises:
        ValueError: if a name or a number does not fit.
    """

    mixer: Any
    cross: Any

    def __init__(
        self,
        mixer: nn.Module,
        cross: nn.Module,
        d_model: int,
        d_ff: int,
        *,
        norm: Norm = "post",
        activation: Activation = "relu",
        dropout: float = 0.0,
        repeat_mixer: bool = False,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("post", "pre"))
        self.norm, self.repeat_mixer = norm, repeat_mixer
        self.mixer, self.cross = mixer, cross
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
        self.mixer_norm = nn.LayerNorm(d_model)
        self.cross_norm = nn.LayerNorm(d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S C"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        context_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the block on whole sequences."""
        again = self.repeat_mixer

        def mix(y: Tensor) -> Tensor:
            return run(self.mixer, y, again=again, key_mask=key_mask)

        def see(y: Tensor) -> Tensor:
            return run(self.cross, y, context, again=again, key_mask=context_mask)

        return self._finish(self._residual(x, mix, self.mixer_norm), see)

    def init_state(
        self, context: Float[Tensor, "B S C"], *, context_mask: Bool[Tensor, "B S"] | None = None
    ) -> CrossState:
        """Return the empty past, and what is kept of ``context``."""
        kept = self.cross.context_state(context, key_mask=context_mask)
        return CrossState(self.mixer.init_state(len(context)), kept)

    def prefill(
        self,
        x: Float[Tensor, "B T D"],
        state: CrossState,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], CrossState]:
        """Run it on a stretch of tokens, going on from ``state``."""
        y, past = self.mixer.prefill(self._enter(x), state.past, key_mask=key_mask)
        return self._go_on(x, y, state, past)

    def step(
        self, x_t: Float[Tensor, "B D"], state: CrossState
    ) -> tuple[Float[Tensor, "B D"], CrossState]:
        """Run it on one more token; ``state`` stays as it is."""
        y, past = self.mixer.step(self._enter(x_t), state.past)
        return self._go_on_one(x_t, y, state, past)

    def step_(
        self, x_t: Float[Tensor, "B D"], state: CrossState
    ) -> tuple[Float[Tensor, "B D"], CrossState]:
        """Run it on one more token; ``state`` may be overwritten."""
        y, past = self.mixer.step_(self._enter(x_t), state.past)
        return self._go_on_one(x_t, y, state, past)

    def stepper(self, batch_size: int) -> Callable[[Tensor, CrossState], tuple[Tensor, CrossState]]:
        """Return ``step_`` for a loop over tokens."""
        del batch_size  # nothing is prepared for it
        return self.step_

    def _enter(self, x: Tensor) -> Tensor:
        entered: Tensor = self.mixer_norm(x) if self.norm == "pre" else x
        return entered

    def _go_on_one(
        self, x_t: Tensor, y: Tensor, state: CrossState, past: Any
    ) -> tuple[Tensor, CrossState]:
        x, state = self._go_on(x_t.unsqueeze(1), y.unsqueeze(1), state, past)
        return x.squeeze(1), state

    def _go_on(
        self, x: Tensor, y: Tensor, state: CrossState, past: Any
    ) -> tuple[Tensor, CrossState]:
        """Add what the mixer gave, and do what comes behind it from the kept context."""
        x = self._leave(x, y, self.mixer_norm)
        x = self._finish(x, lambda z: self.cross.attend_state(z, state.context))
        return x, CrossState(past, state.context)

    def _finish(self, x: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        x = self._residual(x, see, self.cross_norm)
        return self._residual(x, self.feed_forward, self.feed_forward_norm)

    def _residual(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        return self._leave(x, part(norm(x) if self.norm == "pre" else x), norm)

    def _leave(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(y)
        left: Tensor = x if self.norm == "pre" else norm(x)
        return left
