"""The moving average of a model's weights that is evaluated in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

RUNNING_STATISTICS = ("running_mean", "running_var")  # of torch's batch norms


class WeightAverage:
    """An exponential moving average of weights and of the running statistics of batch norms.

    Done by torch. Other buffers (counters, tables, random features drawn anew) are copied from the
    model: an average of them would mean nothing. The first update copies all.

    Args:
        model: whose weights are averaged; a copy of it is made.
        decay: share of itself that the average keeps at an update, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def updates(self) -> int:
        """How many updates were taken in."""
        return int(self._averaged.n_averaged)

    @updates.setter
    def updates(self, value: int) -> None:
        self._averaged.n_averaged.fill_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averaged tensors themselves, by the names of the model's own."""
        found: dict[str, Tensor] = self._averaged.module.state_dict()
        return found

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self._averaged.update_parameters(self._model)
        own = dict(self._model.named_buffers())
        for name, buffer in self._averaged.module.named_buffers():
            if name.rpartition(".")[2] not in RUNNING_STATISTICS:
                buffer.copy_(own[name])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model hold the average for a while, and its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def put_into_model(self) -> None:
        """Let the model hold the average from now on."""
        own = self._model.state_dict()
        for name, value in self.tensors().items():
            own[name].copy_(value)

    def _swap(self) -> None:
        own = self._model.state_dict()
        for name, value in self.tensors().items():
            kept = own[name].clone()
            own[name].copy_(value)
            value.copy_(kept)
