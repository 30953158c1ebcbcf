"""The training loop: Lightning Fabric for devices and precision, and one short loop of our own.

docs/decisions/0003-training-loop.md says why this is not the Trainer.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from subquad.tasks.config import TrainConfig
from subquad.tasks.process import ProgressLine, only_run_in, stop_on_interrupt
from subquad.tasks.run import CHECKPOINT, Run, build_fabric
from subquad.tasks.task import Task

__all__ = ["FitResult", "TrainConfig", "fit"]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a training run ended.

    Args:
        step: updates of the weights done.
        max_steps: updates that the whole run has.
        interrupted: Ctrl-C ended it; the checkpoint is saved and the run can go on.
        resumed_from: the step of the checkpoint it went on from, None for a new run.
        samples: samples seen in all sessions of the run.
        seconds: wall-clock time of all sessions, evaluations included.
        samples_per_second: speed of the updates alone.
        evaluation: the last quick evaluation.
        device: "cpu" or "cuda".
    """

    step: int
    max_steps: int
    interrupted: bool
    resumed_from: int | None
    samples: int
    seconds: float
    samples_per_second: float
    evaluation: dict[str, float]
    device: str


def fit(
    task: Task, config: TrainConfig, run_dir: Path, *, resume: bool = True, quiet: bool = False
) -> FitResult:
    """Train ``task.model`` in place, and go on from the checkpoint in ``run_dir`` if there is one.

    Writes metrics.csv, tensorboard/ and checkpoint.safetensors below ``run_dir``, and the settings
    under "training" in its config.json. Sets torch's global seed. The model ends in eval mode, on
    the device it was trained on; with ``ema_decay`` it ends with the averaged weights, and so it
    does where the run was interrupted (the checkpoint holds both).

    Raises:
        ValueError: if config and task disagree, the device cannot do what is asked, or the
            checkpoint is damaged or of another run.
        FileExistsError: if ``resume`` is False and the folder holds a run.
        FloatingPointError: if the loss or a weight is no longer finite; the last checkpoint stays.
        OSError: if the folder cannot be written or the disk is full; the last checkpoint stays.
    """
    if config.batch_size != task.samples_per_step:
        raise ValueError(
            f"batch_size must equal the task's samples_per_step = {task.samples_per_step}, "
            f"got {config.batch_size}"
        )
    fabric = build_fabric(config)
    line = ProgressLine(unit=task.unit, sample_name=task.sample_name, quiet=quiet)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_run_in(run_dir))
        stopped = stack.enter_context(stop_on_interrupt())
        _check_folder(run_dir, resume=resume)
        run = Run(task, config, run_dir, fabric, line)
        run.prepare()
        stack.enter_context(run.open_log())
        stack.enter_context(line)
        while run.step < run.max_steps and not stopped():
            run.advance()
        if run.step > run.saved_step:
            run.save()
    run.finish()
    if run.step < run.max_steps:
        line.say(f"stopped at step {run.step} of {run.max_steps}; saved, and can go on from there")
    return _result(run)


def _result(run: Run) -> FitResult:
    samples = run.step * run.config.samples_per_update
    return FitResult(
        step=run.step,
        max_steps=run.max_steps,
        interrupted=run.step < run.max_steps,
        resumed_from=run.resumed_from,
        samples=samples,
        seconds=run.seconds,
        samples_per_second=samples / run.update_seconds if run.update_seconds > 0 else 0.0,
        evaluation=run.evaluation,
        device=run.fabric.device.type,
    )


def _check_folder(run_dir: Path, *, resume: bool) -> None:
    """Refuse a folder whose content would be lost; sweep up what a killed run left half written."""
    for part in run_dir.glob(".*.part"):
        part.unlink(missing_ok=True)
    if (run_dir / CHECKPOINT).exists():
        if not resume:
            raise FileExistsError(
                f"{run_dir} holds a run already; resume it or name another folder"
            )
        return
    metrics = run_dir / "metrics.csv"
    if metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) > 2:
        raise FileExistsError(
            f"{run_dir} holds the metrics of a run without its {CHECKPOINT}; name another folder"
        )
