"""From the end of a training to results."""

from torch import nn

from subquad.experiments.spec import Json
from subquad.tasks.training import FitResult


def training_results(fitted: FitResult, samples: str, model: nn.Module) -> Json:
    """Return what the training itself tells; ``samples`` is images or sequences."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": fitted.step,
        f"{samples}_seen": fitted.samples,
        "minutes": fitted.seconds / 60,
        f"train_{samples}_per_second": fitted.samples_per_second,
    }
