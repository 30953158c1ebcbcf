"""Trained image classifiers as folders: the model's two files, and labels.json.

labels.json says what the weights do not: the names of the classes and how a picture becomes what
the network takes. Nothing is pickled.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subquad.files import atomic_write_json
from subquad.models.saving import load_model, save_model
from subquad.ops.checks import check_choice, check_positive
from subquad.tasks.normalizing import normalized

LABELS = "labels.json"
FORMAT, VERSION = "subquad-classifier", 1

Fit = Literal["exact", "resize"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a classifier's logits mean, and what images it takes.

    Args:
        classes: names, in the order of the logits.
        image_size: height and width of the images that the network takes.
        channels: 1 (grey) or 3 (red, green, blue).
        mean, std: a number a channel, in units of 255 bytes: the network takes (x / 255 - mean) /
            std.
        fit: "exact": a picture must have this size and so many channels; "resize": any picture is
            resized until its shorter side has ``resize`` pixels, and its middle is cut out, as the
            training did; for square images.
        resize: see ``fit``; None stands for the shorter of ``image_size``.

    Raises:
        TypeError: if a value is of the wrong type.
        ValueError: if one is out of its range, or they do not fit together.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "exact"
    resize: int | None = None

    def __post_init__(self) -> None:
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes must be names, at least one, got {self.classes!r}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must have names of their own, got one twice")
        if len(self.image_size) != 2:
            raise ValueError(f"image_size must be height and width, got {self.image_size}")
        for side in self.image_size:
            check_positive("image_size", side)
        check_choice("channels", self.channels, (1, 3))
        _check_numbers(self)
        check_choice("fit", self.fit, get_args(Fit))
        if self.fit == "resize" and self.image_size[0] != self.image_size[1]:
            raise ValueError(f"fit 'resize' needs square images, got {self.image_size}")
        if self.resize is not None:
            check_positive("resize", self.resize)
            if self.resize < max(self.image_size):
                raise ValueError(
                    f"resize must be at least image_size = {self.image_size}, got {self.resize}"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A trained model, in evaluation mode, with its labels."""

    model: nn.Module
    labels: Labels

    def prepared(self, images: NDArray[np.uint8]) -> Tensor:
        """Return images (N, H, W, C) of bytes as the network takes them, (N, C, H, W) float32.

        Raises:
            ValueError: if they are not of the size and channels that the labels say.
        """
        wanted = (*self.labels.image_size, self.labels.channels)
        if images.shape[1:] != wanted:
            raise ValueError(f"images must have the shape (N, {wanted}), got {images.shape}")
        mean, std = np.array(self.labels.mean), np.array(self.labels.std)
        return normalized(images, mean, std).contiguous()

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8], *, batch_size: int = 64) -> Tensor:
        """Return what share of belief each class gets, (N, K) float32 on the CPU; rows sum to 1."""
        device = next(self.model.parameters()).device
        parts = [
            self.model(self.prepared(images[i : i + batch_size]).to(device)).float().softmax(1)
            for i in range(0, len(images), batch_size)
        ]
        return torch.cat(parts).cpu()


def save_classifier(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str],
    image_size: int | tuple[int, int],
    mean: Sequence[float] | NDArray[np.float64],
    std: Sequence[float] | NDArray[np.float64],
    fit: Fit = "exact",
    resize: int | None = None,
) -> None:
    """Write model.safetensors, config.json and labels.json to ``folder``, made if need be.

    The number of channels is that of ``mean``; see :class:`Labels` for the rest.

    Raises:
        ValueError: if a value is out of its range, or the model has another number of classes.
        OSError: if a file cannot be written.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    labels = Labels(
        classes=tuple(classes),
        image_size=sides,
        channels=len(mean),
        mean=tuple(float(x) for x in mean),
        std=tuple(float(x) for x in std),
        fit=fit,
        resize=resize,
    )
    _check_model(model, labels)
    save_model(model, folder)
    atomic_write_json(Path(folder) / LABELS, labels_as_json(labels))


def labels_as_json(labels: Labels) -> dict[str, Any]:
    """Return what stands in labels.json."""
    return {"format": FORMAT, "version": VERSION, **asdict(labels)}


def load_classifier(folder: str | Path) -> Classifier:
    """Build the classifier that :func:`save_classifier` wrote to ``folder``: CPU, evaluation mode.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, of another kind, or they do not fit together.
    """
    folder = Path(folder)
    labels = read_labels(folder)
    model = load_model(folder)
    try:
        _check_model(model, labels)
    except ValueError as error:
        raise ValueError(f"{folder} does not fit together: {error}") from None
    return Classifier(model=model, labels=labels)


def read_labels(folder: Path) -> Labels:
    """Return what labels.json in ``folder`` says.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged or of a newer version.
    """
    path = folder / LABELS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise ValueError(
                f"format and version must be {FORMAT} and {VERSION}, "
                f"got {found['format']} and {found['version']}"
            )
        return Labels(**{f.name: _as_tuple(found[f.name]) for f in fields(Labels)})
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} must hold {LABELS}, found none: is it an image classifier?"
        ) from None
    except KeyError as error:
        raise ValueError(f"{path} must describe a classifier, it lacks {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must describe a classifier: {error}") from None


def _check_numbers(labels: Labels) -> None:
    for name in ("mean", "std"):
        values = getattr(labels, name)
        if len(values) != labels.channels or not np.isfinite(values).all():
            raise ValueError(
                f"{name} must be a finite number for each of {labels.channels} channels, "
                f"got {values}"
            )
    if min(labels.std) <= 0:
        raise ValueError(f"std must be above 0, got {labels.std}")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_model(model: nn.Module, labels: Labels) -> None:
    config: dict[str, Any] = getattr(model, "config", {})
    for name, wanted, what in (
        ("num_classes", len(labels.classes), "classes"),
        ("in_channels", labels.channels, "channels"),
    ):
        if config.get(name, wanted) != wanted:
            raise ValueError(
                f"classes and channels must be those of the model, which has {config[name]} "
                f"{what}, got {wanted}"
            )
    if "num_classes" not in config:
        raise ValueError(f"model must classify images, got {type(model).__name__}")
