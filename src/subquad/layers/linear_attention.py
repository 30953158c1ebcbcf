"""Multi-head linear attention: a mixer whose state does not grow with the sequence.

Source: Katharopoulos et al. 2020. With rotary positions phi(q) and phi(k) are turned in the
numerator only (Su et al. 2021, section 3.3); the denominator uses them as they are and stays
non-negative.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.layers.heads import Heads, Turner, check_causal, check_step
from subquad.layers.mixer import Borders, KeyMask, Token, Tokens
from subquad.layers.positions import Rotation
from subquad.ops.checks import check_positive
from subquad.ops.feature_maps import FeatureMap, check_normalize, elu_plus_one, no_autocast, widen
from subquad.ops.linear_attention import (
    LinearState,
    linear_attention_bidirectional,
    linear_attention_causal,
    linear_attention_chunked,
    linear_attention_step,
    linear_attention_step_,
    linear_attention_sums,
    linear_state,
    quotient,
)


class Mapped(NamedTuple):
    """Features of queries and keys, and the values."""

    phi_q: Float[Tensor, "B H T M"]
    phi_k: Float[Tensor, "B H T M"]
    v: Float[Tensor, "B H T V"]


class LinearAttention(nn.Module):
    """Mix tokens by linear attention; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j <= i only.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        rotary: turn phi(q) and phi(k) by their positions, in the numerator.
        feature_map: phi; a module (``LearnedFeatureMap``) becomes part of the layer.
        normalize: divide by the sum of the weights.

    Raises:
        ValueError: if a number does not fit, or ``normalize`` is asked of a map whose kernel can be
            negative.
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
        rotary: bool = False,
        feature_map: FeatureMap = elu_plus_one,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_normalize(feature_map, normalize)
        self.is_causal, self.normalize, self.feature_map = is_causal, normalize, feature_map
        self.heads = Heads(d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias)
        self.num_features = feature_map.num_features(self.heads.head_dim)
        self.turner = Turner(self.num_features if rotary else None)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: Borders | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``linear_attention`` for the masks."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        turn, _ = self.turner.rotation(x, None, key_mask=key_mask, cu_seqlens=cu_seqlens)
        mapped = self._map(x)
        attend = partial(
            linear_attention_causal if self.is_causal else linear_attention_bidirectional,
            key_mask=key_mask,
            cu_seqlens=cu_seqlens,
        )
        if turn is None:
            y = attend(*mapped, normalize=self.normalize)
        elif self.is_causal and cu_seqlens is None:
            empty = self._empty(len(x), like=mapped.v)
            y, _ = self._prefill_turned(mapped, empty, turn, key_mask)
        else:
            y = attend(*_turned(mapped, turn), normalize=False)
            if self.normalize:
                ones = torch.ones_like(mapped.phi_q[..., :1])
                total = attend(mapped.phi_q, mapped.phi_k, ones, normalize=False)
                y = quotient(y, total.squeeze(-1)).to(mapped.v.dtype)
        return self.heads.merge(y)

    def init_state(self, batch_size: int) -> Any:
        """Return an empty ``LinearState`` (in a ``RotaryState`` if rotary)."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        like = self.heads.out_proj.weight
        return self.turner.init_state(self._empty(batch_size, like), batch_size, like.device)

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        check_causal(self.is_causal, "prefill")
        x = self.heads.check(x, key_mask)
        turn, past = self.turner.rotation(x, state, key_mask=key_mask)
        mapped = self._map(x)
        if turn is None:
            y, past = linear_attention_chunked(
                *mapped, past, key_mask=key_mask, normalize=self.normalize
            )
        else:
            y, past = self._prefill_turned(mapped, past, turn, key_mask)
        return self.heads.merge(y), self.turner.advance(past, state, x.shape[1], key_mask)

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        return self._step(x_t, state, in_place=False)

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D), overwriting ``state``; no gradient."""
        return self._step(x_t, state, in_place=True)

    def _step(self, x_t: Token, state: Any, *, in_place: bool) -> tuple[Token, Any]:
        check_causal(self.is_causal, "step")
        x = check_step(x_t, self.heads.d_model)
        turn, past = self.turner.rotation(x, state)
        mapped = self._map(x)
        phi_q, phi_k, v = (a.squeeze(2) for a in mapped)
        take = linear_attention_step_ if in_place else linear_attention_step
        if turn is None:
            y, past = take(phi_q, phi_k, v, past, normalize=self.normalize)
        else:
            k_sum = past.k_sum + phi_k
            turned_q, turned_k, v = (a.squeeze(2) for a in _turned(mapped, turn))
            y, past_turned = take(turned_q, turned_k, v, past, normalize=False)
            if self.normalize:
                y = quotient(y, (phi_q * k_sum).sum(-1))
            y, past = y.to(mapped.v.dtype), LinearState(past_turned.kv, k_sum)
        return self.heads.merge(y.unsqueeze(2)).squeeze(1), self.turner.advance(past, state, 1)

    def _empty(self, batch_size: int, like: Tensor) -> LinearState:
        heads = self.heads
        return linear_state(batch_size, heads.num_heads, self.num_features, heads.value_dim, like)

    def _map(self, x: Tokens) -> Mapped:
        q, k, v = self.heads.split(x)
        with no_autocast(x):
            return Mapped(self.feature_map(q), self.feature_map(k), v)

    def _prefill_turned(
        self, mapped: Mapped, past: LinearState, turn: Rotation, key_mask: KeyMask | None
    ) -> tuple[Tensor, LinearState]:
        turned = _turned(mapped, turn)
        phi_k = mapped.phi_k
        if key_mask is not None:
            phi_k = phi_k.masked_fill(~key_mask[:, None, :, None], 0)
        numerator, _, past_turned = linear_attention_sums(*turned, past, key_mask=key_mask)
        # The denominator's keys are not turned, so their sums are made apart: a plain running sum.
        k_sums = past.k_sum.unsqueeze(2) + phi_k.cumsum(2)
        y = numerator
        if self.normalize:
            y = quotient(numerator, (mapped.phi_q * k_sums).sum(-1))
        return y.to(mapped.v.dtype), LinearState(past_turned.kv, k_sums[:, :, -1])


class LinearCrossAttention(nn.Module):
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
        feature_map: FeatureMap = elu_plus_one,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_normalize(feature_map, normalize)
        self.feature_map, self.normalize = feature_map, normalize
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
        q, k, v = self.heads.split_cross(x, context)
        with no_autocast(x):
            phi_q, phi_k = self.feature_map(q), self.feature_map(k)
        y = linear_attention_bidirectional(
            phi_q, phi_k, v, key_mask=key_mask, normalize=self.normalize
        )
        return self.heads.merge(y)


def _turned(mapped: Mapped, turn: Rotation) -> Mapped:
    # v is widened, so that the numerator is not rounded to v's dtype before it is divided.
    return Mapped(turn(mapped.phi_q), turn(mapped.phi_k), widen(mapped.v))
