"""Random features as part of a layer: directions in a buffer, drawn anew on a schedule."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from subquad.ops.checks import check_positive
from subquad.ops.performer_options import Features
from subquad.ops.random_matrices import Generator


@runtime_checkable
class Kernel(Protocol):
    """What draws features: ``SoftmaxKernel``, ``GeneralizedKernel``, or another with these."""

    def num_directions(self, head_dim: int, num_features: int | None) -> int:
        """Return how many directions ``draw`` draws, 0 for none."""
        ...

    def features(self, projection: Any) -> Features:
        """Return the features along given directions."""
        ...

    def draw(
        self, head_dim: int, num_features: int | None = None, *, generator: Generator = None
    ) -> Features:
        """Draw directions and return the features along them."""
        ...


class DrawnFeatures(nn.Module):
    """The features of one layer, all heads alike.

    The directions stay as drawn in evaluation, in ``prefill`` and in ``step``. In training they are
    drawn anew before every ``redraw_every``-th pass through the layer. The n-th new draw follows
    from a seed that is a buffer too: the same on all ranks that began with the same buffers, and
    after loading a checkpoint. A pass that gradient checkpointing repeats is not counted, and keeps
    the directions if there is no other training pass between the two.

    Args:
        kernel: what to draw.
        head_dim: width K of a head.
        num_features: how many directions, by default what ``kernel`` chooses.
        redraw_every: training passes between draws; None: never.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if a number does not fit.
    """

    def __init__(
        self,
        kernel: Kernel,
        head_dim: int,
        num_features: int | None = None,
        *,
        redraw_every: int | None = 1000,
    ) -> None:
        super().__init__()
        if redraw_every is not None:
            check_positive("redraw_every", redraw_every)
        self.kernel, self.head_dim, self.redraw_every = kernel, head_dim, redraw_every
        self.num_directions = kernel.num_directions(head_dim, num_features)
        count = self.num_directions
        self.projection: Tensor | None
        self.register_buffer("projection", torch.empty(count, head_dim) if count else None)
        # The seed of later draws, how many there were, and passes in training mode.
        self.schedule: Tensor
        self.register_buffer("schedule", torch.zeros(3, dtype=torch.long))
        self._passes: int | None = None  # schedule[2], known without waiting for the device
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw directions and the seed of later ones from torch's global generator."""
        if self.schedule.is_meta:
            return
        if self.projection is not None:
            self._draw(None)
        self.schedule.zero_()
        self.schedule[0] = torch.randint(2**62, (), device="cpu")
        self._passes = None

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw new directions, the next of the sequence that the layer's seed fixes."""
        if self.projection is None:
            return
        seed, draws, _ = self.schedule.tolist()
        self._draw(torch.Generator().manual_seed(seed + draws))
        self.schedule[1] += 1

    def current(self) -> Features:
        """Return the features as they are."""
        return self.kernel.features(self.projection)

    def forward(self) -> Features:
        """Return the features for one pass; in training first drawn anew, if it is time."""
        if self.training and self.redraw_every is not None and self.projection is not None:
            self._count_pass(self.redraw_every)
        return self.current()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _count_pass(self, redraw_every: int) -> None:
        repeated = torch._C._current_graph_task_id() != -1  # within a backward: by checkpointing
        if repeated or self.schedule.is_meta:
            return
        passes = int(self.schedule[2]) if self._passes is None else self._passes
        if passes and passes % redraw_every == 0:
            self.redraw()
        self.schedule[2] += 1
        self._passes = passes + 1

    def _draw(self, generator: Generator) -> None:
        assert self.projection is not None
        drawn = self.kernel.draw(self.head_dim, self.num_directions, generator=generator)
        assert drawn.projection is not None
        # Not in place: a pass that waits for its backward keeps the directions that it had.
        self.projection = drawn.projection.to(self.projection)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._passes = None
