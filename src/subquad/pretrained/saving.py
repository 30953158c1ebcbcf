"""Swapped models as folders: config.json, model.safetensors, subquad.json; nothing pickled."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import AutoConfig, PreTrainedModel

from subquad.files import atomic_path, atomic_write_bytes, atomic_write_json
from subquad.layers.drawn_features import Kernel
from subquad.ops.generalized_features import KERNEL_FUNCTIONS, GeneralizedKernel
from subquad.ops.random_features import Estimator, SoftmaxKernel
from subquad.pretrained.swapping import swap
from subquad.pretrained.weights import no_progress_bar

FORMAT = "subquad-pretrained"
FILE = "subquad.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "tokenizer.model", "added_tokens.json",
)  # fmt: skip

# What a kernel is called in a file and at the command line.
KERNELS: dict[str, Kernel] = {
    "positive": SoftmaxKernel(),
    "hyperbolic": SoftmaxKernel(estimator=Estimator.HYPERBOLIC),
    "trigonometric": SoftmaxKernel(estimator=Estimator.TRIGONOMETRIC),
    "regularized": SoftmaxKernel(regularized=True),
    **{
        name: GeneralizedKernel(function=function)
        for name, function in KERNEL_FUNCTIONS.items()
        if function.nonnegative
    },
}


@dataclass(frozen=True, kw_only=True)
class SwapOptions:
    """The arguments of ``swap``, as JSON has them; ``kernel`` is a name in ``KERNELS``."""

    mixer: Literal["performer", "linear"] = "performer"
    kernel: str = "positive"
    num_features: int | None = None
    seed: int = 0
    redraw_every: int | None = None
    max_per_feature: bool = False
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.kernel not in tuple(KERNELS):  # a tuple: JSON may give what has no hash
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if not isinstance(self.seed, int):
            raise TypeError(f"seed must be an int, got {self.seed!r}")

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Swap the attention of ``model``, its dropout set to 0; see ``swap``."""
        options = dataclasses.asdict(self)
        name = options.pop("kernel")
        kernel = KERNELS[name] if self.mixer == "performer" else None
        return swap(model, kernel=kernel, attention_dropout=0.0, **options)


def save_converted(
    model: PreTrainedModel,
    folder: str | Path,
    options: SwapOptions,
    *,
    tokenizer_from: Path | None = None,
) -> None:
    """Write a model that ``options`` swapped to ``folder``, made if need be, subquad.json last.

    Args:
        model: after ``options.apply``, trained or not.
        folder: where; earlier files of the same names are replaced.
        options: how the attention was swapped.
        tokenizer_from: a folder whose tokenizer is copied.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)  # a folder without it is no whole model
    with atomic_path(folder / "model.safetensors") as path:
        save_model(model, str(path), metadata={"format": "pt"})
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    atomic_write_json(folder / "config.json", config)
    for name in TOKENIZER_FILES if tokenizer_from is not None else ():
        assert tokenizer_from is not None
        if (tokenizer_from / name).is_file() and tokenizer_from.resolve() != folder.resolve():
            atomic_write_bytes(folder / name, (tokenizer_from / name).read_bytes())
    described = {
        "format": FORMAT,
        "model": type(model).__name__,
        "swap": dataclasses.asdict(options),
    }
    atomic_write_json(folder / FILE, described)


def load_converted(folder: str | Path) -> PreTrainedModel:
    """Build the model that ``save_converted`` wrote to ``folder``: on the CPU, in evaluation mode.

    Its weights have the precision that they were saved in.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or of another model than it says.
    """
    folder = Path(folder)
    for name in (FILE, "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} must hold {name}, found none")
    kind, options = _described(folder / FILE)
    model = _build(kind, folder)
    try:
        options.apply(model)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder / FILE} must describe a model: {error}") from error
    try:
        load_model(model, folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is of another model: {error}") from error
    model.train(False)
    return model


def load_folder(folder: Path) -> PreTrainedModel:
    """Return the model in a folder of transformers' layout, by the class that its config names.

    Its weights are made float32, whatever their precision in the folder, as training needs it; none
    of the folder's own code is run.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if the class or the weights cannot be found, or a weight is missing or of
            another shape. A base model's pooler alone may be missing: it is drawn at random.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} must hold config.json, found none")
    name = (_config(folder).architectures or [None])[0]
    found = model_class(name)
    model: PreTrainedModel
    try:
        with no_progress_bar():
            model, loaded = found.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
                output_loading_info=True, ignore_mismatched_sizes=True,  # refused below, by name
            )  # fmt: skip
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} must hold the weights of a {name}: {error}") from error
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"{folder} must hold the weights of a {name}, it lacks {len(missing)}: {missing[0]}"
        )
    for key, in_file, wanted in loaded["mismatched_keys"]:
        raise ValueError(
            f"{folder} must hold the weights of a {name}, {key} of shape {tuple(wanted)}, "
            f"got {tuple(in_file)}"
        )
    model.train(False)
    return model


def model_class(name: Any) -> Any:
    """Return the class of transformers of that name.

    Raises:
        ValueError: if there is none.
    """
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"the model's class must be one of transformers, got {name!r}")
    return found


def _described(path: Path) -> tuple[str, SwapOptions]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError(f"it must be an object, got {described!r}")
        if described["format"] != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}, got {described['format']!r}")
        model_class(described["model"])
        return described["model"], SwapOptions(**described["swap"])
    except KeyError as error:
        raise ValueError(f"{path} must describe a model, it lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must describe a model: {error}") from error


def _build(kind: str, folder: Path) -> PreTrainedModel:
    config = _config(folder)
    try:
        # In the config's precision; the class itself would make float32 of any.
        model: PreTrainedModel = model_class(kind)._from_config(config)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'} must be that of a {kind}: {error}") from error
    return model


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{folder / 'config.json'} must be of a model of transformers: {error}"
        ) from error
