"""What all kernels of one call share: sizes, constants, spans, and the small tensors made dense.

Names: N = B H rows of heads; M = sequences times H rows of states. Sequences are the batch, or
those that ``cu_seqlens`` packs into a batch of 1.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subquad.kernels.triton._launch import check, launch, num_units, products
from subquad.kernels.triton._spans import read_borders, spans_of
from subquad.kernels.triton.plan import Blocks, Plan, blocks, plan, plan_packed

State = tuple[Tensor | None, Tensor | None]


class Call(NamedTuple):
    """One call of ``forward`` or ``backward``."""

    plan: Plan
    num_sequences: int
    num_spans: int
    spans: Tensor | None
    first_spans: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    key_mask: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    flags: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """N."""
        return self.q.shape[0] * self.q.shape[1]

    @property
    def is_cut(self) -> bool:
        """Whether a sequence has more than one span."""
        return self.num_spans > self.num_sequences

    def sizes(self) -> tuple[int, ...]:
        """Return T, the number of segments, their length, K and V."""
        return (
            self.q.shape[2], self.plan.num_segments, self.plan.segment,
            self.q.shape[3], self.v.shape[3],
        )  # fmt: skip

    def cut(self, whole: str) -> Blocks:
        """Return the blocks of one kernel."""
        return blocks(
            self.plan, self.q.shape[3], self.v.shape[3], narrow=self.flags["NARROW"], whole=whole
        )

    def grid(self, cut: Blocks) -> tuple[int, int]:
        """Return (spans x heads, blocks of features x blocks of values)."""
        num_blocks = ceil_div(self.q.shape[3], cut.features) * ceil_div(self.v.shape[3], cut.values)
        return self.num_spans * self.q.shape[1], num_blocks

    def walk(self, module: str, name: str, whole: str, *args: Any, **flags: bool) -> None:
        """Start a kernel on every span and block."""
        cut = self.cut(whole)
        launch(
            module, name, self.grid(cut), *args, **self.flags, **flags,
            CHUNK=self.plan.chunk, BK=cut.features, BV=cut.values,
            num_warps=cut.num_warps, num_stages=cut.num_stages,
        )  # fmt: skip

    def new_state(self) -> tuple[Tensor, Tensor]:
        """Return kv (sequences, H, K, V) and k_sum (sequences, H, K), not filled."""
        shape = (self.num_sequences, self.q.shape[1], self.q.shape[3])
        k_sum = torch.empty(shape, dtype=torch.float32, device=self.q.device)
        return k_sum.new_empty(*shape, self.v.shape[3]), k_sum

    def dense_state(self, kv: Tensor | None, k_sum: Tensor | None) -> State:
        """Return both contiguous, zeros for the one that is missing; or None twice.

        Raises:
            ValueError: if they are not of as many sequences as the call.
        """
        given = (kv, k_sum)
        if kv is None and k_sum is None:
            return given
        for x in given:
            if x is not None and len(x) != self.num_sequences:
                raise ValueError(
                    f"a state must have a row for each of the {self.num_sequences} sequences, "
                    f"got {len(x)}"
                )
        zeros = [x.zero_() for x in self.new_state()]
        return (
            zeros[0] if kv is None else kv.contiguous(),
            zeros[1] if k_sum is None else k_sum.contiguous(),
        )


def prepare(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, key_mask: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, is_elu: bool, is_normalized: bool,
    cu_seqlens: Tensor | None,
) -> Call:  # fmt: skip
    """Check the arguments and choose how the work is cut; errors are ``forward``'s."""
    check(q, k, v)
    narrow, precision = products(q, v)
    num_features, value_dim, units = q.shape[3], v.shape[3], num_units(q.device)
    table = first = None
    if cu_seqlens is None:
        sizes = plan(
            q.shape[0] * q.shape[1], q.shape[2], num_features, value_dim,
            narrow=narrow, num_units=units,
        )  # fmt: skip
        num_sequences, num_spans = len(q), len(q) * sizes.num_segments
    else:
        borders = read_borders(cu_seqlens, q)
        lengths = [b - a for a, b in pairwise(borders)]
        sizes = plan_packed(
            lengths, q.shape[1], num_features, value_dim, narrow=narrow, num_units=units
        )
        table, first = spans_of(borders, sizes, q.device)
        num_sequences, num_spans = len(lengths), len(table)
    flags = {
        "IS_ELU": is_elu, "IS_NORMALIZED": is_normalized, "HAS_DECAY": log_decay is not None,
        "HAS_MASK": key_mask is not None, "HAS_ROTATION": cos is not None,
        "IS_PACKED": cu_seqlens is not None, "NARROW": narrow, "PRECISION": precision,
    }  # fmt: skip
    # The small ones are read densely; copied if they are not (an expanded mask, say).
    small = [None if x is None else x.contiguous() for x in (log_decay, cos, sin)]
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    return Call(
        sizes, num_sequences, num_spans, table, first,
        q, k, v, small[0], mask, small[1], small[2], flags,
    )  # fmt: skip


def ceil_div(x: int, y: int) -> int:
    """Return x / y, rounded up."""
    return -(-x // y)
