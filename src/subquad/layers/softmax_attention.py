"""Multi-head softmax attention: the baseline in the slot, with a KV cache to decode from."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.layers.attention_rows import Attended
from subquad.layers.context import context_heads, query_heads
from subquad.layers.heads import Heads, RotaryPositions, as_cached, check_causal, check_step
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.layers.positions import token_positions
from subquad.layers.relative_positions import RelativePositions
from subquad.ops.checks import check_fraction, check_positive
from subquad.ops.packing import run_packed
from subquad.ops.softmax_attention import (
    KVCache,
    kv_cache,
    softmax_attention,
    softmax_attention_cached,
)


class SoftmaxAttention(nn.Module):
    """Mix tokens by softmax attention; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j <= i only.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        share_qk: project queries only, and take them as keys too.
        rotary: rotate q and k by their positions (Su et al. 2021).
        attention_dropout: share of the weights dropped in training.
        relative_len: add to the logits what a query gives with a learned vector for each offset, in
            sequences of at most so many tokens (bidirectional only); None for no such vectors.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit, or relative positions are causal or rotary too.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        share_qk: bool = False,
        rotary: bool = False,
        attention_dropout: float = 0.0,
        relative_len: int | None = None,
    ) -> None:
        super().__init__()
        check_fraction("attention_dropout", attention_dropout)
        if relative_len is not None and (is_causal or rotary):
            raise ValueError(
                "relative_len needs is_causal=False and rotary=False, "
                f"got is_causal={is_causal} and rotary={rotary}"
            )
        self.is_causal, self.attention_dropout = is_causal, attention_dropout
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            share_qk=share_qk,
        )  # fmt: skip
        self.rotary_positions = RotaryPositions(self.heads.head_dim if rotary else None)
        self.relative: RelativePositions | None = None
        if relative_len is not None:
            self.relative = RelativePositions(relative_len, num_heads, self.heads.head_dim)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``softmax_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        q, k, v, _ = self.rotary_positions.project(
            self.heads, x, None, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
        if self.relative is None:
            y = softmax_attention(
                q, k, v, is_causal=self.is_causal, key_mask=key_mask, cu_seqlens=cu_seqlens,
                dropout_p=self._dropout_p(),
            )  # fmt: skip
        elif cu_seqlens is None:
            y = self._relative(q, k, v, key_mask)
        else:
            y = run_packed(self._relative, cu_seqlens, q, k, v)
        return Attended(y, v)

    def init_state(self, batch_size: int) -> Any:
        """Return an empty ``KVCache`` (in a ``RotaryState`` if rotary)."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        like, h = self.heads.out_proj.weight, self.heads
        cache = kv_cache(batch_size, h.num_heads, h.head_dim, h.value_dim, like)
        return self.rotary_positions.init_state(cache, batch_size, like.device)

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        return self._go_on(x, state, key_mask, in_place=False)

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        y, state = self._go_on(check_step(x_t, self.heads.d_model), state, None, in_place=False)
        return y.squeeze(1), state

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D) into ``state``'s own buffers; no gradient through the past."""
        y, state = self._go_on(check_step(x_t, self.heads.d_model), state, None, in_place=True)
        return y.squeeze(1), state

    def _go_on(
        self, x: Tokens, state: Any, key_mask: KeyMask | None, *, in_place: bool
    ) -> tuple[Tokens, Any]:
        check_causal(self.is_causal, "a state")
        x = self.heads.check(x, key_mask)
        q, k, v, cache = self.rotary_positions.project(self.heads, x, state, key_mask=key_mask)
        q, k, v = as_cached(cache.k, q, k, v)
        y, cache = softmax_attention_cached(
            q, k, v, cache, key_mask=key_mask, dropout_p=self._dropout_p(), in_place=in_place
        )
        cache = self.rotary_positions.advance(cache, state, x.shape[1], key_mask)
        return self.heads.merge(y), cache

    def _relative(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: KeyMask | None
    ) -> Float[Tensor, "B H T V"]:
        assert self.relative is not None
        bias = self.relative(q, token_positions(v[:, 0], key_mask=key_mask))
        return softmax_attention(q, k, v, key_mask=key_mask, bias=bias, dropout_p=self._dropout_p())

    def _dropout_p(self) -> float:
        return self.attention_dropout if self.training else 0.0


class SoftmaxCrossAttention(nn.Module):
    """Let tokens see a context of width ``context_dim``, a ``CrossMixer``; options as above."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            context_dim=d_model if context_dim is None else context_dim,
        )  # fmt: skip

    def forward(
        self,
        x: Tokens,
        context: Float[Tensor, "B S C"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Tokens:
        """Mix (B, T, D) with (B, S, C); ``key_mask`` (B, S) hides tokens of the context."""
        context = self.heads.check_cross(x, context, key_mask)
        return self.heads.merge(
            softmax_attention(*self.heads.split_cross(x, context), key_mask=key_mask)
        )

    def context_state(
        self, context: Float[Tensor, "B S C"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> KVCache:
        """Return the keys and values of a context, which grow with it."""
        k, v = context_heads(self.heads, context, key_mask)
        return KVCache(k, v, key_mask, k.shape[2])

    def attend_state(self, x: Tokens, state: KVCache) -> Tokens:
        """Mix (B, T, D) with the context of ``state``, as ``forward`` does."""
        (q,) = as_cached(state.k, query_heads(self.heads, x, len(state.k)))
        return self.heads.merge(softmax_attention(q, state.k, state.v, key_mask=state.key_mask))
