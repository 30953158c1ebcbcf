"""From an experiment's options to the training loop's settings, and from its end to results."""

import dataclasses

from torch import nn

from subquad.experiments.options import CopyOptions, PixelOptions
from subquad.experiments.spec import Json
from subquad.tasks.config import TrainConfig
from subquad.tasks.training import FitResult


def train_config(options: PixelOptions | CopyOptions) -> TrainConfig:
    """Return the settings of the training loop.

    Raises:
        ValueError: if one is out of its range.
    """
    settings = dataclasses.asdict(options.train)
    betas = (0.9, settings.pop("beta2"))
    return TrainConfig(**settings, betas=betas, seed=options.seed, device=options.device)


def training_results(fitted: FitResult, samples: str, model: nn.Module) -> Json:
    """Return what the training itself tells; ``samples`` is images or sequences."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": fitted.step,
        f"{samples}_seen": fitted.samples,
        "minutes": fitted.seconds / 60,
        f"train_{samples}_per_second": fitted.samples_per_second,
    }
