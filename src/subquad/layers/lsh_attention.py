"""Multi-head LSH attention, the Reformer's: a baseline of the linear transformer's paper.

Source: Kitaev et al. 2020; Katharopoulos et al. 2020, section 4 (the baseline "lsh-X", X rounds).
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from subquad.layers.attention_rows import Attended
from subquad.layers.heads import Heads, RotaryPositions
from subquad.layers.mixer import CuSeqlens, KeyMask, Token, Tokens
from subquad.ops.checks import check_choice, check_divisible, check_fraction, check_positive
from subquad.ops.lsh_attention import COMBINES, Combine, check_reach, lsh_attention

NO_STATE = (
    "LSHAttention must be run on whole sequences, it has no state to go on from: "
    "hashing sorts all tokens together, the later ones too"
)


class LSHAttention(nn.Module):
    """Mix tokens by LSH attention: a ``Mixer`` in both directions, never a ``CausalMixer``.

    With ``is_causal`` values and gradients come from earlier tokens only, but which of them share
    a chunk may depend on later ones; see ``subquad.ops.lsh_attention``. So it is for training and
    for scoring whole sequences: ``init_state``, ``prefill`` and ``step`` raise a ValueError.

    The random rotations are a buffer of the state dict and stay as drawn, in evaluation and in
    training, unless ``redraw`` is called or ``redraw_every`` asks for it. The n-th new draw follows
    from a seed that is a buffer too: the same on all ranks, and after loading a checkpoint.

    Args:
        d_model: width D of the tokens.
        num_heads: heads H.
        is_causal: token i sees tokens j < i only, and itself where there is no other.
        head_dim: query and key width of a head, by default d_model / num_heads.
        value_dim: value width of a head, by default ``head_dim``.
        bias: whether the projections have biases.
        rotary: rotate queries and keys by their positions (Su et al. 2021), before hashing.
        num_hashes: rounds R of hashing.
        num_buckets: buckets of a round, an even number; the heads share the rotations.
        chunk_size: tokens in a chunk; T need not be a multiple.
        chunks_before: how many chunks before its own, in sorted order, a token sees besides.
        chunks_after: how many behind it.
        combine: how rounds become one: "mean", as the linear transformer's baseline has it, or
            "logsumexp", as the Reformer.
        attention_dropout: share of the weights dropped in training.
        redraw_every: draw new rotations after so many forward passes in training mode; None: never.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number or a name does not fit.
    """

    has_state = False
    is_past_fixed = False
    sees_itself = False

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
        num_hashes: int = 4,
        num_buckets: int = 64,
        chunk_size: int = 32,
        chunks_before: int = 1,
        chunks_after: int = 0,
        combine: Combine = "mean",
        attention_dropout: float = 0.0,
        redraw_every: int | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_hashes", num_hashes)
        check_positive("num_buckets", num_buckets)
        check_divisible("num_buckets", num_buckets, 2)
        check_positive("chunk_size", chunk_size)
        check_reach("chunks_before", chunks_before)
        check_reach("chunks_after", chunks_after)
        check_choice("combine", combine, COMBINES)
        check_fraction("attention_dropout", attention_dropout)
        if redraw_every is not None:
            check_positive("redraw_every", redraw_every)
        self.is_causal, self.attention_dropout = is_causal, attention_dropout
        self.chunk_size, self.combine = chunk_size, combine
        self.chunks_before, self.chunks_after = chunks_before, chunks_after
        self.redraw_every = redraw_every
        self.heads = Heads(
            d_model, num_heads, head_dim=head_dim, value_dim=value_dim, bias=bias, share_qk=True
        )
        self.rotary_positions = RotaryPositions(self.heads.head_dim if rotary else None)
        shape = (num_hashes, self.heads.head_dim, num_buckets // 2)
        self.rotations: Tensor
        self.register_buffer("rotations", torch.randn(shape))
        # The seed of later draws, how many there were, and forward passes in training mode.
        schedule = torch.cat([torch.randint(2**62, (1,)), torch.zeros(2, dtype=torch.long)])
        self.schedule: Tensor
        self.register_buffer("schedule", schedule)

    def forward(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Tokens:
        """Mix (B, T, D); see ``lsh_attention`` for the masks."""
        return self.heads.merge(self.attend(x, key_mask=key_mask, cu_seqlens=cu_seqlens).outputs)

    def attend(
        self, x: Tokens, *, key_mask: KeyMask | None = None, cu_seqlens: CuSeqlens | None = None
    ) -> Attended:
        """Return what ``forward`` merges, and the values it is made of; see ``attention_rows``."""
        x = self.heads.check(x, key_mask, cu_seqlens)
        if self.training and self.redraw_every is not None:
            self._count_forward(self.redraw_every)
        rotation, _ = self.rotary_positions.rotation(
            x, None, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
        qk, _, v = self.heads.split(x)
        y = lsh_attention(
            qk if rotation is None else rotation(qk), v, self.rotations,
            chunk_size=self.chunk_size, chunks_before=self.chunks_before,
            chunks_after=self.chunks_after, combine=self.combine, is_causal=self.is_causal,
            key_mask=key_mask, cu_seqlens=cu_seqlens,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        return Attended(y, v)

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw new rotations, the next of the sequence that the layer's seed fixes."""
        seed, draws, _ = self.schedule.tolist()
        generator = torch.Generator().manual_seed(seed + draws)
        self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))
        self.schedule[1] += 1

    @torch.no_grad()
    def _count_forward(self, redraw_every: int) -> None:
        passes = int(self.schedule[2])
        if passes and passes % redraw_every == 0:
            self.redraw()
        self.schedule[2] += 1

    def init_state(self, batch_size: int) -> NoReturn:
        """Raise: there is no state.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_STATE)

    def prefill(self, x: Tokens, state: Any, *, key_mask: KeyMask | None = None) -> NoReturn:
        """Raise: there is no state.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_STATE)

    def step(self, x_t: Token, state: Any) -> NoReturn:
        """Raise: there is no state.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_STATE)

    def step_(self, x_t: Token, state: Any) -> NoReturn:
        """Raise: there is no state.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_STATE)
