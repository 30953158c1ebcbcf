"""The peak memory of one training step of a model of images, in a process of its own."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bench.memory import measured_peak, peak_bytes
from subquad.bench.timing import threads
from subquad.layers.registry import MIXERS
from subquad.models.image_baselines import BasicResNet, MLPMixer, PixelMLP, RowLSTM
from subquad.models.saving import MODELS

Json = dict[str, Any]
KIND = "image-model"
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **MODELS,
    **{kind.__name__: kind for kind in (BasicResNet, PixelMLP, MLPMixer, RowLSTM)},
}


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """A model and a batch of noise.

    Args:
        model: the name of its class.
        arguments: what the class is built with, as JSON values.
        shape: of the images, (B, C, H, W).
        mixer: a name in ``MIXERS`` in place of the one among the arguments; None for that one.
        mixer_settings: options of that mixer.
        device: "cpu" or "cuda".
        precision: "fp32", or "bf16" by autocast.
        threads: of torch, None for its own choice.
    """

    model: str
    arguments: Json
    shape: tuple[int, ...]
    mixer: str | None = None
    mixer_settings: Json = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None


def training_peak(job: ImageJob) -> int | None:
    """Return the bytes that a step needs beyond weights and images, its gradients included.

    On a CPU it is measured in a process of its own; None if that process did not end well.
    """
    return measured_peak({"kind": KIND, **asdict(job)}, job.device, memory_in_this_process)


def memory_in_this_process(job: Json, tell: Callable[[Json], None]) -> None:
    """Measure the peak of one step; see ``child``."""
    given = {name: value for name, value in job.items() if name != "kind"}
    chosen = ImageJob(**{**given, "shape": tuple(given["shape"])})
    with threads(chosen.threads):
        model = build(chosen).train()
        x = torch.randn(chosen.shape, device=chosen.device)
        labels = torch.zeros(len(x), dtype=torch.long, device=chosen.device)
        training_step(model, x[:1], labels[:1], chosen.precision)  # loads what a first call loads
        model.zero_grad(set_to_none=True)
        run = partial(training_step, model, x, labels, chosen.precision)
        tell({"peak_bytes": peak_bytes(run, chosen.device)})


def build(job: ImageJob) -> nn.Module:
    """Return the job's model.

    Raises:
        ValueError: if no model or mixer has its name, or an argument does not fit.
    """
    for what, name, known in (("model", job.model, BUILDERS), ("mixer", job.mixer, MIXERS)):
        if name is not None and name not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    arguments = dict(job.arguments)
    if job.mixer is not None:
        arguments["mixer"] = partial(MIXERS[job.mixer], **job.mixer_settings)
    return BUILDERS[job.model](**arguments).to(job.device)


def training_step(model: nn.Module, x: Tensor, labels: Tensor, precision: str) -> None:
    """Compute the gradients of the cross-entropy."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(x)
    F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
