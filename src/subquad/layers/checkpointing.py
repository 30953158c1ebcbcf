"""Gradient checkpointing: a part keeps its input only, and runs a second time for the backward.

Sources: Chen et al. 2016, "Training deep nets with sublinear memory cost", done by torch; of mixers
alone Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models".
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from subquad.layers.drawn_features import DrawnFeatures

Checkpointing = bool | Literal["mixers"]


def check_checkpointing(checkpointing: object) -> None:
    """Require one of the ways of ``Checkpointing``.

    Raises:
        ValueError: if it is another.
    """
    is_named = isinstance(checkpointing, str) and checkpointing == "mixers"
    if not is_named and not isinstance(checkpointing, bool):
        raise ValueError(f'checkpointing must be False, True or "mixers", got {checkpointing!r}')


def run(part: nn.Module, *inputs: Tensor, again: bool, **masks: Any) -> Tensor:
    """Return ``part(*inputs, **masks)``, with ``again`` by ``run_again`` if there are gradients."""
    repeats = again and torch.is_grad_enabled()
    y: Tensor = run_again(part, *inputs, **masks) if repeats else part(*inputs, **masks)
    return y


def run_again(part: nn.Module, *inputs: Tensor, **masks: Any) -> Tensor:
    """Return ``part(*inputs, **masks)``, to be run again by the backward pass with the same draws.

    Dropout draws the same by torch's doing. Random features that were drawn anew between the two
    passes are put back for the second one, and batch norms count a batch once.
    """
    drawn = [m for m in part.modules() if isinstance(m, DrawnFeatures)]
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm) and _counts(m)]
    # torch.compile takes no contexts of ours: they are there only where there is something to do.
    contexts: dict[str, Any] = (
        {"context_fn": partial(_passes, drawn, norms)} if drawn or norms else {}
    )
    y: Tensor = checkpoint(part, *inputs, use_reentrant=False, **contexts, **masks)
    return y


def _passes(
    drawn: list[DrawnFeatures],
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what the first pass runs under, and the second."""
    kept: list[Tensor | None] = []

    @contextmanager
    def first() -> Iterator[None]:
        yield
        kept.extend(features.projection for features in drawn)

    return first(), _PutBack(drawn, kept, norms)


def _counts(norm: _BatchNorm) -> bool:
    """Return whether a pass changes the norm's statistics: not in evaluation."""
    return norm.training and norm.track_running_stats


class _PutBack:
    """Earlier draws in their places, and norms that do not count; entered for a backward pass."""

    def __init__(
        self, drawn: list[DrawnFeatures], kept: list[Tensor | None], norms: list[_BatchNorm]
    ) -> None:
        self._drawn, self._kept, self._norms = drawn, kept, norms
        self._now: list[list[Tensor | None]] = []
        self._momenta: list[list[float | None]] = []

    def __enter__(self) -> None:
        self._now.append([features.projection for features in self._drawn])
        _put(self._drawn, self._kept)
        self._momenta.append([norm.momentum for norm in self._norms])
        for norm in self._norms:
            norm.momentum = 0.0  # running statistics stay as they are
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.sub_(1)  # and the second pass adds 1 again

    def __exit__(self, *_: object) -> None:
        _put(self._drawn, self._now.pop())
        for norm, momentum in zip(self._norms, self._momenta.pop(), strict=True):
            norm.momentum = momentum


def _put(drawn: list[DrawnFeatures], projections: list[Tensor | None]) -> None:
    # A draw replaces the buffer and never writes into it, so an earlier one is still what it was.
    for features, projection in zip(drawn, projections, strict=True):
        features.projection = projection
