"""Sequence to sequence over any mixer: an encoder, and a decoder that sees what it encoded.

With linear attention or the Performer the decoder keeps two states of constant size a layer: that
of its own tokens, and that of the encoded context, made once. Softmax keeps keys and values.

Source: Vaswani et al. 2017, section 3; Katharopoulos et al. 2020, equations 5 and 16 to 20.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.layers.cross_block import CrossBlock
from subquad.layers.linear_attention import LinearCrossAttention
from subquad.layers.performer import PerformerCrossAttention
from subquad.layers.positions import token_positions
from subquad.layers.softmax_attention import SoftmaxCrossAttention
from subquad.models.encoder import TransformerEncoder
from subquad.models.mixing import MixerChoice
from subquad.models.stack import Stack, StackOptions, StackState
from subquad.ops.checks import (
    check_batch_size,
    check_ids,
    check_key_mask,
    check_positive,
    check_rows,
    check_tokens,
)

CrossFactory = Callable[..., Any]

# The mixers that have a cross form: CROSS_MIXERS[name](d_model, num_heads).
CROSS_MIXERS: dict[str, CrossFactory] = {
    "softmax": SoftmaxCrossAttention,
    "linear": LinearCrossAttention,
    "performer": PerformerCrossAttention,
}


class EncoderDecoder(nn.Module):
    """Predict token t + 1 of a target from its tokens 0 .. t and all of a source.

    Args:
        vocab_size: number of token ids of the source, and of the target unless that is given.
        target_vocab_size: number of token ids of the target; W below.
        d_model: width D of both halves.
        mixer: of both halves; see ``Stack``. To decode it must have a state.
        cross: a name in ``CROSS_MIXERS``, or a factory (d_model, num_heads) of a ``CrossMixer``;
            the mixer's own name unless given.
        options: those of ``Stack``, the same in both halves; positions are "sinusoidal-concat"
            unless given. The cross-attention has heads of width D / num_heads and no positions.

    Raises:
        TypeError: if an option is unknown or a number is not an int.
        ValueError: if an option does not fit, or ``mixer`` has no cross form and none is named.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        target_vocab_size: int | None = None,
        d_model: int = 256,
        cross: str | CrossFactory | None = None,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__()
        target_size = vocab_size if target_vocab_size is None else target_vocab_size
        check_positive("vocab_size", vocab_size)
        check_positive("target_vocab_size", target_size)
        options.setdefault("positions", "sinusoidal-concat")
        factory = cross_factory(cross, options.get("mixer", "linear"))
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size, "target_vocab_size": target_vocab_size, "d_model": d_model,
            "cross": cross, **options,
        }  # fmt: skip
        self.vocab_size, self.target_vocab_size = vocab_size, target_size
        self.encoder = TransformerEncoder(d_model, **options)
        self.decoder = CrossStack(d_model, factory, options)
        width = self.encoder.token_width
        self.source_embedding = nn.Embedding(vocab_size, width)
        self.target_embedding = nn.Embedding(target_size, width)
        self.head = nn.Linear(d_model, target_size)

    def forward(
        self,
        source: Int[Tensor, "B S"],
        target: Int[Tensor, "B T"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
        target_mask: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Return the logits of the next token at each place of the target.

        Args:
            source: ids (B, S).
            target: ids (B, T), the first of which is usually a token for the start.
            key_mask: (B, S) bool, True = keep, of the source.
            target_mask: (B, T) bool, True = keep, of the target.

        Raises:
            TypeError: if ids are not of an integer dtype.
            ValueError: if an id, a shape or a mask does not fit.
        """
        x = self._embed(target)
        check_rows("source", source)
        check_batch_size("source", source, "target", target)
        context = self.encode(source, key_mask=key_mask)
        hidden = self.decoder(x, context, key_mask=target_mask, context_mask=key_mask)
        logits: Tensor = self.head(hidden)
        return logits

    def encode(
        self, source: Int[Tensor, "B S"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """Return what the decoder shall see of a source."""
        check_rows("source", source)
        check_ids("source", source, self.vocab_size)
        context: Tensor = self.encoder(self.source_embedding(source), key_mask=key_mask)
        return context

    def init_state(
        self, context: Float[Tensor, "B S D"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> StackState:
        """Return the empty target before what ``encode`` gave: each layer's two states.

        Args:
            context: (B, S, D).
            key_mask: (B, S) bool, True = keep, as ``encode`` had it.
        """
        return self.decoder.init_state(context, key_mask=key_mask)

    def prefill(
        self,
        target: Int[Tensor, "B T"],
        state: StackState,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T W"], StackState]:
        """Read a stretch of the target in parallel; ``key_mask`` is of these tokens."""
        hidden, state = self.decoder.prefill(self._embed(target), state, key_mask=key_mask)
        return self.head(hidden), state

    def step(
        self, token: Int[Tensor, " B"], state: StackState
    ) -> tuple[Float[Tensor, "B W"], StackState]:
        """Read one more token of the target a row; ``state`` stays as it is."""
        hidden, state = self.decoder.step(self._embed(token.unsqueeze(1)).squeeze(1), state)
        return self.head(hidden), state

    def step_(
        self, token: Int[Tensor, " B"], state: StackState
    ) -> tuple[Float[Tensor, "B W"], StackState]:
        """Read one more token of the target a row; ``state`` may be overwritten; no gradient."""
        hidden, state = self.decoder.step_(self._embed(token.unsqueeze(1)).squeeze(1), state)
        return self.head(hidden), state

    def _embed(self, target: Tensor) -> Float[Tensor, "B T E"]:
        check_rows("target", target)
        check_ids("target", target, self.target_vocab_size)
        embedded: Tensor = self.target_embedding(target)
        return embedded


class CrossStack(Stack):
    """A causal ``Stack`` whose blocks see a context (B, S, D) too."""

    def __init__(self, d_model: int, cross: CrossFactory, options: StackOptions) -> None:
        self._cross = cross  # before the blocks are built, which ask for it
        super().__init__(d_model, is_causal=True, **options)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "B T E"],
        context: Float[Tensor, "B S D"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        context_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the blocks on whole sequences."""
        x = self._enter(x, key_mask)
        x = self.positions(x, token_positions(x, key_mask=key_mask))
        return self._through(x, context, key_mask=key_mask, context_mask=context_mask)

    def init_state(  # type: ignore[override]
        self, context: Float[Tensor, "B S D"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> StackState:
        """Return the empty past before a context."""
        check_tokens("context", context, self.d_model)
        check_key_mask(key_mask, context, *context.shape[:2])
        states = tuple(block.init_state(context, context_mask=key_mask) for block in self._blocks())
        position = torch.zeros(len(context), dtype=torch.long, device=context.device)
        return StackState(states, position)

    def _new_block(self, mixer: nn.Module, d_model: int, d_ff: int, **options: Any) -> nn.Module:
        return CrossBlock(mixer, self._cross(d_model, self.num_heads), d_model, d_ff, **options)


def cross_factory(cross: str | CrossFactory | None, mixer: MixerChoice) -> CrossFactory:
    """Return the factory that ``cross`` names, or the cross form of ``mixer``.

    Raises:
        ValueError: if there is none of that name.
    """
    if cross is not None and not isinstance(cross, str):
        return cross
    name = mixer if cross is None else cross
    if isinstance(name, str) and name in CROSS_MIXERS:
        return CROSS_MIXERS[name]
    known = ", ".join(CROSS_MIXERS)
    if cross is None:
        raise ValueError(f"cross must be given with a mixer other than {known}, got {mixer!r}")
    raise ValueError(f"cross must be one of {known} or a factory; got {cross!r}")
