"""What a mixer is: the slot of every model in this library.

Axes: B batch, T time, D model width. A mixer maps (B, T, D) to (B, T, D) and lets tokens see each
other. Protocols, not base classes: anything with these methods fits.

A mixer built with ``is_causal=True`` is a ``CausalMixer``, its past is bit-identical whatever comes
later, and a token sees itself. Where that cannot hold, the class says so by an attribute, which
``subquad.testing.check_mixer`` reads (without it, True is meant):

    has_state = False      no state: init_state, prefill, step and step_ raise a ValueError
    is_past_fixed = False  a later token can change which earlier ones are seen, never their masks
    sees_itself = False    a token sees itself only where there is nothing else to see
"""

from typing import Any, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Float[Tensor, "B T D"]
Token = Float[Tensor, "B D"]
KeyMask = Bool[Tensor, "B T"]
CuSeqlens = Int[Tensor, " S_plus_1"]


class Mixer(Protocol):
    """Mix a whole sequence. ``key_mask``: True = keep; ``cu_seqlens``: B = 1, without key_mask."""

    def __call__(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Return the mixed tokens; those at padded positions are finite and mean nothing."""
        ...


class CausalMixer(Mixer, Protocol):
    """A mixer that can also go on from a state: ``forward`` is ``prefill`` from the empty one."""

    def init_state(self, batch_size: int) -> Any:
        """Return the empty past."""
        ...

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        ...

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token; ``state`` stays as it is."""
        ...

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token; ``state`` may be overwritten."""
        ...


class CrossMixer(Protocol):
    """Let tokens see another sequence, (B, S, D_context).

    To decode from one context, token by token, it is read once: ``attend_state`` on the state that
    ``context_state`` gives is the call on the context.
    """

    def __call__(
        self, x: Tokens, context: Float[Tensor, "B S C"], *, key_mask: KeyMask | None = None
    ) -> Tokens:
        """Return the tokens mixed with ``context``; ``key_mask`` (B, S) belongs to the context."""
        ...

    def context_state(
        self, context: Float[Tensor, "B S C"], *, key_mask: KeyMask | None = None
    ) -> Any:
        """Return what is kept of a context."""
        ...

    def attend_state(self, x: Tokens, state: Any) -> Tokens:
        """Return the tokens mixed with the context of ``state``, which stays as it is."""
        ...
