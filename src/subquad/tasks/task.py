"""What the training loop asks of a task."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """A model, the data it learns from, and what is measured on it.

    A task keeps no hidden position in its data: :meth:`batch` is a pure function of its argument
    and the task's seed. That is what makes a resumed run see the very same batches.

    Attributes:
        model: what is trained, in place.
        unit: what :meth:`metric` and ``evaluate()["loss"]`` are in, for instance "bits/dim".
        samples_per_step: samples in one micro-batch.
        sample_name: what a sample is called in the progress bar, for instance "images".
        identity: what makes this task this task (name, seed, sizes, a checksum of the data) as JSON
            values; a checkpoint of another identity is refused.
    """

    unit: str
    samples_per_step: int
    sample_name: str
    identity: dict[str, Any]

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return micro-batch number ``step``, a pure function of it, on any device."""
        ...

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the scalar to minimise, in nats."""
        ...

    def metric(self, loss: float) -> float:
        """Return ``loss`` in :attr:`unit`."""
        ...

    def evaluate(self, *, full: bool) -> dict[str, float]:
        """Return "loss" (in :attr:`unit`) and other numbers, on held-out data.

        ``full=False`` is a quick look during training, ``full=True`` takes all of the test data.
        The same keys each time. The random state and the model's mode stay as they were.
        """
        ...
