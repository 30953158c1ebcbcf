"""Multi-head Linformer attention: keys and values mixed into a fixed number of slots."""

from typing import Literal

import torch
from torch import Tensor, nn

from subquad.layers.attention_rows import Attended
from subquad.layers.heads import Heads
from subquad.layers.mixer import CuSeqlens, KeyMask, Tokens
from subquad.ops.checks import check_choice, check_positive
from subquad.ops.linformer_attention import linformer_attention

Sharing = Literal["none", "heads", "keys-values"]


class LinformerAttention(nn.Module):
    """Mix tokens by softmax over mixtures of them, a ``Mixer``; there is no causal form.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: must be False: a slot mixes all tokens, later ones too.
        max_len: N, the longest sequence; the number of columns of the projections.
        num_slots: S, how many mixtures stand for the keys and values (the paper's k).
        sharing: "none": E and F of its own for each head; "heads": one E and one F for all heads;
            "keys-values": E = F, one for all heads. (The paper's fourth, one for all layers, is
            not offered: a layer owns its weights.)
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections of tokens have biases; E and F have none.
        share_qk: project queries only, and take them as keys too.
        rotary: must be False: a mixture of keys has no position to rotate by.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number or a name does not fit, or ``is_causal`` or ``rotary`` is True.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        is_causal: bool,
        max_len: int = 1024,
        num_slots: int = 256,
        sharing: Sharing = "heads",
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        share_qk: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if is_causal:
            raise ValueError(f"is_causal must be False for LinformerAttention, got {is_causal}")
        if rotary:
            raise ValueError(f"rotary must be False for LinformerAttention, got {rotary}")
        check_positive("max_len", max_len)
        check_positive("num_slots", num_slots)
        check_choice("sharing", sharing, ("none", "heads", "keys-values"))
        self.is_causal, self.max_len, self.num_slots = is_causal, max_len, num_slots
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias,
            share_qk=share_qk,
        )  # fmt: skip
        shape = (num_heads if sharing == "none" else 1, num_slots, max_len)
        self.mix_k = nn.Parameter(torch.empty(shape))
        self.mix_v = None if sharing == "keys-values" else nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw E and F normal with variance 1 / S, as in the paper's theorem 2."""
        for mixing in (self.mix_k, self.mix_v):
            if mixing is not None:
                nn.init.normal_(mixing, std=self.num_slots**-0.5)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D), T at most ``max_len``; see ``linformer_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        mix_k: Tensor = self.mix_k
        mix_v = mix_k if self.mix_v is None else self.mix_v
        q, k, v = self.heads.split(x)
        y = linformer_attention(q, k, v, mix_k, mix_v, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return Attended(y, v)
