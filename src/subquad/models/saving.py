"""Models as folders: model.safetensors beside config.json, nothing pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from subquad.files import atomic_write_bytes, atomic_write_json
from subquad.models.encoder_decoder import EncoderDecoder
from subquad.models.lambda_resnet import LambdaResNet
from subquad.models.language_model import DecoderLM, EncoderLM
from subquad.models.pixel_model import PixelModel
from subquad.models.small_resnet import SmallResNet
from subquad.models.vision_transformer import VisionTransformer
from subquad.ops.checks import check_choice

MODELS: dict[str, type[nn.Module]] = {
    model.__name__: model
    for model in (
        PixelModel,
        DecoderLM,
        EncoderLM,
        EncoderDecoder,
        LambdaResNet,
        VisionTransformer,
        SmallResNet,
    )
}


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Write ``model`` to ``folder``, made if need be, each file whole or not at all.

    Raises:
        OSError: if a file cannot be written.
        ValueError: if the model is not one of ours, or its mixer is a factory and has no name.
    """
    folder, name = Path(folder), type(model).__name__
    if MODELS.get(name) is not type(model):
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name}")
    arguments: dict[str, Any] = model.config  # type: ignore[assignment]
    for part, table in (("mixer", "MIXERS"), ("cross", "CROSS_MIXERS")):
        given = arguments.get(part)
        if callable(given) or (isinstance(given, list | tuple) and any(map(callable, given))):
            raise ValueError(
                f"model can be saved only if its {part} is a name in {table}, got {given!r}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: x.detach().contiguous() for key, x in model.state_dict().items()}
    atomic_write_bytes(folder / "model.safetensors", save(tensors))
    atomic_write_json(folder / "config.json", {"model": name, "arguments": arguments})


def load_model(folder: str | Path) -> nn.Module:
    """Build the model that ``save_model`` wrote to ``folder``: CPU, float32, eval mode.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or of another model than it says.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} must hold {name}, found none")
    try:
        config = json.loads((folder / "config.json").read_text())
        name, arguments = config["model"], dict(config["arguments"])
        check_choice("model", name, tuple(MODELS))
        kind = MODELS[name]
        with torch.device("meta"):
            model = kind(**arguments)
    except KeyError as error:
        raise ValueError(
            f"{folder / 'config.json'} must describe a model, it lacks {error}"
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} must describe a model: {error}") from error
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    _check_tensors(model, tensors, folder / "model.safetensors")
    model = kind(**arguments)
    model.load_state_dict(tensors)
    return model.eval()


def _check_tensors(model: nn.Module, found: dict[str, torch.Tensor], path: Path) -> None:
    expected = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    faults = [f"lacks {key}" for key in sorted(expected.keys() - found.keys())]
    faults += [f"has the unknown {key}" for key in sorted(found.keys() - expected.keys())]
    faults += [
        f"has {key} of shape {tuple(found[key].shape)} in place of {shape}"
        for key, shape in expected.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    if faults:
        raise ValueError(f"{path} is of another model: it {'; it '.join(faults)}")
