"""Trained models by name or folder: those of the package, and those of this machine's runs."""

from pathlib import Path

PACKAGED = Path(__file__).resolve().parents[1] / "checkpoints"
WEIGHTS = "model.safetensors"


def packaged_models() -> dict[str, Path]:
    """Return {name: folder} of the trained models that ship with the package."""
    if not PACKAGED.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(PACKAGED.glob(f"*/{WEIGHTS}"))}


def find_model(name: str) -> Path:
    """Return the folder of a model's weights, for a run's folder or for a packaged model's name.

    Raises:
        FileNotFoundError: if there is neither.
    """
    folder = Path(name)
    for candidate in (folder / "model", folder):
        if (candidate / WEIGHTS).is_file():
            return candidate
    packaged = packaged_models()
    if name in packaged:
        return packaged[name]
    known = f"; packaged are {', '.join(packaged)}" if packaged else ""
    if folder.is_dir():
        raise FileNotFoundError(f"{folder} holds no trained model: is its run finished?")
    raise FileNotFoundError(f"{name} is neither the folder of a run nor a packaged model{known}")


def image_shape(seq_len: int) -> tuple[int, int, int]:
    """Return (height, width, channels) of the square images that have ``seq_len`` bytes.

    Raises:
        ValueError: if no square image has as many.
    """
    for channels in (1, 3):
        side = round((seq_len / channels) ** 0.5)
        if side * side * channels == seq_len:
            return side, side, channels
    raise ValueError(f"seq_len must be that of a square image with 1 or 3 channels, got {seq_len}")
