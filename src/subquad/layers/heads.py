"""What the attention layers share: tokens to heads, heads to tokens, positions for rotary.

Axes: B batch, T time, D model width, H heads, K query and key width, V value width of a head.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subquad.layers.positions import Rotary, next_position, token_positions
from subquad.ops.checks import (
    check_batch_size,
    check_cu_seqlens,
    check_key_mask,
    check_positive,
    check_state_batch,
    check_token,
    check_tokens,
)
from subquad.ops.rotation import Rotation

QKV = tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T V"]]


class RotaryState(NamedTuple):
    """A mixer's state with the position of the next token."""

    inner: Any
    position: Int[Tensor, " B"]


def head_width(d_model: int, num_heads: int, head_dim: int | None) -> int:
    """Return ``head_dim``, or d_model / num_heads where it is None.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is below 1, or ``num_heads`` does not divide ``d_model``.
    """
    check_positive("d_model", d_model)
    check_positive("num_heads", num_heads)
    if head_dim is not None:
        check_positive("head_dim", head_dim)
        return head_dim
    if d_model % num_heads:
        raise ValueError(
            f"num_heads must divide d_model ({d_model}) unless head_dim is given, got {num_heads}"
        )
    return d_model // num_heads


class Heads(nn.Module):
    """Projections of one attention layer: D to H heads of q, k and v, and back.

    ``qkv_proj`` is one matrix, rows ordered q, k, v and by head within each. With ``share_qk`` the
    queries are the keys too, and it has rows q, v only (Kitaev et al. 2020, section 2). With
    ``context_dim`` k and v come of another sequence, through ``kv_proj``.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        share_qk: bool = False,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.share_qk = d_model, num_heads, share_qk
        self.head_dim = head_width(d_model, num_heads, head_dim)
        self.value_dim = self.head_dim if value_dim is None else value_dim
        check_positive("value_dim", self.value_dim)
        self.context_dim = context_dim
        qk, kv = num_heads * self.head_dim, num_heads * (self.head_dim + self.value_dim)
        if context_dim is None:
            self.qkv_proj = nn.Linear(d_model, kv if share_qk else qk + kv, bias=bias)
        else:
            check_positive("context_dim", context_dim)
            self.q_proj = nn.Linear(d_model, qk, bias=bias)
            self.kv_proj = nn.Linear(context_dim, kv, bias=bias)
        self.out_proj = nn.Linear(num_heads * self.value_dim, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw q, k and v each with the Glorot bound of its own (D, D) matrix, biases 0."""
        for module in self.children():
            assert isinstance(module, nn.Linear)
            bound = (3 / module.in_features) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def split(self, x: Float[Tensor, "B T D"]) -> QKV:
        """Project tokens to q, k (B, H, T, K) and v (B, H, T, V); shared, k is q itself."""
        qk, v_width = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        if self.share_qk:
            q, v = self.qkv_proj(x).split([qk, v_width], dim=-1)
            q = self._by_head(q)
            return q, q, self._by_head(v)
        q, k, v = self.qkv_proj(x).split([qk, qk, v_width], dim=-1)
        return self._by_head(q), self._by_head(k), self._by_head(v)

    def split_cross(
        self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S C"]
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H S K"], Float[Tensor, "B H S V"]]:
        """Project tokens to q (B, H, T, K), and ``context`` to k and v (B, H, S, ...)."""
        return self.split_query(x), *self.split_context(context)

    def split_query(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T K"]:
        """Project tokens to the queries of cross-attention."""
        return self._by_head(self.q_proj(x))

    def split_context(
        self, context: Float[Tensor, "B S C"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S V"]]:
        """Project a context to keys and values."""
        widths = [self.num_heads * self.head_dim, self.num_heads * self.value_dim]
        k, v = self.kv_proj(context).split(widths, dim=-1)
        return self._by_head(k), self._by_head(v)

    def split_token(
        self, projected: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B H K"], Float[Tensor, "B H K"], Float[Tensor, "B H V"]]:
        """Cut what ``qkv_proj`` gives for one token a row into q, k and v."""
        batch_size, heads = len(projected), self.num_heads
        if self.share_qk:
            q, v = projected.tensor_split((heads * self.head_dim,), dim=1)
            q = q.view(batch_size, heads, -1)
            return q, q, v.view(batch_size, heads, -1)
        if self.head_dim == self.value_dim:  # one view in place of four, for loops over tokens
            q, k, v = projected.view(batch_size, 3, heads, self.head_dim).unbind(1)
            return q, k, v
        qk = heads * self.head_dim
        q, k, v = projected.tensor_split((qk, 2 * qk), dim=1)
        q, k, v = (x.view(batch_size, heads, -1) for x in (q, k, v))
        return q, k, v

    def merge(self, y: Float[Tensor, "B H T V"]) -> Float[Tensor, "B T D"]:
        """Lay the heads side by side and project back."""
        merged: Tensor = self.out_proj(y.transpose(1, 2).flatten(2).to(self.out_proj.weight.dtype))
        return merged

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def check(
        self, x: Tensor, key_mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> Float[Tensor, "B T D"]:
        """Check a forward's arguments and return ``x`` with 0 where ``key_mask`` hides.

        NaN in a padded token would otherwise reach the projections' gradients as 0 * NaN.
        """
        check_tokens("x", x, self.d_model)
        check_key_mask(key_mask, x, *x.shape[:2])
        check_cu_seqlens(cu_seqlens, key_mask, *x.shape[:2])
        return x if key_mask is None else x.masked_fill(~key_mask.unsqueeze(-1), 0)

    def check_cross(
        self, x: Tensor, context: Tensor, key_mask: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B S C"]:
        """Check a cross-attention's arguments and return ``context`` with 0 where hidden."""
        check_tokens("x", x, self.d_model)
        check_tokens("context", context, self.context_dim or self.d_model)
        check_batch_size("context", context, "x", x)
        check_key_mask(key_mask, context, *context.shape[:2])
        return context if key_mask is None else context.masked_fill(~key_mask.unsqueeze(-1), 0)


class RotaryPositions(nn.Module):
    """Optional rotary positions of one mixer: which rotation, and the position in its state."""

    def __init__(self, width: int | None) -> None:
        super().__init__()
        self.rotary = None if width is None else Rotary(width)

    def init_state(self, inner: Any, batch_size: int, device: torch.device) -> Any:
        """Wrap a mixer's empty state with position 0, if tokens are rotated at all."""
        if self.rotary is None:
            return inner
        return RotaryState(inner, torch.zeros(batch_size, dtype=torch.long, device=device))

    def rotation(
        self,
        x: Float[Tensor, "B T D"],
        state: Any,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> tuple[Rotation | None, Any]:
        """Return the rotation for these tokens, and the mixer's inner state."""
        if self.rotary is None:
            return None, state
        start = None if state is None else state.position
        if start is not None:
            check_state_batch(len(start), len(x))
        positions = token_positions(x, key_mask=key_mask, cu_seqlens=cu_seqlens, start=start)
        return self.rotary(positions, x.dtype), None if state is None else state.inner

    def project(
        self,
        heads: Heads,
        x: Float[Tensor, "B T D"],
        state: Any,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T V"], Any]:
        """Return what ``heads.split`` gives, q and k rotated if asked to be, and the state."""
        rotation, past = self.rotation(x, state, key_mask=key_mask, cu_seqlens=cu_seqlens)
        q, k, v = heads.split(x)
        return (q, k, v, past) if rotation is None else (rotation(q), rotation(k), v, past)

    def advance(
        self, inner: Any, state: Any, seq_len: int, key_mask: Bool[Tensor, "B T"] | None = None
    ) -> Any:
        """Put the inner state back, with the position after ``seq_len`` more tokens."""
        if self.rotary is None:
            return inner
        return RotaryState(inner, next_position(state.position, seq_len, key_mask))


def as_cached(cached: Tensor, *projected: Tensor) -> tuple[Tensor, ...]:
    """Return projections in the dtype of a cache: autocast makes them half, the cache stays."""
    if not torch.is_autocast_enabled(cached.device.type):
        return projected
    return tuple(x.to(cached.dtype) for x in projected)


def check_step(x_t: Tensor, d_model: int) -> Float[Tensor, "B 1 D"]:
    """Check one token a row and return it as a sequence of length 1."""
    check_token("x_t", x_t, d_model)
    return x_t.unsqueeze(1)


def check_causal(is_causal: bool, name: str) -> None:
    """Refuse a state to a mixer that sees the future.

    Raises:
        ValueError: if the mixer is bidirectional.
    """
    if not is_causal:
        raise ValueError(f"{name} needs a mixer built with is_causal=True, got is_causal=False")
