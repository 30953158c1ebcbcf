"""LSTM and bi-LSTM in the slot of a mixer: the recurrent baseline, torch's own ``nn.LSTM``.

Axes: B batch, T time, D model width, S sequences, N tokens that count, H hidden width.
Source: Hochreiter & Schmidhuber 1997; the bi-LSTM is the baseline of Katharopoulos et al. 2020,
table 3.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from subquad.layers.heads import check_causal, check_step
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.checks import (
    check_cu_seqlens,
    check_key_mask,
    check_positive,
    check_state_batch,
    check_tokens,
)
from subquad.ops.feature_maps import no_autocast, widen
from subquad.ops.packing import packed_positions


class LSTMState(NamedTuple):
    """The past of an LSTM, in float32 or wider: its last output and its cell."""

    h: Float[Tensor, "B H"]
    c: Float[Tensor, "B H"]


class LSTMMixer(nn.Module):
    """Mix tokens by one LSTM layer and a projection back to D.

    With ``is_causal`` it is a ``CausalMixer`` whose state does not grow; without, a bi-LSTM: one
    network from the left and one from the right, their outputs side by side. A hidden token is
    passed over: it neither changes a state nor is seen, from either side. The recurrence runs in
    float32 or wider, under autocast too; only the projection is narrower.

    Args:
        d_model: width D of the tokens.
        num_heads: taken because every mixer is, and not used: an LSTM has no heads. It need not
            divide ``d_model``.
        is_causal: token i sees tokens j <= i only.
        hidden_size: width H of a direction's state, by default D.
        bias: whether gates and projection have biases.

    There is no ``rotary``, ``head_dim`` or ``value_dim``: an LSTM knows the order of its tokens,
    and an option that it cannot honour is a TypeError.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        hidden_size: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_positive("d_model", d_model)
        check_positive("num_heads", num_heads)
        hidden_size = d_model if hidden_size is None else hidden_size
        check_positive("hidden_size", hidden_size)
        self.d_model, self.hidden_size, self.is_causal = d_model, hidden_size, is_causal
        self.lstm = nn.LSTM(
            d_model, hidden_size, bias=bias, batch_first=True, bidirectional=not is_causal
        )
        self.out_proj = nn.Linear((1 if is_causal else 2) * hidden_size, d_model, bias=bias)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); hidden positions give 0, so a row without a valid token is all 0.

        Args:
            x: tokens (B, T, D).
            key_mask: (B, T) bool, True = keep; holes and padding on either side.
            cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        """
        check_tokens("x", x, self.d_model)
        check_key_mask(key_mask, x, *x.shape[:2])
        check_cu_seqlens(cu_seqlens, key_mask, *x.shape[:2])
        if cu_seqlens is None:
            return self._mix(x, None, key_mask)[0]
        lengths = cu_seqlens.diff()
        owner = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)
        y, _ = self._run_ragged(x[0], owner, packed_positions(cu_seqlens)[0], len(lengths), None)
        return self._project(y).unsqueeze(0)

    def init_state(self, batch_size: int) -> LSTMState:
        """Return an empty state: all 0."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        zeros = widen(self.out_proj.weight.detach()).new_zeros(batch_size, self.hidden_size)
        return LSTMState(zeros, zeros.clone())

    def prefill(
        self, x: Tokens, state: LSTMState, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, LSTMState]:
        """Mix a stretch of tokens, going on from ``state``; a row with none valid keeps its own."""
        check_causal(self.is_causal, "prefill")
        check_tokens("x", x, self.d_model)
        check_key_mask(key_mask, x, *x.shape[:2])
        check_state_batch(len(state.h), len(x))
        y, after = self._mix(x, state, key_mask)
        assert after is not None
        return y, after

    def step(self, x_t: Token, state: LSTMState) -> tuple[Token, LSTMState]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        check_causal(self.is_causal, "step")
        y, after = self.prefill(check_step(x_t, self.d_model), state)
        return y.squeeze(1), after

    def step_(self, x_t: Token, state: LSTMState) -> tuple[Token, LSTMState]:
        """Mix one more token (B, D); the same as ``step``, the state is small."""
        return self.step(x_t, state)

    def _mix(
        self, x: Tokens, state: LSTMState | None, key_mask: KeyMask | None
    ) -> tuple[Tokens, LSTMState | None]:
        if key_mask is None:
            y, state = self._run(x, state)
            return self._project(y), state
        index = key_mask.flatten().nonzero().squeeze(1)
        owner, place = index // x.shape[1], (key_mask.cumsum(1) - 1).flatten()[index]
        valid = x.flatten(0, 1)[index]
        y, state = self._run_ragged(valid, owner, place, len(x), state)
        laid_out = y.new_zeros(key_mask.numel(), y.shape[1]).index_copy(0, index, y)
        mixed = self._project(laid_out.reshape(*key_mask.shape, -1))
        return mixed.masked_fill(~key_mask.unsqueeze(-1), 0), state

    def _run_ragged(
        self,
        x: Float[Tensor, "N D"],
        owner: Int[Tensor, " N"],
        place: Int[Tensor, " N"],
        num_sequences: int,
        state: LSTMState | None,
    ) -> tuple[Float[Tensor, "N H"], LSTMState | None]:
        """Run sequences of unlike length, laid end to end, with no step on padding.

        Args:
            x: the valid tokens of all sequences.
            owner: the sequence of each token, 0 to ``num_sequences`` - 1.
            place: its position in that sequence.
            num_sequences: S; some may have no token.
            state: the past of each sequence, or None.

        Returns:
            Outputs in the order of ``x``, and the state after (None for a bi-LSTM).
        """
        if len(x) == 0:
            return widen(x).new_zeros(0, self.out_proj.in_features), state
        # torch packs time first and longest sequence first.
        lengths = torch.bincount(owner, minlength=num_sequences)
        longest_first = lengths.argsort(descending=True, stable=True)
        order = (place * num_sequences + longest_first.argsort()[owner]).argsort()
        batch_sizes = torch.bincount(place).cpu()
        active = longest_first[: int(batch_sizes[0])]
        past = None if state is None else LSTMState(state.h[active], state.c[active])
        y, after = self._run(x[order], past, batch_sizes)
        if after is not None and state is not None:
            pairs = zip(state, after, strict=True)
            after = LSTMState(*(old.index_copy(0, active, new) for old, new in pairs))
        return y[order.argsort()], after

    def _run(
        self, x: Tensor, state: LSTMState | None, batch_sizes: Int[Tensor, " L"] | None = None
    ) -> tuple[Tensor, LSTMState | None]:
        """Run (B, T, D), or (N, D) packed as ``batch_sizes`` says, in float32 or wider."""
        x = widen(x)
        tokens = x if batch_sizes is None else PackedSequence(x, batch_sizes)
        past = None if state is None else (state.h.unsqueeze(0), state.c.unsqueeze(0))
        weights = {name: widen(p) for name, p in self.lstm.named_parameters()}
        with no_autocast(x):
            if all(weights[name] is p for name, p in self.lstm.named_parameters()):
                y, (h, c) = self.lstm(tokens, past)
            else:
                y, (h, c) = functional_call(self.lstm, weights, (tokens, past))
        y = y if batch_sizes is None else y.data
        return y, LSTMState(h[0], c[0]) if self.is_causal else None

    def _project(self, y: Float[Tensor, "*tokens W"]) -> Float[Tensor, "*tokens D"]:
        projected: Tensor = self.out_proj(y.to(self.out_proj.weight.dtype))
        return projected
