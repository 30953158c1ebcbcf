"""One residual block: a mixer, a position-wise feed-forward network, two norms.

Post-norm, as in the linear transformer's released code: x = norm(x + mixer(x)). Pre-norm:
x = x + mixer(norm(x)). Source: Katharopoulos et al. 2020, equation 1.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.layers.checkpointing import run
from subquad.layers.feed_forward import Activation, FeedForward
from subquad.layers.frozen import Map, frozen, is_plain
from subquad.layers.fused_block import fused_step
from subquad.layers.stochastic_depth import StochasticDepth
from subquad.ops.checks import check_choice, check_positive_number

Norm = Literal["post", "pre"]

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def _frozen_feed_forward(module: nn.Module, rows: int) -> Map:
    """Return a block's own network frozen; one that was put in its place, or hooked, as it is."""
    return module.frozen(rows) if type(module) is FeedForward and is_plain(module) else module


def _has_stepper(mixer: Any) -> bool:
    """Return whether a mixer has a ``stepper`` that does what its ``step_`` does.

    A subclass with another ``step_`` has inherited one that does not.
    """
    owners = [
        next((kind for kind in type(mixer).__mro__ if name in vars(kind)), None)
        for name in ("stepper", "step_")
    ]
    return owners[0] is not None and owners[0] is owners[1]


class _Parts(NamedTuple):
    """A block's layers behind and before the mixer, as modules or frozen."""

    mixer_norm: Map
    feed_forward: Map
    feed_forward_norm: Map
    dropout: Map


class Block(nn.Module):
    """A mixer and a feed-forward network with residuals; it does not know which mixer it holds.

    Args:
        mixer: a ``Mixer``.
        d_model: width D.
        d_ff: hidden width of the feed-forward network.
        norm: "post" or "pre".
        activation: "relu", "gelu" (by erf) or "gelu-tanh" (its approximation by tanh).
        dropout: share dropped behind both parts and within the feed-forward network.
        drop_path: share of examples that lose a whole residual branch in training.
        norm_eps: added to the variance in both norms.
        repeat_mixer: keep only the mixer's input for the backward pass, which then runs it again.

    Raises:
        ValueError: if a name or a number does not fit.
    """

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
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        repeat_mixer: bool = False,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("post", "pre"))
        check_positive_number("norm_eps", norm_eps)
        self.norm, self.repeat_mixer = norm, repeat_mixer
        self.mixer = mixer
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dropout=dropout)
        self.mixer_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth(drop_path)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the block on a whole sequence."""
        parts = self._parts()
        y = run(
            self.mixer, self._mixer_input(x, parts), again=self.repeat_mixer,
            key_mask=key_mask, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        return self._finish(x, y, parts, cu_seqlens)

    def prefill(
        self, x: Float[Tensor, "B T D"], state: Any, *, key_mask: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Run it on a stretch of tokens, going on from the mixer's ``state``."""
        parts = self._parts()
        y, state = self.mixer.prefill(self._mixer_input(x, parts), state, key_mask=key_mask)
        return self._finish(x, y, parts), state

    def step(self, x_t: Float[Tensor, "B D"], state: Any) -> tuple[Float[Tensor, "B D"], Any]:
        """Run it on one more token; ``state`` stays as it is."""
        return self._step(x_t, state, self.mixer.step, self._parts())

    def step_(self, x_t: Float[Tensor, "B D"], state: Any) -> tuple[Float[Tensor, "B D"], Any]:
        """Run it on one more token; ``state`` may be overwritten."""
        return self._step(x_t, state, self.mixer.step_, self._parts())

    def stepper(self, batch_size: int) -> Step:
        """Return ``step_`` for a loop over tokens, with the weights as they are now.

        A mixer may have a ``stepper`` of its own; else its ``step_`` is called.
        """
        # A block of another class may do something else between its parts.
        fused = fused_step(self, batch_size) if type(self) is Block else None
        if fused is not None:
            return fused
        parts = _Parts(
            frozen(self.mixer_norm, batch_size),
            _frozen_feed_forward(self.feed_forward, batch_size),
            frozen(self.feed_forward_norm, batch_size),
            frozen(self.dropout, batch_size),
        )
        take = self.mixer.stepper(batch_size) if _has_stepper(self.mixer) else self.mixer.step_
        return lambda x_t, state: self._step(x_t, state, take, parts)

    def _parts(self) -> _Parts:
        return _Parts(self.mixer_norm, self.feed_forward, self.feed_forward_norm, self.dropout)

    def _step(self, x_t: Tensor, state: Any, take: Step, parts: _Parts) -> tuple[Tensor, Any]:
        y, state = take(self._mixer_input(x_t, parts), state)
        return self._finish(x_t, y, parts), state

    def _mixer_input(self, x: Tensor, parts: _Parts) -> Tensor:
        return parts.mixer_norm(x) if self.norm == "pre" else x

    def _finish(
        self, x: Tensor, y: Tensor, parts: _Parts, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        mixer_norm, feed_forward, feed_forward_norm, dropout = parts
        x = x + self._kept(dropout(y), cu_seqlens)
        if self.norm == "pre":
            return x + self._kept(dropout(feed_forward(feed_forward_norm(x))), cu_seqlens)
        x = mixer_norm(x)
        return feed_forward_norm(x + self._kept(dropout(feed_forward(x)), cu_seqlens))

    def _kept(self, branch: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Return the branch, or without it those examples that lose it."""
        # Not even a call where none is dropped: a decoder passes here at each token.
        if self.drop_path.rate == 0:
            return branch
        kept: Tensor = self.drop_path(branch, cu_seqlens)
        return kept
