"""One session of a training run: what is done at a step, and what is carried from step to step.

Two rules make a killed run end with the very weights of one that was not: the data and the learning
rate are pure functions of the step, and all else that an update reads is in the checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from subquad.files import atomic_write_json
from subquad.tasks.averaging import WeightAverage
from subquad.tasks.checkpoint import (
    Checkpoint,
    capture,
    check_settings,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from subquad.tasks.config import TrainConfig
from subquad.tasks.metrics import MetricsLog, columns_of, evaluation_columns
from subquad.tasks.optim import build_optimizer, learning_rate
from subquad.tasks.process import ProgressLine
from subquad.tasks.task import Task

CHECKPOINT = "checkpoint.safetensors"
WARMUP_STEPS, TIMED_STEPS = 5, 10  # to turn minutes into steps
FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Run:
    """One session of a run; :func:`subquad.tasks.training.fit` is its only user."""

    def __init__(
        self, task: Task, config: TrainConfig, run_dir: Path, fabric: Fabric, line: ProgressLine
    ) -> None:
        self.task, self.config, self.run_dir = task, config, run_dir
        self.fabric, self.line = fabric, line
        self.path = run_dir / CHECKPOINT
        self.step, self.max_steps = 0, 0
        self.saved_step = -1
        self.resumed_from: int | None = None
        self.losses: list[Tensor] = []  # of the updates since the last row, still on the device
        self.norm: Tensor | None = None  # of the last update's gradients
        self.average: WeightAverage | None = None
        self.evaluation: dict[str, float] = {}
        self.earlier_seconds = 0.0  # of the sessions before this one
        self.update_seconds = 0.0  # in updates alone, all sessions
        self.row_samples, self.row_seconds = 0, 0.0  # since the last row, this session
        self.began = self.mark = time.perf_counter()

    def prepare(self) -> None:
        """Build the optimiser; begin anew, or go on from the checkpoint."""
        self.fabric.to_device(self.task.model)
        self._new_optimizer()
        if self.config.ema_decay is not None:
            self.average = WeightAverage(self.task.model, self.config.ema_decay)
        if self.path.exists():
            self._go_on(read_checkpoint(self.path))
            self.task.model.train()
            return
        torch.manual_seed(self.config.seed)
        self.evaluate()
        self.max_steps = self.config.max_steps or self._steps_in(self.config.minutes or 0.0)

    def open_log(self) -> MetricsLog:
        """Open the metrics; a new run writes its first row and checkpoint."""
        new = self.resumed_from is None
        columns = columns_of(self.evaluation)
        self.log = MetricsLog(self.run_dir, columns, last_step=-1 if new else self.step)
        try:
            self._write_settings()
            if new:
                self.write_row(None, with_evaluation=True)
                self.save()
        except BaseException:
            self.log.close()
            raise
        self.line.begin(self.step, self.max_steps)
        self.mark = time.perf_counter()
        return self.log

    def advance(self) -> None:
        """Do one update, and what is due after it: a row, an evaluation, a checkpoint."""
        self.losses.append(self.update(self.step))
        self.step += 1
        self.row_samples += self.config.samples_per_update
        self.line.advance(self.step)
        last = self.step == self.max_steps
        evaluates = last or self.step % self.config.eval_every == 0
        if evaluates or self.step % self.config.log_every == 0:
            train = self._read_losses()
            self._stop_clock()
            if evaluates:
                self.evaluate()
            self.write_row(train, with_evaluation=evaluates)
            self.losses.clear()
        if last or self.step % self.config.checkpoint_every == 0:
            self.save()

    def update(self, step: int) -> Tensor:
        """Do update number ``step`` (from 0); return its loss without waiting for the device."""
        config, n = self.config, self.config.grad_accumulation
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.max_steps)
        total = torch.zeros((), device=self.fabric.device)
        for i in range(step * n, step * n + n):
            batch = [self.fabric.to_device(t) for t in self.task.batch(i)]
            with self.fabric.autocast():
                loss = self.task.loss(*batch) / n
            self.fabric.backward(loss)
            total += loss.detach()
        if config.clip_norm is not None:
            self.norm = self.fabric.clip_gradients(
                self.task.model,
                self.optimizer,
                max_norm=config.clip_norm,
                error_if_nonfinite=False,  # the check would wait for the device at every step
            )
        self.stepper.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return total

    def evaluate(self) -> None:
        """Take a quick look at held-out data; the random state stays as it was."""
        device = self.fabric.device
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_use()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), averaged:
            self.evaluation = self.task.evaluate(full=False)
        self.task.model.train()
        self.mark = time.perf_counter()

    def write_row(self, train: float | None, *, with_evaluation: bool) -> None:
        """Write one row of metrics and show it."""
        row: dict[str, float | int | None] = {
            "step": self.step,
            "samples": self.step * self.config.samples_per_update,
            "seconds": round(self.seconds, 3),
            "train": train,
            "learning_rate": learning_rate(self.config, max(0, self.step - 1), self.max_steps),
            "gradient_norm": None if self.norm is None else float(self.norm),
        }
        if self.row_seconds > 0:
            row["samples_per_second"] = round(self.row_samples / self.row_seconds, 3)
        if with_evaluation:
            row |= evaluation_columns(self.evaluation)
        self.log.write(row)
        self.row_samples, self.row_seconds = 0, 0.0
        if self.step > 0:
            self.line.show(row)

    def save(self) -> None:
        """Write the checkpoint, unless the run has gone bad."""
        self._read_losses()
        self._stop_clock()
        tensors = capture(self.task.model, self.optimizer, self.average)
        for name, value in tensors.items():
            if name.startswith("model.") and not _is_finite(value):
                weight = name.removeprefix("model.")
                raise self._gone_bad(f"{weight} is no longer finite at step {self.step}")
        if self.losses:
            tensors["losses"] = torch.stack(self.losses).cpu()
        progress = {
            "max_steps": self.max_steps,
            "seconds": self.seconds,
            "update_seconds": self.update_seconds,
            "evaluation": self.evaluation,
            "scaler": self.fabric.strategy.precision.state_dict(),
        }
        self.log.sync()  # a checkpoint must never be ahead of the rows
        checkpoint = Checkpoint(
            step=self.step, settings=self._settings(), progress=progress, tensors=tensors
        )
        write_checkpoint(self.path, checkpoint)
        self.saved_step = self.step
        self.mark = time.perf_counter()

    def finish(self) -> None:
        """Leave the model as it is to be used: with the averaged weights, if there are such."""
        if self.average is not None and self.step > 0:
            self.average.put_into_model()
        self.task.model.eval()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all sessions so far."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def _new_optimizer(self) -> None:
        self.optimizer = build_optimizer(self.task.model, self.config)
        stepper: Any = self.fabric.setup_optimizers(self.optimizer)
        self.stepper = stepper

    def _go_on(self, found: Checkpoint) -> None:
        check_settings(self.path, found, self._settings())
        restore(found.tensors, self.task.model, self.optimizer, self.average)
        progress = found.progress
        self.fabric.strategy.precision.load_state_dict(progress["scaler"])
        self.step = self.saved_step = self.resumed_from = found.step
        self.max_steps = progress["max_steps"]
        self.earlier_seconds, self.update_seconds = progress["seconds"], progress["update_seconds"]
        self.evaluation = progress["evaluation"]
        if "losses" in found.tensors:
            self.losses = list(found.tensors["losses"].to(self.fabric.device).unbind())
        self.line.say(f"going on from step {self.step} of {self.max_steps}")

    def _steps_in(self, minutes: float) -> int:
        """Return how many updates fit in ``minutes``, by timing some and taking them back."""
        evaluation_seconds = time.perf_counter() - self.began
        self.line.say("timing the first steps")
        before = capture(self.task.model, self.optimizer, self.average)
        self.max_steps = WARMUP_STEPS + TIMED_STEPS
        times = []
        for step in range(self.max_steps):
            began = time.perf_counter()
            float(self.update(step))  # waits for the device
            times.append(time.perf_counter() - began)
        self.fabric = build_fabric(self.config)  # with a new loss scale
        self._new_optimizer()
        restore(before, self.task.model, self.optimizer, self.average)
        self.norm = None
        each = statistics.median(times[WARMUP_STEPS:])
        each += evaluation_seconds / self.config.eval_every
        return max(1, int((60 * minutes - self.seconds) / each))

    def _settings(self) -> dict[str, dict[str, Any]]:
        """Return what a run that goes on must share with the one before it."""
        model = self.task.model
        return {
            "training": self.config.fixed_settings(),
            "task": self.task.identity,
            "model": {"class": type(model).__name__, **dict(getattr(model, "config", {}))},
        }

    def _write_settings(self) -> None:
        """Put settings and number of steps in config.json, beside what others keep there."""
        path = self.run_dir / "config.json"
        value: Any = {}
        if path.exists():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} must hold JSON, got {error}") from error
        settings = {**dataclasses.asdict(self.config), "max_steps": self.max_steps}
        settings["betas"] = list(self.config.betas)
        if value.get("training") != settings:
            atomic_write_json(path, {**value, "training": settings})

    def _read_losses(self) -> float | None:
        """Wait for the device; return the mean loss since the last row, in the task's unit."""
        if not self.losses:
            return None
        values = torch.stack(self.losses).tolist()
        for i, value in enumerate(values, start=self.step - len(values) + 1):
            if not math.isfinite(value):
                raise self._gone_bad(f"the loss is {value} at step {i}")
        return self.task.metric(sum(values) / len(values))

    def _gone_bad(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} of {self.max_steps}; the checkpoint of step {self.saved_step} is kept in "
            f"{self.path}; a smaller lr, a longer warm-up or clip_norm may help"
        )

    def _stop_clock(self) -> None:
        """Count the time since the mark as time of updates, and set the mark anew."""
        now = time.perf_counter()
        self.update_seconds += now - self.mark
        self.row_seconds += now - self.mark
        self.mark = now


def build_fabric(config: TrainConfig) -> Fabric:
    """Return the device and precision that ``config`` asks for.

    Raises:
        ValueError: if there is no GPU, or fp16 is asked of a CPU.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'cpu' or 'auto' on a machine without a GPU, got 'cuda'")
    if device == "cpu" and config.precision == "fp16":
        raise ValueError("precision must be 'fp32' or 'bf16' on a CPU, got 'fp16'")
    precision: Any = FABRIC_PRECISION[config.precision]
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)  # it tells of bf16 on standard error, quiet or not
    try:
        return Fabric(accelerator=device, devices=1, precision=precision)
    finally:
        log.setLevel(level)


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
