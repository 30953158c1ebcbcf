"""The state of causal local attention: the last tokens and the global ones, read or not.

Axes: B batch, H heads, T time, W window, G global tokens, K key size, V value size.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subquad.ops.checks import check_positive, check_shape
from subquad.ops.window_state import check_table, fill, ring_positions


class LocalState(NamedTuple):
    """The past of causal local attention: a ring of the last W tokens, and the global ones.

    Position p stands in slot p mod W. Its size does not depend on how many tokens were read.
    """

    k: Float[Tensor, "B H W K"]
    v: Float[Tensor, "B H W V"]
    global_k: Float[Tensor, "B H G K"]
    global_v: Float[Tensor, "B H G V"]
    position: Int[Tensor, " B"]  # of the next token: how many valid ones were read


def local_state(
    batch_size: int,
    num_heads: int,
    key_dim: int,
    value_dim: int,
    like: Tensor,
    *,
    window: int,
    num_global: int = 0,
) -> LocalState:
    """Return the empty past, on the device and in the dtype of ``like``."""
    check_reach(window, num_global)
    slots = (window, key_dim), (window, value_dim), (num_global, key_dim), (num_global, value_dim)
    tables = [like.new_zeros(batch_size, num_heads, *shape).detach() for shape in slots]
    count = torch.zeros(batch_size, dtype=torch.long, device=like.device)
    return LocalState(tables[0], tables[1], tables[2], tables[3], count)


def advance(state: LocalState, k: Tensor, v: Tensor, lengths: Tensor) -> LocalState:
    """Return ``state`` after the first ``lengths`` tokens of k and v."""
    total = state.position + lengths
    ring = ring_positions(total, state.k.shape[2])
    first = torch.arange(state.global_k.shape[2], device=k.device).unsqueeze(0)
    tables = [
        fill(table, x, at, state.position, lengths)
        for table, x, at in (
            (state.k, k, ring),
            (state.v, v, ring),
            (state.global_k, k, first),
            (state.global_v, v, first),
        )
    ]
    return LocalState(tables[0], tables[1], tables[2], tables[3], total)


def check_reach(window: int, num_global: int) -> None:
    """Require a window of at least 1 token and at least 0 global ones.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if one is too small.
    """
    check_positive("window", window)
    if isinstance(num_global, bool) or not isinstance(num_global, int):
        raise TypeError(
            f"num_global must be an int, got {type(num_global).__name__} {num_global!r}"
        )
    if num_global < 0:
        raise ValueError(f"num_global must be at least 0, got {num_global}")


def check_local_state(state: LocalState, k: Tensor, v: Tensor) -> None:
    """Check the past against keys (B, H, T, K) and values (B, H, T, V).

    Raises:
        TypeError: if a table has another dtype than what goes into it.
        ValueError: if a shape or a device does not fit.
    """
    window, num_global = state.k.shape[2], state.global_k.shape[2]
    check_table("state.k", state.k, window, "k", k)
    check_table("state.v", state.v, window, "v", v)
    check_table("state.global_k", state.global_k, num_global, "k", k)
    check_table("state.global_v", state.global_v, num_global, "v", v)
    check_shape("state.position", state.position, (len(k),))
