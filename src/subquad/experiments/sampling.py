"""Draw and complete images with a trained model, and measure how fast it draws."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subquad.data.image_set import Labels
from subquad.experiments.checkpoints import image_shape
from subquad.experiments.image_data import load_images
from subquad.experiments.run_folder import find_run
from subquad.models.pixel_model import PixelModel
from subquad.models.saving import load_model
from subquad.ops.state import state_size_bytes
from subquad.tasks.config import Device

Progress = Callable[[int, int], None]
Images = NDArray[np.uint8]


def pick_device(device: Device) -> torch.device:
    """Return the device meant.

    Raises:
        ValueError: if a GPU is asked for that torch cannot use.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device must be auto or cpu on this machine, got cuda: torch sees no GPU")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def load_pixel_model(folder: Path, device: Device) -> PixelModel:
    """Return the trained pixel model of ``folder``, ready to generate.

    Raises:
        ValueError: if the folder holds another kind of model.
    """
    model = load_model(folder)
    if not isinstance(model, PixelModel):
        raise ValueError(
            f"{folder} must hold a PixelModel to draw images, got a {type(model).__name__}"
        )
    return model.to(pick_device(device)).eval()


def draw(
    model: PixelModel,
    count: int,
    *,
    seed: int,
    temperature: float = 1.0,
    label: int | None = None,
    max_batch: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """Draw ``count`` images, (count, H, W, C); with ``label`` all of that class."""
    pixels = model.generate(
        count,
        labels=_labels(model, count, label),
        temperature=temperature,
        seed=seed,
        max_batch=max_batch,
        progress=progress,
    )
    return to_images(pixels)


def complete(
    model: PixelModel,
    originals: Images,
    *,
    seed: int,
    temperature: float = 1.0,
    labels: Labels | None = None,
    max_batch: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """Keep the upper half of each image and draw the rest."""
    pixels = torch.from_numpy(np.ascontiguousarray(originals)).flatten(1)
    given = given_rows(originals) * originals.shape[2] * originals.shape[3]
    device = next(model.parameters()).device
    known = None
    if model.num_classes is not None and labels is not None:
        known = torch.from_numpy(labels).long().to(device)
    completed = model.generate(
        len(originals),
        prefix=pixels[:, :given].long().to(device),
        labels=known,
        temperature=temperature,
        seed=seed,
        max_batch=max_batch,
        progress=progress,
    )
    return to_images(completed)


def given_rows(originals: Images) -> int:
    """Return how many rows of each image are given when it is completed: the upper half."""
    return int(originals.shape[1]) // 2


def to_images(pixels: Tensor) -> Images:
    """Return (B, L) bytes as (B, H, W, C)."""
    array: Images = pixels.cpu().numpy()
    return array.reshape(len(array), *image_shape(array.shape[1]))


def timed_draw(model: PixelModel, count: int, *, seed: int) -> tuple[Images, float]:
    """Draw ``count`` images and return them with the seconds it took."""
    device = next(model.parameters()).device
    _finish(device)
    start = time.perf_counter()
    images = draw(model, count, seed=seed)
    _finish(device)
    return images, time.perf_counter() - start


@torch.inference_mode()
def state_bytes(model: PixelModel) -> int:
    """Return the bytes that the decoding state of one image takes at the image's full length.

    It is the mixers' part; the position that all models carry besides is one integer.
    """
    weight = next(model.parameters())
    tokens = weight.new_zeros(1, model.seq_len, model.decoder.token_width)
    _, state = model.decoder.prefill(tokens, model.init_state(1))
    return state_size_bytes(state.mixers)


def test_images(model_folder: Path, seq_len: int) -> tuple[Images, Labels, str]:
    """Return test images for a model to complete, their labels, and a line on their source.

    A run names its data set; for other models it is MNIST, or its embedded part where that is all
    there is, and the line then says so.
    """
    shape, note = image_shape(seq_len), ""
    run = find_run(model_folder.parent)
    if run is not None:
        options = run["options"]
        folder = Path(options["data_folder"]) if options.get("data_folder") else None
        found = load_images(options["data"], folder, half_size=options["half_size"])
    else:
        half = shape[0] == 14
        try:
            found = load_images("mnist", None, half_size=half)
        except FileNotFoundError:
            found = load_images("embedded-mnist", None, half_size=half)
            note = " (MNIST is not here; subquad data mnist brings it)"
    if found.test.shape[1:] != shape:
        raise ValueError(f"the test images must have shape {shape}, got {found.test.shape[1:]}")
    return found.test, found.test_labels, f"test images: {found.source}{note}"


def _labels(model: PixelModel, count: int, label: int | None) -> Tensor | None:
    if label is None and model.num_classes is not None:
        classes = torch.arange(count) % model.num_classes  # all classes in turn
    elif label is None:
        return None
    else:
        if model.num_classes is None:
            raise ValueError(f"label must be left out for a model without classes, got {label}")
        if not 0 <= label < model.num_classes:
            raise ValueError(f"label must lie from 0 to {model.num_classes - 1}, got {label}")
        classes = torch.full((count,), label)
    return classes.to(next(model.parameters()).device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
