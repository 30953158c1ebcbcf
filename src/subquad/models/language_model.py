"""Language models over any mixer: causal, and for masked tokens."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.models.decoder import TransformerDecoder
from subquad.models.encoder import TransformerEncoder
from subquad.models.stack import StackOptions, StackState
from subquad.ops.checks import check_ids, check_positive, check_rows


class TokenModel(nn.Module):
    """Token ids in, logits out, with a transformer between: what both language models are.

    Args:
        vocab_size: number of token ids; W below.
        d_model: width D.
        body: the transformer's class; its instance is the attribute of the name ``part``.
        part: "decoder" or "encoder".
        options: those of ``Stack``; positions are "sinusoidal-concat" unless given, as in the
            linear transformer's copy task.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        body: type[TransformerDecoder] | type[TransformerEncoder],
        part: str,
        options: StackOptions,
    ) -> None:
        super().__init__()
        check_positive("vocab_size", vocab_size)
        options.setdefault("positions", "sinusoidal-concat")
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "d_model": d_model, **options}
        self.vocab_size, self._part = vocab_size, part
        transformer = body(d_model, **options)
        self.add_module(part, transformer)
        self.token_embedding = nn.Embedding(vocab_size, transformer.token_width)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Return the logits at each place.

        Args:
            tokens: ids (B, T).
            key_mask: (B, T) bool, True = keep.
            cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.

        Raises:
            TypeError: if ``tokens`` is not of an integer dtype.
            ValueError: if a token id or a shape does not fit.
        """
        body = self.get_submodule(self._part)
        hidden = body(self._embed(tokens), key_mask=key_mask, cu_seqlens=cu_seqlens)
        logits: Tensor = self.head(hidden)
        return logits

    def _embed(self, tokens: Tensor) -> Float[Tensor, "B T E"]:
        check_rows("tokens", tokens)
        check_ids("tokens", tokens, self.vocab_size)
        embedded: Tensor = self.token_embedding(tokens)
        return embedded


class EncoderLM(TokenModel):
    """Predict tokens from all others: masked language modelling.

    Which id stands for a masked token is the task's affair; see ``tasks/language_modelling.py``.

    Args:
        vocab_size: number of token ids, the one for a masked token among them; W below.
        d_model: width D.
        options: those of ``Stack``; positions are "sinusoidal-concat" unless given.

    Raises:
        TypeError: if an option is unknown or a number is not an int.
        ValueError: if an option does not fit.
    """

    encoder: TransformerEncoder

    def __init__(
        self, vocab_size: int, *, d_model: int = 256, **options: Unpack[StackOptions]
    ) -> None:
        super().__init__(vocab_size, d_model, TransformerEncoder, "encoder", options)


class DecoderLM(TokenModel):
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

    decoder: TransformerDecoder

    def __init__(
        self, vocab_size: int, *, d_model: int = 256, **options: Unpack[StackOptions]
    ) -> None:
        super().__init__(vocab_size, d_model, TransformerDecoder, "decoder", options)

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
