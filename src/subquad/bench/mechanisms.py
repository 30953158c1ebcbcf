"""The table of attention operators that ``subquad bench attention`` measures.

An operator is a function of (q, k, v, is_causal), in SDPA's layout: q, k (B, H, T, K) and
v (B, H, T, V) to (B, H, T, V). A new one is one more entry in ``mechanisms()``, or, for an operator
of your own, in the dict given to ``measure_attention``.

LSH attention has the paper's sizes (64 buckets, chunks of 32) and takes its queries as keys, so k
has no gradient. Its rounds run one after another, each computed anew in the backward pass: kept
side by side, 8 rounds at T = 65,536 would need tens of GB.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from subquad.kernels.dispatch import Impl
from subquad.ops.feature_maps import elu_plus_one
from subquad.ops.linear_attention import (
    linear_attention,
    linear_attention_causal,
    linear_attention_quadratic,
)
from subquad.ops.linformer_attention import linformer_attention, linformer_attention_quadratic
from subquad.ops.local_attention import local_attention, local_attention_quadratic
from subquad.ops.lsh_attention import lsh_attention
from subquad.ops.lsh_definition import lsh_attention_quadratic
from subquad.ops.performer_attention import performer_attention, performer_attention_quadratic
from subquad.ops.random_features import RandomFeatures, SoftmaxKernel
from subquad.ops.softmax_attention import softmax_attention, softmax_attention_quadratic
from subquad.ops.strided_attention import strided_attention, strided_attention_quadratic

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
Growth = Callable[[int], float]
QKV = tuple[Tensor, Tensor, Tensor]

SOFTMAX = "softmax"
TORCH_FORM = "linear-torch"  # the best of its chunk sizes is "the torch form"
CHUNK_SIZES = (32, 64, 128, 256)
ROUNDS = (1, 4, 8)  # of LSH attention, those of the paper's Figure 1
NUM_BUCKETS, LSH_CHUNK = 64, 32
WINDOW, STRIDE, NUM_SLOTS = 256, 128, 256
NUM_FEATURES = 256  # of the Performer, as in the paper


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One operator and what the benchmark must know about it.

    Args:
        attend: the operator.
        definition: what it computes, in a form that is right by sight; None if it is not checked.
        is_linear: it is linear attention, so the roofline of ``bench/machine.py`` applies.
        directions: "causal", "bidirectional" or both.
        cost: relative cost at T, for the estimate of the time left.
        device: "cpu" or "cuda" if it runs there alone.
        check_len: length at which outputs and gradients are held against the definition; long
            enough for a window, a stride or a chunk to end before the sequence does.
        tolerance: relative error allowed then (default: by dtype).
        prepare: given q, makes what is not to be measured: weights.
    """

    attend: Attend
    definition: Attend | None = None
    is_linear: bool = False
    directions: tuple[str, ...] = ("causal", "bidirectional")
    cost: Growth = float
    device: str | None = None
    check_len: int = 65
    tolerance: float | None = None
    prepare: Callable[[Tensor], object] = id


def mechanisms() -> dict[str, Mechanism]:
    """Return the operators of this package by name, softmax first."""
    return {
        SOFTMAX: Mechanism(attend=_softmax, definition=_softmax_definition, cost=quadratic_growth),
        **{
            f"{TORCH_FORM}-{size}": Mechanism(
                attend=partial(_linear_chunked, chunk_size=size), definition=linear_definition,
                is_linear=True, directions=("causal",),
            )
            for size in CHUNK_SIZES
        },
        TORCH_FORM: Mechanism(
            attend=partial(_linear, impl=Impl.TORCH), definition=linear_definition,
            is_linear=True, directions=("bidirectional",),
        ),
        **{
            f"linear-{impl.value}": Mechanism(
                attend=partial(_linear, impl=impl), definition=linear_definition,
                is_linear=True, device=device,
            )
            for impl, device in ((Impl.CPU, "cpu"), (Impl.TRITON, "cuda"))
        },
        f"performer-{NUM_FEATURES}": Mechanism(
            attend=_performer, definition=_performer_definition, cost=partial(_times, 4.0),
            prepare=_features_for,
        ),
        **{
            f"lsh-{rounds}": Mechanism(
                attend=partial(_lsh, rounds=rounds),
                definition=partial(_lsh_definition, rounds=rounds),
                cost=partial(_times, 10.0 * rounds),
            )
            for rounds in ROUNDS
        },
        f"local-{WINDOW}": Mechanism(
            attend=_local, definition=_local_definition, cost=partial(_times, 4.0),
            check_len=2 * WINDOW + 9,
        ),
        f"hybrid-{WINDOW}": Mechanism(
            attend=_hybrid, definition=_hybrid_definition, cost=partial(_times, 3.0),
            check_len=2 * WINDOW + 9,
        ),
        f"strided-{STRIDE}": Mechanism(
            attend=_strided, definition=_strided_definition, cost=_strided_growth,
            check_len=2 * STRIDE + 9,
        ),
        f"linformer-{NUM_SLOTS}": Mechanism(
            attend=_linformer, definition=_linformer_definition, cost=partial(_times, 2.0),
            directions=("bidirectional",), prepare=_mixing_for,
        ),
    }  # fmt: skip


def select(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the known names that ``names`` mean: "linear" means linear-torch-64 and so on.

    Raises:
        ValueError: if a name means none.
    """
    table, chosen = list(known), []
    for name in names:
        found = [k for k in table if k == name or k.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"mechanisms must be among {', '.join(table)}, got {name!r}")
        chosen += [k for k in found if k not in chosen]
    return chosen


def quadratic_growth(seq_len: int) -> float:
    """Return the relative cost of one whose time grows as T^2 from about 1,000 tokens on."""
    return seq_len * max(1.0, seq_len / 1024)


def linear_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Compute linear attention with elu + 1 by its definition."""
    return linear_attention_quadratic(elu_plus_one(q), elu_plus_one(k), v, is_causal=is_causal)


def _times(factor: float, seq_len: int) -> float:
    return factor * seq_len


def _strided_growth(seq_len: int) -> float:
    return 4.0 * seq_len * (1 + seq_len / (2 * STRIDE) / STRIDE)


def _softmax(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return softmax_attention(q, k, v, is_causal=is_causal)


def _softmax_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return softmax_attention_quadratic(q, k, v, is_causal=is_causal)


def _linear_chunked(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, chunk_size: int) -> Tensor:
    del is_causal  # the chunked form is causal
    phi_q, phi_k = elu_plus_one(q), elu_plus_one(k)
    return linear_attention_causal(phi_q, phi_k, v, chunk_size=chunk_size, impl=Impl.TORCH)


def _linear(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, impl: Impl) -> Tensor:
    return linear_attention(q, k, v, is_causal=is_causal, impl=impl)


def _performer(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return performer_attention(q, k, v, is_causal=is_causal, features=_features_for(q))


def _performer_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    features = _features_for(q)
    return performer_attention_quadratic(q, k, v, is_causal=is_causal, features=features)


def _features_for(q: Tensor) -> RandomFeatures:
    return _features(q.shape[3], q.device)


@lru_cache(maxsize=1)
def _features(head_dim: int, device: torch.device) -> RandomFeatures:
    """Return FAVOR+'s directions, always the same."""
    generator = torch.Generator().manual_seed(0)
    return SoftmaxKernel().draw(head_dim, NUM_FEATURES, generator=generator, device=device)


def _lsh(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, rounds: int) -> Tensor:
    def one_round(q: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
        return lsh_attention(q, v, rotation, chunk_size=LSH_CHUNK, is_causal=is_causal)

    rotations = _rotations(rounds, q.shape[-1]).to(q.device)
    total = torch.zeros_like(v)
    for rotation in torch.chunk(rotations, rounds):
        if torch.is_grad_enabled():
            y: Tensor = checkpoint(one_round, q, v, rotation, use_reentrant=False)
        else:
            y = one_round(q, v, rotation)
        total = total + y / rounds
    return total


def _lsh_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, *, rounds: int) -> Tensor:
    rotations = _rotations(rounds, q.shape[-1]).to(q.device)
    return lsh_attention_quadratic(q, v, rotations, chunk_size=LSH_CHUNK, is_causal=is_causal)


def _rotations(rounds: int, key_dim: int) -> Tensor:
    """Return the rotations of all rounds (R, K, buckets / 2), always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rounds, key_dim, NUM_BUCKETS // 2, generator=generator)


def _local(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return local_attention(q, k, v, window=WINDOW, is_causal=is_causal)


def _local_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return local_attention_quadratic(q, k, v, window=WINDOW, is_causal=is_causal)


def _hybrid(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Attend within windows in the first half of the heads, and linearly in the others."""
    first, second = _halves(q, k, v)
    return torch.cat(
        [_local(*first, is_causal), _linear(*second, is_causal, impl=Impl.AUTO)], dim=1
    )


def _hybrid_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    first, second = _halves(q, k, v)
    return torch.cat(
        [_local_definition(*first, is_causal), linear_definition(*second, is_causal)], dim=1
    )


def _halves(q: Tensor, k: Tensor, v: Tensor) -> tuple[QKV, QKV]:
    """Return the tensors of the first half of the heads, and those of the others."""
    heads = q.shape[1]
    if heads < 2:
        raise ValueError(f"heads must be at least 2 for a hybrid, got {heads}")
    half = heads // 2
    return (q[:, :half], k[:, :half], v[:, :half]), (q[:, half:], k[:, half:], v[:, half:])


def _strided(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return strided_attention(q, k, v, window=STRIDE, stride=STRIDE, is_causal=is_causal)


def _strided_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return strided_attention_quadratic(q, k, v, window=STRIDE, stride=STRIDE, is_causal=is_causal)


def _linformer(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Attend to mixtures by E and F; these are weights, whose gradients are not asked for here."""
    del is_causal  # it is not
    return linformer_attention(q, k, v, *_mixing_for(q))


def _linformer_definition(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    del is_causal
    return linformer_attention_quadratic(q, k, v, *_mixing_for(q))


def _mixing_for(q: Tensor) -> tuple[Tensor, Tensor]:
    return _mixing(q.shape[2], q.dtype, q.device)


@lru_cache(maxsize=1)
def _mixing(seq_len: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return E and F (1, slots, T), always the same, exact in any dtype: bfloat16's numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, NUM_SLOTS, seq_len)
    both = (torch.randn(shape, generator=generator) * NUM_SLOTS**-0.5).to(torch.bfloat16)
    mix_k, mix_v = both.to(device, dtype)
    return mix_k, mix_v
