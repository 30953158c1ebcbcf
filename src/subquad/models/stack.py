"""Blocks on top of each other: what encoder, decoder and every model over them are made of."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import TypedDict

from subquad.layers.block import Block, Norm, Step
from subquad.layers.checkpointing import Checkpointing, check_checkpointing, run
from subquad.layers.feed_forward import Activation
from subquad.layers.frozen import Map, frozen
from subquad.layers.positions import next_position, token_positions
from subquad.models.mixing import MixerChoice, layer_factories, mixer_options
from subquad.models.stack_positions import (
    POSITIONS,
    Place,
    PositionName,
    position_encoding,
    position_table,
)
from subquad.ops.checks import (
    check_cu_seqlens,
    check_key_mask,
    check_positive,
    check_state_batch,
    check_token,
    check_tokens,
)

__all__ = ["POSITIONS", "Stack", "StackOptions", "StackState"]


class StackOptions(TypedDict, total=False):
    """Keyword options that every model over a ``Stack`` takes and hands down; see ``Stack``."""

    num_layers: int
    num_heads: int
    d_ff: int | None
    head_dim: int | None
    value_dim: int | None
    mixer: MixerChoice
    softmax_share: float | None
    softmax_window: int | None
    norm: Norm
    activation: Activation
    dropout: float
    positions: PositionName
    position_width: int | None
    max_len: int | None
    final_norm: bool
    checkpointing: Checkpointing


class StackState(NamedTuple):
    """The past of a causal stack: each mixer's state, and the position of the next token."""

    mixers: tuple[Any, ...]
    position: Int[Tensor, " B"]


class Stack(nn.Module):
    """``num_layers`` blocks over float tokens, with positions before and a norm behind.

    Args:
        d_model: width D of the model.
        is_causal: token i sees tokens j <= i only.
        num_layers: blocks.
        num_heads: heads of each mixer.
        d_ff: hidden width of the feed-forward networks, by default 4 D.
        head_dim: query and key width of a head, by default D / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        mixer: a name in ``MIXERS``, or a factory (d_model, num_heads, *, is_causal, ...); or a
            sequence of these, one for each layer.
        softmax_share: share of all heads that are softmax, the others linear; from 0 to 1.
        softmax_window: what these softmax heads see on one side; None for all tokens.
        norm: "post" (as the linear transformer's released code) or "pre".
        activation: "relu", "gelu" or "gelu-tanh" (its approximation by tanh).
        dropout: share dropped behind each mixer and within each feed-forward network.
        positions: "none", "sinusoidal" (added), "sinusoidal-concat", "learned", "rotary" (in the
            mixers), or "learned-rotary", both: relative places and absolute ones.
        position_width: width of "sinusoidal-concat", by default D / 2.
        max_len: longest sequence; needed by "learned", and told to mixers that have a limit.
        final_norm: a LayerNorm behind the last block.
        checkpointing: what the backward pass finds kept: False all, True the inputs of blocks,
            which then run again (a third more time), "mixers" all but what lies within mixers,
            which alone run again: cheap where their cost is linear. ``forward`` alone does so.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number or a name does not fit.
    """

    def __init__(
        self,
        d_model: int,
        *,
        is_causal: bool,
        num_layers: int = 4,
        num_heads: int = 8,
        d_ff: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        mixer: MixerChoice = "linear",
        softmax_share: float | None = None,
        softmax_window: int | None = None,
        norm: Norm = "post",
        activation: Activation = "relu",
        dropout: float = 0.0,
        positions: PositionName = "none",
        position_width: int | None = None,
        max_len: int | None = None,
        final_norm: bool = True,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        check_positive("d_model", d_model)
        check_positive("num_layers", num_layers)
        check_checkpointing(checkpointing)
        factories = layer_factories(
            mixer, num_layers, num_heads,
            softmax_share=softmax_share, softmax_window=softmax_window,
        )  # fmt: skip
        encoding = position_encoding(positions, d_model, position_width, max_len)
        self.token_width = encoding.token_width(d_model)
        self.positions, self.checkpointing = encoding, checkpointing
        self.d_model, self.num_heads = d_model, num_heads
        given: Any = {
            "head_dim": head_dim, "value_dim": value_dim, "rotary": "rotary" in positions,
            "max_len": max_len,
        }  # fmt: skip
        self.blocks = nn.ModuleList(
            self._new_block(
                factory(d_model, num_heads, is_causal=is_causal, **mixer_options(factory, **given)),
                d_model,
                4 * d_model if d_ff is None else d_ff,
                norm=norm,
                activation=activation,
                dropout=dropout,
                repeat_mixer=checkpointing == "mixers",
            )
            for factory in factories
        )
        self.final_norm = nn.LayerNorm(d_model) if final_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T E"],
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
        cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the blocks on a whole sequence of tokens E = ``token_width`` wide."""
        x = self._enter(x, key_mask)
        check_cu_seqlens(cu_seqlens, key_mask, *x.shape[:2])
        x = self.positions(x, token_positions(x, key_mask=key_mask, cu_seqlens=cu_seqlens))
        return self._through(x, key_mask=key_mask, cu_seqlens=cu_seqlens)

    def init_state(self, batch_size: int) -> StackState:
        """Return the empty past (causal stacks)."""
        check_positive("batch_size", batch_size)
        mixers: Any = [block.mixer for block in self.blocks]
        states = tuple(mixer.init_state(batch_size) for mixer in mixers)
        device = next(self.parameters()).device
        return StackState(states, torch.zeros(batch_size, dtype=torch.long, device=device))

    def prefill(
        self,
        x: Float[Tensor, "B T E"],
        state: StackState,
        *,
        key_mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], StackState]:
        """Run a stretch of tokens in parallel, going on from ``state``."""
        x = self._enter(x, key_mask)
        check_state_batch(len(state.position), len(x))
        x = self.positions(x, token_positions(x, key_mask=key_mask, start=state.position))
        mixers = []
        for block, past in zip(self.blocks, state.mixers, strict=True):
            x, past = block.prefill(x, past, key_mask=key_mask)  # type: ignore[operator]
            mixers.append(past)
        position = next_position(state.position, x.shape[1], key_mask)
        return self.final_norm(x), StackState(tuple(mixers), position)

    def step(
        self, x_t: Float[Tensor, "B E"], state: StackState
    ) -> tuple[Float[Tensor, "B D"], StackState]:
        """Run one more token; ``state`` stays as it is."""
        return self._checked_step(x_t, state, [block.step for block in self._blocks()])

    def step_(
        self, x_t: Float[Tensor, "B E"], state: StackState
    ) -> tuple[Float[Tensor, "B D"], StackState]:
        """Run one more token; ``state`` may be overwritten."""
        return self._checked_step(x_t, state, [block.step_ for block in self._blocks()])

    def stepper(self, batch_size: int, seq_len: int) -> Step:
        """Return ``step_`` for a loop over tokens: faster, unchecked, the weights as they are now.

        Args:
            batch_size: rows of each token.
            seq_len: no position may reach it.

        Raises:
            TypeError: if a number is not an int.
            ValueError: if a number is below 1, or ``seq_len`` above what learned positions allow.
        """
        check_positive("batch_size", batch_size)
        check_positive("seq_len", seq_len)
        steps = [block.stepper(batch_size) for block in self._blocks()]
        weight = next(self.parameters())
        place = position_table(self.positions, weight.new_zeros(1, seq_len, self.token_width))
        norm = frozen(self.final_norm, batch_size)
        return lambda x_t, state: self._step(x_t, state, steps, place, norm)

    def _new_block(self, mixer: nn.Module, d_model: int, d_ff: int, **options: Any) -> nn.Module:
        return Block(mixer, d_model, d_ff, **options)

    def _blocks(self) -> list[Any]:
        return list(self.blocks)

    def _through(self, x: Tensor, *seen: Tensor, **masks: Tensor | None) -> Tensor:
        """Run the blocks, all with the same masks, and the norm behind them."""
        for block in self.blocks:
            x = run(block, x, *seen, again=self.checkpointing is True, **masks)
        normed: Tensor = self.final_norm(x)
        return normed

    def _checked_step(
        self, x_t: Tensor, state: StackState, steps: list[Step]
    ) -> tuple[Tensor, StackState]:
        check_token("x_t", x_t, self.token_width)
        check_state_batch(len(state.position), len(x_t))
        return self._step(x_t, state, steps, self._place, self.final_norm)

    def _step(
        self, x_t: Tensor, state: StackState, steps: list[Step], place: Place, norm: Map
    ) -> tuple[Tensor, StackState]:
        x = place(x_t, state.position)
        mixers = []
        for step, past in zip(steps, state.mixers, strict=True):
            x, past = step(x, past)
            mixers.append(past)
        return norm(x), StackState(tuple(mixers), state.position + 1)

    def _place(self, x_t: Tensor, position: Tensor) -> Tensor:
        return self.positions(x_t.unsqueeze(1), position.unsqueeze(1)).squeeze(1)

    def _enter(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """Check tokens and clear padded ones, whose NaN would reach gradients as 0 * NaN."""
        check_tokens("x", x, self.token_width)
        check_key_mask(key_mask, x, *x.shape[:2])
        return x if key_mask is None else x.masked_fill(~key_mask.unsqueeze(-1), 0)
