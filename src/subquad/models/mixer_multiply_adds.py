"""Multiply-adds of mixers beside their projections, by the products of their definitions.

| mixer | products of a head |
|---|---|
| local, strided | q k and w v, of the pairs of tokens that see each other |
| FAVOR+ | q and k times the directions, then as linear attention |
| LSH | the hashes; q k and w v of all places of each chunk's window, free ones too, in each round |
| Linformer | keys and values mixed into slots; all tokens with all slots |
| lambda | one content lambda, its use; a position lambda a token, of the tokens it sees, its use |

Axes: T tokens, H heads, K query and key width, V value width, M features, S slots.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.layers.lambda_mixer import LambdaMixer
from subquad.layers.linformer import LinformerAttention
from subquad.layers.local_attention import LocalAttention
from subquad.layers.lsh_attention import LSHAttention
from subquad.layers.performer import PerformerAttention
from subquad.layers.strided_attention import StridedAttention

Count = Callable[[Any, Tensor, Tensor], int]


def window_pairs(tokens: int, window: int, *, is_causal: bool, num_global: int = 0) -> int:
    """Return how many pairs of tokens see each other; see ``ops.local_attention``."""
    low, high = _reach(tokens, window, is_causal)
    seen = high - low + 1 + low.clamp(max=num_global)
    if not is_causal:
        seen[:num_global] = tokens
    return int(seen.sum())


def strided_pairs(tokens: int, window: int, stride: int, *, is_causal: bool) -> int:
    """Return how many pairs of tokens see each other; see ``ops.strided_attention``."""
    low, high = _reach(tokens, window, is_causal)
    beyond = low // stride  # of every stride-th token, those before the window
    if not is_causal:
        beyond = beyond + tokens // stride - (high + 1) // stride
    return int((high - low + 1 + beyond).sum())


def _reach(tokens: int, window: int, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return the first and the last token of each one's window."""
    own = torch.arange(tokens, device="cpu")
    last = own if is_causal else (own + window - 1).clamp(max=tokens - 1)
    return (own - window + 1).clamp(min=0), last


def _local(module: Any, x: Tensor, y: Tensor) -> int:
    pairs = window_pairs(
        x.shape[1], module.window, is_causal=module.is_causal, num_global=module.num_global
    )
    return pairs * _a_pair(module)


def _strided(module: Any, x: Tensor, y: Tensor) -> int:
    pairs = strided_pairs(x.shape[1], module.window, module.stride, is_causal=module.is_causal)
    return pairs * _a_pair(module)


def _performer(module: Any, x: Tensor, y: Tensor) -> int:
    heads, drawn = module.heads, module.features
    features = drawn.current().num_features(heads.head_dim)
    each = 2 * drawn.num_directions * heads.head_dim
    each += features * (2 * heads.value_dim + module.normalize)
    return int(x.shape[1] * heads.num_heads * each)


def _lsh(module: Any, x: Tensor, y: Tensor) -> int:
    tokens, heads, size = x.shape[1], module.heads, module.chunk_size
    rounds, _, half = module.rotations.shape
    window = size * (module.chunks_before + 1 + module.chunks_after)
    hashed = tokens * heads.num_heads * heads.head_dim * half
    pairs = math.ceil(tokens / size) * size * window
    combined = tokens * heads.num_heads * heads.value_dim * (module.combine == "logsumexp")
    return int(rounds * (hashed + pairs * _a_pair(module) + combined))


def _linformer(module: Any, x: Tensor, y: Tensor) -> int:
    return 2 * int(x.shape[1] * module.num_slots * _a_pair(module))


def _lambda_mixer(module: Any, x: Tensor, y: Tensor) -> int:
    tokens = x.shape[1]
    grid = (tokens,) if module.grid is None else module.grid
    placed = math.prod(grid)  # tokens before them see and are seen by content alone
    pairs = math.prod(
        window_pairs(length, module.window, is_causal=module.is_causal) for length in grid
    )
    lambdas = (tokens + pairs) * module.value_dim
    used = (tokens + placed) * module.num_heads * module.value_dim
    return int(module.head_dim * (lambdas + used))


def _a_pair(module: Any) -> int:
    """Return the products of one token's queries with another's keys, and of its values."""
    return int(module.heads.num_heads * (module.heads.head_dim + module.heads.value_dim))


MIXER_COUNTS: dict[type[nn.Module], Count] = {
    LocalAttention: _local,
    StridedAttention: _strided,
    PerformerAttention: _performer,
    LSHAttention: _lsh,
    LinformerAttention: _linformer,
    LambdaMixer: _lambda_mixer,
}
