"""Some heads softmax, the others linear: the sharpness of the one at about the cost of the other.

The two kinds see the same tokens side by side, each through its own projections, and their outputs
are added: the same as one layer whose heads are of two kinds.
"""

from typing import Any, NamedTuple

from torch import nn

from subquad.kernels.dispatch import Impl
from subquad.layers.heads import head_width
from subquad.layers.linear_attention import LinearAttention
from subquad.layers.local_attention import LocalAttention
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.layers.softmax_attention import SoftmaxAttention
from subquad.ops.checks import check_positive
from subquad.ops.feature_maps import FeatureMap, elu_plus_one


class HybridState(NamedTuple):
    """The past of both kinds of heads."""

    softmax: Any
    linear: Any


class HybridAttention(nn.Module):
    """Mix tokens by softmax and linear heads; a ``CausalMixer`` if ``is_causal``, else a ``Mixer``.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H of both kinds together, at least 2.
        is_causal: token i sees tokens j <= i only.
        softmax_heads: how many of them are softmax, from 1 to H - 1; by default half.
        window: what a softmax head sees on one side, the token itself included, and the size of its
            state; None for all tokens, with a KV cache that grows.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        share_qk: project queries only, and take them as keys too.
        rotary: rotate queries and keys by their positions, in both kinds.
        feature_map: phi of the linear heads.
        impl: where the linear heads are computed; see ``Impl``.

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
        softmax_heads: int | None = None,
        window: int | None = 256,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        share_qk: bool = False,
        rotary: bool = False,
        feature_map: FeatureMap = elu_plus_one,
        impl: Impl = Impl.AUTO,
    ) -> None:
        super().__init__()
        check_positive("num_heads", num_heads)
        softmax_heads = num_heads // 2 if softmax_heads is None else softmax_heads
        check_positive("softmax_heads", softmax_heads)
        if softmax_heads >= num_heads:
            raise ValueError(
                f"softmax_heads must be below num_heads ({num_heads}), got {softmax_heads}"
            )
        options: dict[str, Any] = {
            "is_causal": is_causal,
            "head_dim": head_width(d_model, num_heads, head_dim),
            "value_dim": value_dim,
            "bias": bias,
            "share_qk": share_qk,
            "rotary": rotary,
        }
        self.is_causal = is_causal
        self.softmax: Any = (
            SoftmaxAttention(d_model, softmax_heads, **options)
            if window is None
            else LocalAttention(d_model, softmax_heads, window=window, **options)
        )
        self.linear = LinearAttention(
            d_model, num_heads - softmax_heads, feature_map=feature_map, impl=impl, **options
        )

    @property
    def parts(self) -> tuple[Any, Any]:
        """The two mixers whose heads stand side by side; see ``attention_rows``."""
        return self.softmax, self.linear

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); masks as in ``linear_attention``."""
        masks: Any = {"key_mask": key_mask, "cu_seqlens": cu_seqlens}
        mixed: Tokens = self.softmax(x, **masks) + self.linear(x, **masks)
        return mixed

    def init_state(self, batch_size: int) -> HybridState:
        """Return the empty past."""
        return HybridState(self.softmax.init_state(batch_size), self.linear.init_state(batch_size))

    def prefill(
        self, x: Tokens, state: HybridState, *, key_mask: KeyMask | None = None
    ) -> tuple[Tokens, HybridState]:
        """Mix a stretch of tokens in parallel, going on from ``state``."""
        sharp, near = self.softmax.prefill(x, state.softmax, key_mask=key_mask)
        smooth, far = self.linear.prefill(x, state.linear, key_mask=key_mask)
        return sharp + smooth, HybridState(near, far)

    def step(self, x_t: Token, state: HybridState) -> tuple[Token, HybridState]:
        """Mix one more token (B, D); ``state`` stays as it is."""
        sharp, near = self.softmax.step(x_t, state.softmax)
        smooth, far = self.linear.step(x_t, state.linear)
        return sharp + smooth, HybridState(near, far)

    def step_(self, x_t: Token, state: HybridState) -> tuple[Token, HybridState]:
        """Mix one more token (B, D), overwriting ``state``; no gradient."""
        sharp, near = self.softmax.step_(x_t, state.softmax)
        smooth, far = self.linear.step_(x_t, state.linear)
        return sharp + smooth, HybridState(near, far)
