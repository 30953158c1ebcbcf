"""Networks for images by name, and what is timed of them: a step of training, and inference.

A name is that of a preset of ``LambdaResNet``, or efficientnet-b0 to efficientnet-b7, which are
transformers' own with random weights. Source of the latter's numbers: Tan and Le 2019.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bench.memory import measured_peak, peak_bytes
from subquad.bench.timing import threads
from subquad.models import LambdaResNet

Json = dict[str, Any]
KIND = "image-network"
EFFICIENTNET = "efficientnet-b"
FULL_WIDTH, CLASSES = 64, 1000
WARM_SIDE = 32  # of the images of a first, untimed step


class EfficientNetSize(NamedTuple):
    """What tells one EfficientNet from another."""

    width: float
    depth: float
    image_size: int


EFFICIENTNETS = {
    0: EfficientNetSize(1.0, 1.0, 224), 1: EfficientNetSize(1.0, 1.1, 240),
    2: EfficientNetSize(1.1, 1.2, 260), 3: EfficientNetSize(1.2, 1.4, 300),
    4: EfficientNetSize(1.4, 1.8, 380), 5: EfficientNetSize(1.6, 2.2, 456),
    6: EfficientNetSize(1.8, 2.6, 528), 7: EfficientNetSize(2.0, 3.1, 600),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NetworkJob:
    """One network, and the batches that it is given.

    Args:
        name: see the module.
        image_size: side of the square images.
        batch_size: images at once.
        width: channels inside a block of the first stage, 64 in all that is published; an
            EfficientNet's widths are scaled alike.
        device: "cpu" or "cuda".
        dtype: "float32", or "bfloat16" by autocast.
        channels_last: how images and weights lie in memory.
        seed: of weights and images.
        threads: of torch, None for its own choice.
    """

    name: str
    image_size: int
    batch_size: int
    width: int = FULL_WIDTH
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = False
    seed: int = 0
    threads: int | None = None


def build_network(name: str, *, width: int = FULL_WIDTH) -> nn.Module:
    """Return a network of 1,000 classes, images (B, 3, H, W) to logits (B, 1000).

    Raises:
        ImportError: if it is an EfficientNet, and transformers cannot be imported.
        ValueError: if there is none of that name.
    """
    if name.startswith(EFFICIENTNET):
        return _EfficientNet(name.removeprefix(EFFICIENTNET), width / FULL_WIDTH)
    return LambdaResNet.preset(name, num_classes=CLASSES, width=width)


def why_no_efficientnets() -> str | None:
    """Return a sentence on why EfficientNets cannot be built here; None where they can."""
    try:
        _transformers()
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision that does not fit
        reason = " ".join(str(error).split())[:200]
        return f"EfficientNets are left out: transformers cannot be imported ({reason})."
    return None


class NetworkStep:
    """A network with images, labels and an optimiser: SGD with a momentum of 0.9."""

    def __init__(self, job: NetworkJob) -> None:
        torch.manual_seed(job.seed)
        layout = torch.channels_last if job.channels_last else torch.contiguous_format
        model = build_network(job.name, width=job.width)
        self.model = model.to(device=job.device, memory_format=layout)  # type: ignore[call-overload]
        self.images = self._draw(job, job.image_size).contiguous(memory_format=layout)
        self.labels = torch.randint(0, CLASSES, (job.batch_size,), device=job.device)
        # A rate at which a few steps on noise cannot diverge.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        self._job = job

    def train(self) -> None:
        """Make one update of the weights; gradients are not kept."""
        self._step(self.images)

    def infer(self) -> None:
        """Compute the logits."""
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            self.model(self.images)

    def warm(self) -> None:
        """Make one update on small images, after which the optimiser has its momenta."""
        self._step(self._draw(self._job, min(WARM_SIDE, self._job.image_size)))

    def _step(self, images: Tensor) -> None:
        self.model.train()
        with self._autocast():
            logits = self.model(images)
        F.cross_entropy(logits.float(), self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        narrow = self._job.dtype != "float32"
        return torch.autocast(
            self._job.device, dtype=getattr(torch, self._job.dtype), enabled=narrow
        )

    @staticmethod
    def _draw(job: NetworkJob, side: int) -> Tensor:
        return torch.randn(job.batch_size, 3, side, side, device=job.device)


def training_peak(job: NetworkJob) -> int | None:
    """Return the peak memory of a step in bytes beyond weights, momenta and images.

    On a CPU it is measured in a process of its own; None if that process did not end well.
    """
    return measured_peak({"kind": KIND, **asdict(job)}, job.device, memory_in_this_process)


def memory_in_this_process(job: Json, tell: Callable[[Json], None]) -> None:
    """Measure the peak of one step of training; see ``child``."""
    chosen = NetworkJob(**{name: value for name, value in job.items() if name != "kind"})
    with threads(chosen.threads):
        step = NetworkStep(chosen)
        step.warm()
        tell({"peak_bytes": peak_bytes(step.train, chosen.device)})


class _EfficientNet(nn.Module):
    """transformers' network, logits only."""

    def __init__(self, number: str, scale: float) -> None:
        super().__init__()
        if not number.isdecimal() or int(number) not in EFFICIENTNETS:
            known = f"{EFFICIENTNET}0 to {EFFICIENTNET}{max(EFFICIENTNETS)}"
            raise ValueError(f"name must be {known}, got {EFFICIENTNET}{number}")
        size, library = EFFICIENTNETS[int(number)], _transformers()
        width = size.width * scale
        self.network: nn.Module = library.EfficientNetForImageClassification(
            library.EfficientNetConfig(
                width_coefficient=width, depth_coefficient=size.depth,
                image_size=size.image_size, hidden_dim=_rounded(1280 * width),
                num_labels=CLASSES, dropout_rate=0.2,
            )
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def _rounded(channels: float) -> int:
    """Round to a multiple of 8 as the network does, never by more than a tenth down."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


def _transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own: it is not ours to mend
        library = import_module("transformers")
        library.EfficientNetForImageClassification  # noqa: B018  # loaded late, so it may fail here
    return library
