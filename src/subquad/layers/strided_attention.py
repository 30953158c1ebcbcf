"""Multi-head strided attention: a window of tokens and every stride-th one."""

from typing import Any

from torch import nn

from subquad.layers.attention_rows import Attended
from subquad.layers.heads import Heads, RotaryPositions, as_cached, check_causal, check_step
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.checks import check_positive
from subquad.ops.strided_attention import (
    strided_attention,
    strided_attention_cached,
    strided_attention_step,
    strided_state,
)


class StridedAttention(nn.Module):
    """Mix tokens by softmax over a window and every stride-th token.

    A ``CausalMixer`` if ``is_causal``, else a ``Mixer``. The state grows by one key and value every
    ``stride`` tokens: after T tokens it holds window + T / stride of them.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j <= i only.
        stride: tokens stride - 1, 2 stride - 1, ... are seen by all (causal: by all later ones).
        window: tokens seen on one side, the token itself included; by default ``stride``.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        share_qk: project queries only, and take them as keys too.
        rotary: rotate q and k by their positions (Su et al. 2021).

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        stride: int = 128,
        window: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        share_qk: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        check_positive("stride", stride)
        self.is_causal, self.stride = is_causal, stride
        self.window = stride if window is None else window
        check_positive("window", self.window)
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            share_qk=share_qk,
        )  # fmt: skip
        self.rotary_positions = RotaryPositions(self.heads.head_dim if rotary else None)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``strided_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        q, k, v, _ = self.rotary_positions.project(
            self.heads, x, None, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
        y = strided_attention(
            q, k, v, window=self.window, stride=self.stride, is_causal=self.is_causal,
            key_mask=key_mask, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        return Attended(y, v)

    def init_state(self, batch_size: int) -> Any:
        """Return an empty ``StridedState`` (in a ``RotaryState`` if rotary)."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        like, h = self.heads.out_proj.weight, self.heads
        state = strided_state(
            batch_size, h.num_heads, h.head_dim, h.value_dim, like, window=self.window
        )
        return self.rotary_positions.init_state(state, batch_size, like.device)

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        check_causal(self.is_causal, "prefill")
        x = self.heads.check(x, key_mask)
        q, k, v, past = self.rotary_positions.project(self.heads, x, state, key_mask=key_mask)
        q, k, v = as_cached(past.k, q, k, v)
        y, past = strided_attention_cached(q, k, v, past, stride=self.stride, key_mask=key_mask)
        past = self.rotary_positions.advance(past, state, x.shape[1], key_mask)
        return self.heads.merge(y), past

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        return self._step(x_t, state, in_place=False)

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D) into ``state``'s own tables; no gradient through the past."""
        return self._step(x_t, state, in_place=True)

    def _step(self, x_t: Token, state: Any, *, in_place: bool) -> tuple[Token, Any]:
        check_causal(self.is_causal, "step")
        q, k, v, past = self.rotary_positions.project(
            self.heads, check_step(x_t, self.heads.d_model), state
        )
        q, k, v = (a.squeeze(2) for a in as_cached(past.k, q, k, v))
        y, past = strided_attention_step(q, k, v, past, stride=self.stride, in_place=in_place)
        y = self.heads.merge(y.unsqueeze(2)).squeeze(1)
        return y, self.rotary_positions.advance(past, state, 1)
