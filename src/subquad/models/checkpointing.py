"""Gradient checkpointing: a block keeps its input only, and runs a second time for the backward.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; done by torch.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from subquad.layers.drawn_features import DrawnFeatures


def run_again(block: nn.Module, *inputs: Tensor, **masks: Any) -> Tensor:
    """Return ``block(*inputs, **masks)``, to be run again by the backward pass with the same draws.

    Dropout draws the same by torch's doing. Random features that were drawn anew between the two
    passes are put back for the second one, and batch norms count a batch once.
    """
    passes = partial(
        _passes,
        [m for m in block.modules() if isinstance(m, DrawnFeatures)],
        [m for m in block.modules() if isinstance(m, _BatchNorm) and _counts(m)],
    )
    y: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=passes, **masks)
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
