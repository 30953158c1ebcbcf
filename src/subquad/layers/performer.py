"""Multi-head FAVOR+ and generalised attention: mixers whose state does not grow.

Source: Choromanski et al. 2021, "Rethinking Attention with Performers".
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.kernels.dispatch import Impl, check_impl
from subquad.layers.attention_rows import Attended
from subquad.layers.context import context_heads, query_heads
from subquad.layers.drawn_features import DrawnFeatures, Kernel
from subquad.layers.frozen import frozen
from subquad.layers.heads import Heads, RotaryPositions, check_causal, check_step
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.checks import check_positive
from subquad.ops.context_state import (
    FavorContext,
    attend_performer_context,
    performer_context,
)
from subquad.ops.linear_state import LinearState
from subquad.ops.performer_attention import performer_attention, performer_attention_bidirectional
from subquad.ops.performer_causal import performer_attention_chunked
from subquad.ops.performer_options import check_features
from subquad.ops.performer_state import performer_state
from subquad.ops.performer_step import (
    performer_attention_step,
    performer_attention_step_,
    performer_token_taker,
)
from subquad.ops.random_features import SoftmaxKernel

FAVOR_PLUS = SoftmaxKernel()


class PerformerAttention(nn.Module):
    """Mix tokens by FAVOR+; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    Its directions are a buffer, which evaluation leaves as it is: see ``DrawnFeatures``.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j <= i only.
        kernel: which features: ``SoftmaxKernel`` in any of its kinds, or ``GeneralizedKernel``
            (whose default, relu, is what the paper calls Performer without more).
        num_features: directions m, by default int(K ln K), at least K.
        redraw_every: draw new directions after so many passes in training mode; None: never.
        normalize: divide by the sum of the weights; False for a ``GeneralizedKernel`` only.
        max_per_feature: causal at any magnitude, in torch's form; see ``performer_attention``.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        rotary: rotate q and k by their positions (Su et al. 2021), before they are mapped.
        share_qk: whether the queries are the keys too.
        impl: where causal sums are computed; see ``Impl``.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number or an option does not fit.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        kernel: Kernel = FAVOR_PLUS,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        normalize: bool = True,
        max_per_feature: bool = False,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        rotary: bool = False,
        share_qk: bool = False,
        impl: Impl = Impl.AUTO,
    ) -> None:
        super().__init__()
        check_impl(impl)
        self.is_causal, self.normalize, self.impl = is_causal, normalize, impl
        self.max_per_feature = max_per_feature
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            share_qk=share_qk,
        )  # fmt: skip
        self.features = DrawnFeatures(
            kernel, self.heads.head_dim, num_features, redraw_every=redraw_every
        )
        self.rotary_positions = RotaryPositions(self.heads.head_dim if rotary else None)
        _check(self.features, self.heads.head_dim, **self._options())

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``performer_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        options: Any = {**self._options(), "features": self.features(), "impl": self.impl}
        past = self._empty(len(x)) if self.is_causal and cu_seqlens is None else None
        q, k, v, past = self.rotary_positions.project(
            self.heads, x, past, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
        if cu_seqlens is not None:
            options["is_causal"] = self.is_causal
            return Attended(performer_attention(q, k, v, cu_seqlens=cu_seqlens, **options), v)
        if past is not None:
            y, _ = performer_attention_chunked(q, k, v, past, key_mask=key_mask, **options)
            return Attended(y, v)
        del options["max_per_feature"]
        return Attended(performer_attention_bidirectional(q, k, v, key_mask=key_mask, **options), v)

    def init_state(self, batch_size: int) -> Any:
        """Return an empty ``PerformerState`` (in a ``RotaryState`` if rotary)."""
        check_causal(self.is_causal, "init_state")
        check_positive("batch_size", batch_size)
        return self._empty(batch_size)

    def prefill(
        self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, Any]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        check_causal(self.is_causal, "prefill")
        x = self.heads.check(x, key_mask)
        q, k, v, past = self.rotary_positions.project(self.heads, x, state, key_mask=key_mask)
        y, past = performer_attention_chunked(
            q, k, v, past, features=self.features.current(), key_mask=key_mask, impl=self.impl,
            **self._options(),
        )  # fmt: skip
        return self.heads.merge(y), self.rotary_positions.advance(past, state, x.shape[1], key_mask)

    def step(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        q, k, v, past = self._enter(x_t, state)
        y, past = performer_attention_step(
            q, k, v, past, features=self.features.current(), **self._options()
        )
        return self._leave(y), self.rotary_positions.advance(past, state, 1)

    def step_(self, x_t: Token, state: Any) -> tuple[Token, Any]:
        """Mix one more token (B, D), overwriting ``state``; no gradient."""
        q, k, v, past = self._enter(x_t, state)
        y, past = performer_attention_step_(
            q, k, v, past, features=self.features.current(), impl=self.impl, **self._options()
        )
        return self._leave(y), self.rotary_positions.advance(past, state, 1)

    def stepper(self, batch_size: int) -> Callable[[Token, Any], tuple[Token, Any]]:
        """Return ``step_`` for a loop over tokens: unchecked, with the weights as they are now."""
        check_causal(self.is_causal, "stepper")
        heads = self.heads
        project, leave = (frozen(m, batch_size) for m in (heads.qkv_proj, heads.out_proj))
        take_token = performer_token_taker(
            features=self.features.current(), impl=self.impl, **self._options()
        )

        def take(x_t: Token, state: Any) -> tuple[Token, Any]:
            rotation, past = self.rotary_positions.rotation(x_t.unsqueeze(1), state)
            q, k, v = heads.split_token(project(x_t))
            if rotation is not None:
                q, k = (rotation(x.unsqueeze(2)).squeeze(2) for x in (q, k))
            y, past = take_token(q, k, v, past)
            y = leave(y.flatten(1).to(heads.out_proj.weight.dtype))
            return y, self.rotary_positions.advance(past, state, 1)

        return take

    def _options(self) -> dict[str, Any]:
        return {"normalize": self.normalize, "max_per_feature": self.max_per_feature}

    def _empty(self, batch_size: int) -> Any:
        h, like = self.heads, self.heads.out_proj.weight
        empty = performer_state(
            batch_size, h.num_heads, h.head_dim, h.value_dim, self.features.current(), like,
            max_per_feature=self.max_per_feature,
        )  # fmt: skip
        return self.rotary_positions.init_state(empty, batch_size, like.device)

    def _enter(self, x_t: Token, state: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        check_causal(self.is_causal, "step")
        q, k, v, past = self.rotary_positions.project(
            self.heads, check_step(x_t, self.heads.d_model), state
        )
        return q.squeeze(2), k.squeeze(2), v.squeeze(2), past

    def _leave(self, y: Float[Tensor, "B H V"]) -> Token:
        return self.heads.merge(y.unsqueeze(2)).squeeze(1)


class PerformerCrossAttention(nn.Module):
    """Let tokens see a context of width ``context_dim``, a ``CrossMixer``; options as above."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        kernel: Kernel = FAVOR_PLUS,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        normalize: bool = True,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        impl: Impl = Impl.AUTO,
    ) -> None:
        super().__init__()
        check_impl(impl)
        self.normalize, self.impl = normalize, impl
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            context_dim=d_model if context_dim is None else context_dim,
        )  # fmt: skip
        self.features = DrawnFeatures(
            kernel, self.heads.head_dim, num_features, redraw_every=redraw_every
        )
        _check(self.features, self.heads.head_dim, normalize=normalize, max_per_feature=False)

    def forward(
        self,
        x: Tokens,
        context: Float[Tensor, "B S C"],
        *,
        key_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Tokens:
        """Mix (B, T, D) with (B, S, C); ``key_mask`` (B, S) hides tokens of the context."""
        context = self.heads.check_cross(x, context, key_mask)
        y = performer_attention_bidirectional(
            *self.heads.split_cross(x, context), features=self.features(), key_mask=key_mask,
            normalize=self.normalize, impl=self.impl,
        )  # fmt: skip
        return self.heads.merge(y)

    def context_state(
        self, context: Float[Tensor, "B S C"], *, key_mask: Bool[Tensor, "B S"] | None = None
    ) -> FavorContext | LinearState:
        """Return the sums over a context, of a size that does not grow with it.

        They belong to the directions as they are now; after another draw they mean nothing.
        """
        k, v = context_heads(self.heads, context, key_mask)
        return performer_context(k, v, features=self.features.current(), key_mask=key_mask)

    def attend_state(self, x: Tokens, state: FavorContext | LinearState) -> Tokens:
        """Mix (B, T, D) with the context of ``state``, as ``forward`` does; nothing is redrawn."""
        q = query_heads(self.heads, x, len(state[0]))
        y = attend_performer_context(
            q, state, features=self.features.current(), normalize=self.normalize
        )
        return self.heads.merge(y)


def _check(features: DrawnFeatures, head_dim: int, **options: bool) -> None:
    """Refuse options that do not fit the features, before there is a token."""
    keys = torch.empty(1, head_dim, device=features.schedule.device)
    check_features(features.current(), keys, scale=None, **options)
