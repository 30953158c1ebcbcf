"""What a training run is told: one frozen object, checked when it is made. No torch here."""

import difflib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Optimizer = Literal["radam", "adamw", "adam", "sgd"]
Schedule = Literal["constant", "cosine", "linear", "step"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Normalization = Literal["data", "half", "imagenet"]  # see tasks.normalizing

# These say where and how often to look, not what is computed: a resumed run may change them.
FREE_ON_RESUME = frozenset({"eval_every", "checkpoint_every", "log_every", "device"})
# Settings that came later. They count only where they differ from these: checkpoints that know
# nothing of them were made with these.
LATER_SETTINGS: dict[str, object] = {"momentum": 0.9, "ema_decay": None}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Exactly one of ``max_steps`` and ``minutes`` must be given.

    Args:
        max_steps: number of updates of the weights.
        minutes: wall-clock budget; :func:`subquad.tasks.training.fit` turns it into ``max_steps``
            once, by timing, at the start of the run.
        batch_size: samples in one micro-batch; must equal the task's ``samples_per_step``.
        grad_accumulation: micro-batches whose gradients are averaged before each update.
        optimizer: "radam" as the authors of the linear transformer released it; "adamw"; "adam";
            "sgd", gradient descent with momentum (not Nesterov's).
        lr: highest learning rate.
        betas: decay rates of the two running averages of the optimiser; "sgd" has none.
        momentum: share of the last step that "sgd" takes once more; the others ignore it.
        schedule: "constant"; "cosine" and "linear", from ``lr`` down to ``lr * min_lr_ratio`` at
            the last step; "step", ``lr`` and then, from the share ``drop_at`` of the steps on, the
            lowest.
        min_lr_ratio: lowest learning rate over highest.
        drop_at: when the "step" schedule falls, as a share of ``max_steps`` (the copy task of the
            paper: 3,000 of 10,000 updates).
        warmup_steps: updates in which the learning rate rises linearly to ``lr``.
        weight_decay: for "radam" and "adamw" decoupled: an update first takes ``weight_decay``
            times its learning rate of the weights away, so the schedule scales the decay too. That
            is the published decay of the Vision Transformer (Adam, 0.03 to 0.3), which needs
            "adamw" here. For "sgd" and "adam" it is the penalty ``weight_decay / 2 * |w|^2`` of the
            loss, as ResNets' recipes have it. All but "radam" decay weights of two or more axes
            only: no biases, no gains of a norm.
        clip_norm: largest 2-norm of all gradients together; None does not clip.
        ema_decay: keep an exponential moving average of the weights, and of the running statistics
            of batch norms: after each update it keeps this share of itself and takes the rest from
            the weights. It is what is evaluated and what the model ends with. It starts as the
            weights after the first update, so it needs well over 1 / (1 - ema_decay) updates to be
            worth having. None keeps none.
        precision: "bf16" and "fp16" are mixed precision: float32 weights under autocast.
        seed: seed of dropout (the order of the data is the task's own affair).
        device: "auto" takes the GPU where there is one.
        log_every, eval_every, checkpoint_every: in updates.

    Raises:
        ValueError: if a value is outside its range, or a name is unknown.
        TypeError: if a value is of the wrong type.
    """

    max_steps: int | None = None
    minutes: float | None = None
    batch_size: int
    grad_accumulation: int = 1
    optimizer: Optimizer = "radam"
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    schedule: Schedule = "constant"
    min_lr_ratio: float = 0.1
    drop_at: float = 0.3
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Precision = "fp32"
    seed: int = 0
    device: Device = "auto"
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        _exactly_one_length(self.max_steps, self.minutes)
        for name in ("max_steps", "batch_size", "grad_accumulation"):
            _whole(name, getattr(self, name), at_least=1)
        for name in ("log_every", "eval_every", "checkpoint_every"):
            _whole(name, getattr(self, name), at_least=1)
        _whole("warmup_steps", self.warmup_steps, at_least=0)
        _whole("seed", self.seed, at_least=0)
        for name in ("minutes", "lr", "clip_norm"):
            _number(name, getattr(self, name), "a finite number above 0", lambda x: x > 0)
        _number("weight_decay", self.weight_decay, "a finite number >= 0", lambda x: x >= 0)
        for name in ("min_lr_ratio", "drop_at"):
            _number(name, getattr(self, name), "a number from 0 to 1", lambda x: 0 <= x <= 1)
        for i, beta in enumerate(self.betas):
            _number(f"betas[{i}]", beta, "at least 0 and below 1", lambda x: 0 <= x < 1)
        _number("momentum", self.momentum, "at least 0 and below 1", lambda x: 0 <= x < 1)
        _number("ema_decay", self.ema_decay, "above 0 and below 1", lambda x: 0 < x < 1)
        _one_of("optimizer", self.optimizer, get_args(Optimizer))
        _one_of("schedule", self.schedule, get_args(Schedule))
        _one_of("precision", self.precision, get_args(Precision))
        _one_of("device", self.device, get_args(Device))
        if self.max_steps is not None and self.warmup_steps >= self.max_steps > 1:
            raise ValueError(
                f"warmup_steps must be less than max_steps = {self.max_steps}, "
                f"got {self.warmup_steps}"
            )

    def fixed_settings(self) -> dict[str, Any]:
        """Return what a run that goes on must share with the one before it."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in FREE_ON_RESUME
            and not (name in LATER_SETTINGS and value == LATER_SETTINGS[name])
        }

    @property
    def samples_per_update(self) -> int:
        """Samples that one update of the weights has seen."""
        return self.batch_size * self.grad_accumulation


def _exactly_one_length(max_steps: object, minutes: object) -> None:
    if (max_steps is None) == (minutes is None):
        raise ValueError(
            "exactly one of max_steps and minutes must be given, "
            f"got max_steps={max_steps} and minutes={minutes}"
        )


def _whole(name: str, value: object, *, at_least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def _number(name: str, value: object, rule: str, holds: Callable[[float], bool]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    if not (math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} must be {rule}, got {value}")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    names = ", ".join(repr(k) for k in known)
    raise ValueError(f"{name} must be one of {names}, got {value!r}{hint}")
