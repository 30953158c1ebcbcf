"""Optimisers and learning rates.

Source: Liu et al. 2020, "On the variance of the adaptive learning rate and beyond" (RAdam), in the
form that the authors of the linear transformer released with their experiments.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from subquad.tasks.config import TrainConfig

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds this to the norm, and so did the release


class RAdam(torch.optim.Optimizer):
    """Rectified Adam as released with the linear transformer; torch's own RAdam differs.

    It first scales each gradient *tensor* to a norm of at most ``max_grad_norm`` (in place:
    ``.grad`` changes), takes ``weight_decay * lr`` of the weights away, and then steps: rectified
    once the variance can be trusted (N_sma >= 5), before that as gradient descent with momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights from their gradients; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for step, params in self._params_by_step(group["params"]).items():
                self._update(group, params, step)
        return loss

    def _params_by_step(self, params: list[Tensor]) -> dict[int, list[Tensor]]:
        """Count one more step for each parameter with a gradient, and group them by the count."""
        groups: dict[int, list[Tensor]] = defaultdict(list)
        for p in params:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] += 1
            groups[state["step"]].append(p)
        return groups

    def _update(self, group: dict[str, Any], params: list[Tensor], step: int) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        mean = [self.state[p]["exp_avg"] for p in params]
        square = [self.state[p]["exp_avg_sq"] for p in params]
        beta1, beta2 = group["betas"]

        if group["max_grad_norm"] > 0:
            norms = torch.stack(torch._foreach_norm(grads))
            scale = (group["max_grad_norm"] / (norms + CLIP_EPS)).clamp(max=1.0)
            torch._foreach_mul_(grads, list(scale.unbind()))
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, value=1 - beta2)
        torch._foreach_mul_(mean, beta1)
        torch._foreach_add_(mean, grads, alpha=1 - beta1)

        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["weight_decay"] * group["lr"])
        size = group["lr"] / (1 - beta1**step)
        rectification = rectify(step, beta2)
        if rectification is None:
            torch._foreach_add_(params, mean, alpha=-size)
        else:
            denominator = torch._foreach_sqrt(square)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, mean, denominator, value=-size * rectification)


def rectify(step: int, beta2: float) -> float | None:
    """Return the factor of the rectified step number ``step`` >= 1, None while N_sma < 5.

    It includes sqrt(1 - beta2**step), the bias correction of the running mean of squares.
    """
    beta2_t = beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2_t / (1 - beta2_t)
    if length < 5:
        return None
    return math.sqrt(
        (1 - beta2_t)
        * ((length - 4) / (longest - 4))
        * ((length - 2) / length)
        * (longest / (longest - 2))
    )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that ``config`` names, over the parameters of ``model`` that learn.

    RAdam decays all weights, as released. The others decay those of two or more axes: a bias or the
    gain of a norm is not made better by being pulled to 0.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have at least one parameter that learns, got none")
    if config.optimizer == "radam":
        return RAdam(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    # The fused form unscales fp16 gradients inside its step, too late for clipping them before.
    kind = {"foreach": True} if config.precision == "fp16" else {"fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, **kind)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=config.lr, betas=config.betas, **kind)


def learning_rate(config: TrainConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of the update after ``step`` updates: a pure function, no state."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        low = step >= round(config.drop_at * max_steps)
        return config.lr * (config.min_lr_ratio if low else 1.0)
    done = (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps)
    done = min(1.0, done)
    fall = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)
