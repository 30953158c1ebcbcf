"""What a training run would cost, from a short look at its first batch; nothing is kept of it.

FLOPs are counted by torch on one sample (on two, if a batch norm needs them) and multiplied: matrix
products only, two FLOPs for a multiply-add, forward and backward. Fused attention counts as its
products, the masked half of a causal one included, and its scores once more in the backward pass,
which makes them anew. Minutes come from timing, so they hold for this machine, as busy as it is
now. Memory is what training adds to a process that has imported torch.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from subquad.tasks.checkpoint import capture, restore
from subquad.tasks.config import TrainConfig
from subquad.tasks.optim import build_optimizer
from subquad.tasks.run import build_fabric
from subquad.tasks.task import Task

TIMED_SECONDS = 3.0  # no further repetition once so much time has passed
REPETITIONS = 3
GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run.

    Args:
        parameters: numbers that are learned.
        steps: updates of the weights.
        flops_per_step: floating-point operations of one update.
        flops: those of the whole run.
        seconds_per_step: of one update.
        minutes: of all updates; evaluations come on top.
        memory_gb: 10^9 bytes of weights, gradients, optimiser state and what the backward pass
            needs of the forward pass; passing intermediate results come on top.
        disk_gb: 10^9 bytes of checkpoint and trained model.
    """

    parameters: int
    steps: int
    flops_per_step: int
    flops: int
    seconds_per_step: float
    minutes: float
    memory_gb: float
    disk_gb: float


def estimate(task: Task, config: TrainConfig) -> Estimate:
    """Return what ``fit(task, config, ...)`` would cost; the model stays as it is.

    Raises:
        ValueError: if the device cannot do what ``config`` asks for.
    """
    model = task.model
    with _borrowed(task, config) as fabric:
        few = _fewest(model)
        batch = _first(task, fabric, few)
        saved, flops = _saved_bytes(task, fabric, batch) / few, _flops(task, fabric, batch) // few
        seconds = _seconds_per_step(task, config, fabric)
    weights = sum(v.nbytes for v in model.state_dict().values())
    averaged = 0 if config.ema_decay is None else weights
    learned = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    moments = 1 if config.optimizer == "sgd" else 2
    steps = config.max_steps or max(1, int(60 * (config.minutes or 0.0) / seconds))
    flops_per_step = flops * config.samples_per_update
    return Estimate(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=steps,
        flops_per_step=flops_per_step,
        flops=flops_per_step * steps,
        seconds_per_step=seconds,
        minutes=steps * seconds / 60,
        memory_gb=(weights + averaged + (1 + moments) * learned + saved * config.batch_size) / GIGA,
        disk_gb=(2 * weights + averaged + moments * learned) / GIGA,
    )


def seconds_per_step(task: Task, config: TrainConfig) -> float:
    """Time one update of the weights, the optimiser's step included.

    Whole updates where they are quick, otherwise one sample, multiplied. The model goes to the
    device that ``config`` names; weights, mode and random state stay as they are.

    Raises:
        ValueError: if the device cannot do what ``config`` asks for.
    """
    with _borrowed(task, config) as fabric:
        return _seconds_per_step(task, config, fabric)


@contextmanager
def _borrowed(task: Task, config: TrainConfig) -> Iterator[Fabric]:
    """Put the model on the device in training mode; afterwards everything is as it was."""
    fabric = build_fabric(config)
    model = task.model
    was_training = model.training
    fabric.to_device(model)
    before = capture(model, build_optimizer(model, config))
    model.train()
    try:
        yield fabric
    finally:
        model.zero_grad()
        restore(before, model, build_optimizer(model, config))
        model.train(was_training)


def _fewest(model: nn.Module) -> int:
    """Return how many samples a look takes: a batch norm can train on no single one."""
    return 2 if any(isinstance(m, _BatchNorm) for m in model.modules()) else 1


def _first(task: Task, fabric: Fabric, samples: int) -> list[Tensor]:
    # A clone: a slice would hold on to the memory of the whole batch, and be counted so.
    return [fabric.to_device(t[:samples].clone()) for t in task.batch(0)]


def _step(task: Task, fabric: Fabric, batch: list[Tensor]) -> Tensor:
    with fabric.autocast():
        return task.loss(*batch)


def _saved_bytes(task: Task, fabric: Fabric, batch: list[Tensor]) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, weights not counted."""
    own = {v.untyped_storage().data_ptr() for v in task.model.state_dict().values()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _step(task, fabric, batch)
    total: int = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


def _forward_products(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    total: int = sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]
    return total


def _backward_products(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    total: int = sdpa_backward_flop_count(grad, q, k, v)  # type: ignore[no-untyped-call]
    return total


# torch counts the fused attention of a GPU, but not that of a CPU: by itself it would find 0 there.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_products,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_products,
}


def _flops(task: Task, fabric: Fabric, batch: list[Tensor]) -> int:
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        fabric.backward(_step(task, fabric, batch))
    total: int = counter.get_total_flops()
    return total


def _seconds_per_step(task: Task, config: TrainConfig, fabric: Fabric) -> float:
    optimizer: Any = fabric.setup_optimizers(build_optimizer(task.model, config))
    few = _fewest(task.model)
    whole = _seconds(task, fabric, _first(task, fabric, few)) / few * config.batch_size
    if whole < 2 * TIMED_SECONDS:
        whole = _seconds(task, fabric, _first(task, fabric, config.batch_size))
    optimizer.step()  # the first one also makes the moments
    _wait(fabric)
    began = time.perf_counter()
    optimizer.step()
    _wait(fabric)
    return whole * config.grad_accumulation + time.perf_counter() - began


def _seconds(task: Task, fabric: Fabric, batch: list[Tensor]) -> float:
    """Return the median seconds of a few forward and backward passes."""
    times: list[float] = []
    _wait(fabric)
    while len(times) < REPETITIONS and sum(times) < TIMED_SECONDS:
        began = time.perf_counter()
        fabric.backward(_step(task, fabric, batch))
        _wait(fabric)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
