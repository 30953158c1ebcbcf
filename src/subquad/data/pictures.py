"""Picture files to bytes: any format that Pillow reads, each odd kind by a rule of its own.

- The turn that a camera noted (EXIF) is carried out.
- Of animations and files of several pages the first picture is taken.
- What is see-through is laid on white.
- Palettes become colours. Sixteen bits of grey become eight, rounded; of sixteen bits of colour
  Pillow keeps the upper eight. Whole numbers above 65535 and floating-point pixels are refused:
  nothing says what is white.
- A picture of more than 89 million pixels is refused: unpacked it could take all memory.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]

GREY_MODES = {"1", "L", "LA", "La", "I", "F"}  # and those that begin with I;16
# What Pillow's readers raise on damaged files.
DAMAGED = (
    OSError,
    SyntaxError,
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


def read_picture(path: Path, *, at_least: int | None = None) -> "Image.Image":
    """Return the picture in a file, upright, whole in memory, in mode L (grey) or RGB.

    Args:
        path: the file.
        at_least: JPEG files may be read smaller than they are, faster, as long as both sides keep
            so many pixels.

    Raises:
        ValueError: if the file is no picture, damaged, cut off or too large.
        ModuleNotFoundError: if Pillow is not installed.
    """
    need_pillow()
    with bombs_refused():
        return open_picture(path, at_least=at_least)


def open_picture(path: Path, *, at_least: int | None = None) -> "Image.Image":
    """Do as :func:`read_picture` says, under :func:`bombs_refused`, in any thread."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not path.is_file():  # a pipe would wait for ever
            raise ValueError("is missing or no file")
        if not path.stat().st_size:
            raise ValueError("is empty")
        with Image.open(path) as picture:
            if at_least is not None:
                picture.draft(None, (at_least, at_least))
            picture.load()
            return _plain(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        reason = "is in no format that Pillow knows"
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"{path} cannot be read as a picture: {reason}")


def channels_of(picture: "Image.Image") -> int:
    """Return 1 for a grey picture, 3 for one in colours."""
    return 1 if picture.mode == "L" else 3


def as_bytes(picture: "Image.Image", channels: int) -> Bytes:
    """Return a picture of mode L or RGB as (H, W, channels).

    Grey in three channels is three times the same; colours in one are their brightness (0.299 red +
    0.587 green + 0.114 blue).
    """
    found = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return found.reshape(*found.shape[:2], channels)


def square(picture: "Image.Image", side: int) -> "Image.Image":
    """Return the picture shrunk or enlarged to ``side`` pixels on its shorter side, its middle."""
    from PIL import Image

    short = min(picture.size)
    left, top = ((size - short) / 2 for size in picture.size)
    # The filter sees the pixels beside the middle too: as if all were resized and then cut.
    box = (left, top, left + short, top + short)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Let pictures of too many pixels be errors; Pillow only warns up to twice as many.

    Warnings are set for the whole process: enter it once, before threads start.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it thinks of odd tags
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def need_pillow() -> None:
    """Refuse to go on without Pillow.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise ModuleNotFoundError(
            "reading pictures needs the package Pillow, which comes with "
            "pip install 'subquad[images]'",
            name="Pillow",
        )


def _plain(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    mode = picture.mode
    if mode == "F":
        raise ValueError("holds floating-point pixels")
    if mode == "I" or mode.startswith("I;16"):
        return _from_16_bits(picture)
    grey = mode in GREY_MODES
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture.convert("RGBA"))
        picture = paper
    return picture.convert("L" if grey else "RGB")


def _from_16_bits(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"holds whole numbers from {low} to {high}, expected 0 to 65535")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
