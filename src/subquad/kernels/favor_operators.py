"""FAVOR+ in C++ as operators of torch: torch.compile keeps each as one call.

What differentiates them stands with the torch form: ``ops/performer_bidirectional.py`` and
``ops/causal_features.py``.
"""

from typing import Any

import torch
from torch import Tensor

from subquad.kernels.cpu import favor
from subquad.kernels.cpu.linear_attention import empty_rows

_library: Any = torch.library.Library("subquad", "FRAGMENT")  # type: ignore[no-untyped-call]


def _define(name: str, signature: str, forward: Any, fake: Any) -> Any:
    _library.define(f"{name}{signature}")
    _library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"subquad::{name}", fake, lib=_library)
    return getattr(torch.ops.subquad, name).default


def _fake_attend(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, *_: Any) -> Any:
    return favor.empty_results(q, v, directions)


def _fake_queries(q: Tensor, directions: Tensor) -> Tensor:
    return directions.new_empty(*q.shape[:3], len(directions))


def _fake_keys(k: Tensor, directions: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_queries(k, directions), directions.new_empty(k.shape[:3])


ATTEND = _define(
    "favor_attention_cpu",
    "(Tensor q, Tensor k, Tensor v, Tensor directions, float half_scale, Tensor? hidden) -> "
    "(Tensor, Tensor, Tensor)",
    favor.attend,
    _fake_attend,
)
ATTEND_BACKWARD = _define(
    "favor_attention_cpu_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor directions, float half_scale, "
    "Tensor? hidden, Tensor out, Tensor means, Tensor log_sums) -> (Tensor, Tensor, Tensor)",
    favor.attend_backward,
    lambda grad, q, k, v, *_: tuple(map(empty_rows, (q, k, v))),
)
ATTEND_PAST = _define(
    "favor_attention_causal_cpu",
    "(Tensor q, Tensor k, Tensor v, Tensor directions, float half_scale, Tensor? key_mask, "
    "Tensor kv, Tensor k_sum, Tensor log_max) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    favor.attend_past,
    lambda q, k, v, directions, *_: favor.empty_results_past(q, k, v, directions),
)
MAP_QUERIES = _define(
    "favor_queries_cpu", "(Tensor q, Tensor directions) -> Tensor", favor.map_queries, _fake_queries
)
MAP_KEYS = _define(
    "favor_keys_cpu",
    "(Tensor k, Tensor directions, float half_scale, Tensor start, Tensor? hidden) -> "
    "(Tensor, Tensor)",
    favor.map_keys,
    _fake_keys,
)
