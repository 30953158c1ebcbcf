"""A bidirectional transformer over float tokens and any mixer."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.models.stack import Stack, StackOptions


class TransformerEncoder(nn.Module):
    """Map tokens (B, T, E) to (B, T, D), each seeing all others.

    Args:
        d_model: width D.
        options: those of ``Stack``: num_layers, num_heads, d_ff, head_dim, value_dim, mixer, norm,
            activation, dropout, positions, position_width, max_len, final_norm.

    E is ``token_width``: D, less the positions' width where they are concatenated.

    Raises:
        TypeError: if an option is unknown or a number is not an int.
        ValueError: if an option does not fit.
    """

    def __init__(self, d_model: int, **options: Unpack[StackOptions]) -> None:
        super().__init__()
        self.stack = Stack(d_model, is_causal=False, **options)
        self.token_width = self.stack.token_width

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Encode.

        Args:
            x: tokens (B, T, E).
            key_mask: (B, T) bool, True = keep.
            cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        """
        encoded: Tensor = self.stack(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return encoded
