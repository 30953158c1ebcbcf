"""Multi-head linear attention: a mixer whose state does not grow with the sequence.

Source: Katharopoulos et al. 2020; with rotary positions Su et al. 2021, section 3.3.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.kernels.dispatch import Impl, check_impl
from subquad.layers.attention_rows import Attended
from subquad.layers.context import context_heads, query_heads
from subquad.layers.frozen import frozen
from subquad.layers.heads import Heads, RotaryPositions, check_causal, check_step
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.checks import check_positive
from subquad.ops.context_state import attend_linear_context, linear_context
from subquad.ops.feature_maps import FeatureMap, check_normalize, elu_plus_one, no_autocast
from subquad.ops.fused_linear_attention import (
    attend_all,
    attend_past,
    take_token,
    take_token_,
    token_taker,
)
from subquad.ops.linear_attention import linear_attention_bidirectional, linear_attention_causal
from subquad.ops.linear_state import LinearState, linear_state
from subquad.ops.rotary_linear_attention import rotary_linear_attention
from subquad.ops.rotation import Rotation


class LinearAttention(nn.Module):
    """Mix tokens by linear attention; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j <= i only.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        share_qk: project queries only, and take them as keys too.
        rotary: rotate phi(q) and phi(k) by their positions, in the numerator.
        feature_map: phi; a module (``LearnedFeatureMap``) becomes part of the layer.
        normalize: divide by the sum of the weights.
        impl: where the operator is computed; see ``Impl``.

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
        share_qk: bool = False,
        rotary: bool = False,
        feature_map: FeatureMap = elu_plus_one,
        normalize: bool = True,
        impl: Impl = Impl.AUTO,
    ) -> None:
        super().__init__()
        check_normalize(feature_map, normalize)
        check_impl(impl)
        self.is_causal, self.normalize, self.feature_map = is_causal, normalize, feature_map
        self.impl = impl
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            share_qk=share_qk,
        )  # fmt: skip
        self.num_features = feature_map.num_features(self.heads.head_dim)
        self.rotary_positions = RotaryPositions(self.num_features if rotary else None)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``linear_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        q, k, v = self.heads.split(x)
        options: Any = {
            "feature_map": self.feature_map, "key_mask": key_mask, "normalize": self.normalize,
            "impl": self.impl,
        }  # fmt: skip
        past = self._empty(len(x)) if self.is_causal and cu_seqlens is None else None
        rotation, past = self.rotary_positions.rotation(
            x, past, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
        if cu_seqlens is not None:
            return Attended(self._packed(q, k, v, rotation, cu_seqlens), v)
        if past is not None:
            return Attended(attend_past(q, k, v, past, rotation=rotation, **options)[0], v)
        return Attended(attend_all(q, k, v, rotation=rotation, **options), v)

    def init_state(self, batch_size: int) -> Any:
        """Return an empty ``LinearState`` (in a ``RotaryState`` if rotary)."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        return self._empty(batch_size)

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        check_causal(self.is_causal, "prefill")
        return self._go_on(self.heads.check(x, key_mask), state, key_mask)

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        x, rotation, past = self._enter(x_t, state)
        q, k, v = self.heads.split(x)
        y, past = take_token(
            q.squeeze(2), k.squeeze(2), v.squeeze(2), past, feature_map=self.feature_map,
            rotation=rotation, normalize=self.normalize, impl=self.impl,
        )  # fmt: skip
        return self._leave(y), self.rotary_positions.advance(past, state, 1)

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D), overwriting ``state``; no gradient."""
        x, rotation, past = self._enter(x_t, state)
        q, k, v = self.heads.split(x)
        y, past = take_token_(
            q.squeeze(2), k.squeeze(2), v.squeeze(2), past, feature_map=self.feature_map,
            rotation=rotation, normalize=self.normalize, impl=self.impl,
        )  # fmt: skip
        return self._leave(y), self.rotary_positions.advance(past, state, 1)

    def stepper(self, batch_size: int) -> Callable[[Token, Any], tuple[Token, Any]]:
        """Return ``step_`` for a loop over tokens: unchecked, with the weights as they are now."""
        check_causal(self.is_causal, "stepper")
        heads = self.heads
        project, leave = (frozen(m, batch_size) for m in (heads.qkv_proj, heads.out_proj))
        take_token = token_taker(
            feature_map=self.feature_map, normalize=self.normalize, impl=self.impl
        )

        def take(x_t: Token, state: Any) -> tuple[Token, Any]:
            rotation, past = self.rotary_positions.rotation(x_t.unsqueeze(1), state)
            y, past = take_token(*heads.split_token(project(x_t)), past, rotation)
            y = leave(y.flatten(1).to(heads.out_proj.weight.dtype))
            return y, self.rotary_positions.advance(past, state, 1)

        return take

    def _empty(self, batch_size: int) -> Any:
        h, like = self.heads, self.heads.out_proj.weight
        empty = linear_state(batch_size, h.num_heads, self.num_features, h.value_dim, like)
        return self.rotary_positions.init_state(empty, batch_size, like.device)

    def _go_on(self, x: Tokens, state: Any, key_mask: KeyMask | None) -> tuple[Tokens, Any]:
        rotation, past = self.rotary_positions.rotation(x, state, key_mask=key_mask)
        y, past = attend_past(
            *self.heads.split(x), past, feature_map=self.feature_map, rotation=rotation,
            key_mask=key_mask, normalize=self.normalize, impl=self.impl,
        )  # fmt: skip
        return self.heads.merge(y), self.rotary_positions.advance(past, state, x.shape[1], key_mask)

    def _enter(self, x_t: Token, state: Any) -> tuple[Tokens, Rotation | None, LinearState]:
        check_causal(self.is_causal, "step")
        x = check_step(x_t, self.heads.d_model)
        return x, *self.rotary_positions.rotation(x, state)

    def _leave(self, y: Float[Tensor, "B H V"]) -> Token:
        return self.heads.merge(y.unsqueeze(2)).squeeze(1)

    def _packed(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H T K"],
        v: Float[Tensor, "B H T V"],
        rotation: Rotation | None,
        cu_seqlens: CuSeqlens,
    ) -> Float[Tensor, "B H T V"]:
        with no_autocast(v):
            phi_q, phi_k = self.feature_map(q), self.feature_map(k)
        options: Any = {
            "cu_seqlens": cu_seqlens, "normalize": self.normalize, "impl": self.impl,
        }  # fmt: skip
        if rotation is not None:
            return rotary_linear_attention(
                phi_q, phi_k, v, rotation, is_causal=self.is_causal, **options
            )
        attend = linear_attention_causal if self.is_causal else linear_attention_bidirectional
        return attend(phi_q, phi_k, v, **options)


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
        impl: Impl = Impl.AUTO,
    ) -> None:
        super().__init__()
        check_normalize(feature_map, normalize)
        check_impl(impl)
        self.feature_map, self.normalize, self.impl = feature_map, normalize, impl
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
        y = attend_all(
            *self.heads.split_cross(x, context), feature_map=self.feature_map, key_mask=key_mask,
            normalize=self.normalize, impl=self.impl,
        )  # fmt: skip
        return self.heads.merge(y)

    def context_state(
        self, context: Float[Tensor, "B S C"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> LinearState:
        """Return the sums over a context, of a size that does not grow with it."""
        k, v = context_heads(self.heads, context, key_mask)
        return linear_context(k, v, feature_map=self.feature_map, key_mask=key_mask)

    def attend_state(self, x: Tokens, state: LinearState) -> Tokens:
        """Mix (B, T, D) with the context of ``state``, as ``forward`` does."""
        q = query_heads(self.heads, x, len(state.k_sum))
        y = attend_linear_context(q, state, feature_map=self.feature_map, normalize=self.normalize)
        return self.heads.merge(y)
