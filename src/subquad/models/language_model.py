"""A causal language model over any mixer."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.models.decoder import TransformerDecoder
from subquad.models.stack import StackOptions, StackState
from subquad.ops.checks import check_ids, check_positive, check_rows


class DecoderLM(nn.Module):
    """Predict token t + 1 of tokens 0 .. t.

    Args:
        vocab_size: number of token ids; W below.
        d_model: width D.
        options: those of ``Stack``; positions are "sinusoidal-concat" unless given, as in the
            linear transformer's copy task.

    Raises:
        TypeError: if an option is unknown or a number is not an int.
        ValueError: if an option does not fit.
    """

    def __init__(
        self, vocab_size: int, *, d_model: int = 256, **options: Unpack[StackOptions]
    ) -> None:
        super().__init__()
        check_positive("vocab_size", vocab_size)
        options.setdefault("positions", "sinusoidal-concat")
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "d_model": d_model, **options}
        self.vocab_size = vocab_size
        self.decoder = TransformerDecoder(d_model, **options)
        self.token_embedding = nn.Embedding(vocab_size, self.decoder.token_width)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Return the logits of the next token at each place.

        Raises:
            TypeError: if ``tokens`` is not of an integer dtype.
            ValueError: if a token id or a shape does not fit.
        """
        x = self._embed(tokens)
        logits: Tensor = self.head(self.decoder(x, key_mask=key_mask, cu_seqlens=cu_seqlens))
        return logits

    def init_state(self, batch_size: int) -> StackState:
        """Return the empty past."""
        return self.decoder.init_state(batch_size)

    def prefill(
        self,
        tokens: Int[Tensor, "B T"],
        state: StackState,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T W"], StackState]:
        """Read a stretch of tokens in parallel, going on from ``state``."""
        hidden, state = self.decoder.prefill(self._embed(tokens), state, key_mask=key_mask)
        return self.head(hidden), state

    def step(
        self, token: Int[Tensor, " B"], state: StackState
    ) -> tuple[Float[Tensor, "B W"], StackState]:
        """Read one more token a row; ``state`` stays as it is."""
        hidden, state = self.decoder.step(self._embed(token.unsqueeze(1)).squeeze(1), state)
        return self.head(hidden), state

    def step_(
        self, token: Int[Tensor, " B"], state: StackState
    ) -> tuple[Float[Tensor, "B W"], StackState]:
        """Read one more token a row; ``state`` may be overwritten; no gradient."""
        hidden, state = self.decoder.step_(self._embed(token.unsqueeze(1)).squeeze(1), state)
        return self.head(hidden), state

    def _embed(self, tokens: Tensor) -> Float[Tensor, "B T E"]:
        check_rows("tokens", tokens)
        check_ids("tokens", tokens, self.vocab_size)
        embedded: Tensor = self.token_embedding(tokens)
        return embedded
