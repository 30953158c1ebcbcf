"""A causal transformer over float tokens and any causal mixer, with a state to decode from."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import Unpack

from subquad.layers.block import Step
from subquad.models.stack import Stack, StackOptions, StackState


class TransformerDecoder(nn.Module):
    """Map tokens (B, T, E) to (B, T, D), each seeing itself and those before.

    Args and errors: as ``TransformerEncoder``.
    """

    def __init__(self, d_model: int, **options: Unpack[StackOptions]) -> None:
        super().__init__()
        self.stack = Stack(d_model, is_causal=True, **options)
        self.token_width = self.stack.token_width

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run a whole sequence from an empty past; arguments as ``TransformerEncoder``."""
        decoded: Tensor = self.stack(x, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return decoded

    def init_state(self, batch_size: int) -> StackState:
        """Return the empty past."""
        return self.stack.init_state(batch_size)

    def prefill(
        self,
        x: Float[Tensor, "B T E"],
        state: StackState,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], StackState]:
        """Run a stretch of tokens in parallel, going on from ``state``."""
        return self.stack.prefill(x, state, key_mask=key_mask)

    def step(
        self, x_t: Float[Tensor, "B E"], state: StackState
    ) -> tuple[Float[Tensor, "B D"], StackState]:
        """Run one more token; ``state`` stays as it is."""
        return self.stack.step(x_t, state)

    def step_(
        self, x_t: Float[Tensor, "B E"], state: StackState
    ) -> tuple[Float[Tensor, "B D"], StackState]:
        """Run one more token; ``state`` may be overwritten; no gradient."""
        return self.stack.step_(x_t, state)

    def stepper(self, batch_size: int, seq_len: int) -> Step:
        """Return ``step_`` for a loop over tokens: faster, unchecked; see ``Stack.stepper``."""
        return self.stack.stepper(batch_size, seq_len)
