"""How training images are varied: shifts, mirror images, random crops, RandAugment.

All of it is a function of the images and of the generator given; torch's, numpy's and Python's
global generators are left as they were.

Sources: Szegedy et al. 2015 (random resized crops); Cubuk et al. 2020, "RandAugment", done by
kornia, whose table of operations is used.
"""

import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MAX_MAGNITUDE = 30
ASPECTS = (3 / 4, 4 / 3)  # width over height of a crop, before it is stretched to a square
CROP_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied; in this order.

    Args:
        crop: of each image a random part, its sides in a proportion from 3:4 to 4:3, is resized to
            a square of this many pixels a side.
        crop_area: the least and the largest share of the image that such a part takes up.
        shift: each is moved by up to so many pixels, down and across; zeros (in bytes) come in.
        mirror: half of them are mirrored, left and right. Not for digits or letters.
        rand_augment: so many operations, drawn anew for each image, at this magnitude of 30. For
            images of three channels. Takes about a millisecond an image.

    Raises:
        ValueError: if a number is out of its range.
        ModuleNotFoundError: if a package that an option needs is not installed.
    """

    shift: int = 0
    mirror: bool = False
    crop: int | None = None
    crop_area: tuple[float, float] = (0.08, 1.0)
    rand_augment: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, got {self.shift}")
        if self.crop is not None:
            if self.crop < 1:
                raise ValueError(f"crop must be at least 1, got {self.crop}")
            _needs("PIL", "Pillow", "crop")
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_area must be two shares above 0 and up to 1, the smaller first, "
                f"got {low:g} and {high:g}"
            )
        if self.rand_augment is not None:
            number, magnitude = self.rand_augment
            if not 1 <= number <= 15 or not 0 < magnitude < MAX_MAGNITUDE:
                raise ValueError(
                    "rand_augment must be a number of operations from 1 to 15 and a magnitude "
                    f"from 1 to {MAX_MAGNITUDE - 1}, got {number} and {magnitude}"
                )
            _needs("kornia", "kornia", "rand_augment", "; it takes Python 3.11 or later")

    def check_images(self, shape: tuple[int, ...]) -> None:
        """Refuse images (H, W, C) that cannot be varied so.

        Raises:
            ValueError: if they cannot.
        """
        if self.rand_augment is not None and shape[2] != 3:
            raise ValueError(f"rand_augment must be left out unless C = 3, got C = {shape[2]}")
        if self.crop is not None:
            if shape[2] not in (1, 3):
                raise ValueError(f"crop must be left out unless C is 1 or 3, got C = {shape[2]}")
            if self.crop > min(shape[:2]):
                raise ValueError(
                    f"crop must be at most the images' shorter side {min(shape[:2])}, "
                    f"got {self.crop}"
                )

    def as_json(self) -> dict[str, Any]:
        """Return the options as JSON values; those that came later only where they are used."""
        values = asdict(self)
        if self.crop is None:
            del values["crop"], values["crop_area"]
        if self.rand_augment is None:
            del values["rand_augment"]
        return values

    def __call__(self, images: Bytes, rng: np.random.Generator) -> Bytes:
        """Return varied copies of images (N, H, W, C)."""
        if self.crop is not None:
            images = _cropped(images, rng, self.crop, self.crop_area)
        if self.shift:
            images = _shifted(images, rng, self.shift)
        if self.mirror:
            mirrored = rng.random((len(images), 1, 1, 1)) < 0.5
            images = np.where(mirrored, images[:, :, ::-1], images)
        if self.rand_augment is not None:
            images = _rand_augmented(images, rng, *self.rand_augment)
        return images


def middle(images: Bytes, side: int) -> Bytes:
    """Return the middle squares of ``side`` pixels of images (N, H, W, C), H and W no smaller."""
    top, left = ((size - side) // 2 for size in images.shape[1:3])
    return images[:, top : top + side, left : left + side]


def _shifted(images: Bytes, rng: np.random.Generator, pad: int) -> Bytes:
    count, height, width = images.shape[:3]
    room = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    down, across = rng.integers(0, 2 * pad + 1, (2, count))
    return np.stack(
        [
            image[y : y + height, x : x + width]
            for image, y, x in zip(room, down, across, strict=True)
        ]
    )


def _cropped(
    images: Bytes, rng: np.random.Generator, side: int, area: tuple[float, float]
) -> Bytes:
    from PIL import Image

    height, width, channels = images.shape[1:]
    cut = np.empty((len(images), side, side, channels), np.uint8)
    for image, out in zip(images, cut, strict=True):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        box = _box(height, width, rng, area)
        resized = picture.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        out[:] = np.asarray(resized).reshape(out.shape)
    return cut


def _box(
    height: int, width: int, rng: np.random.Generator, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return a random part of an image: left, top, right, bottom."""
    low, high = (math.log(a) for a in ASPECTS)
    for _ in range(CROP_TRIES):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(low, high))
        across, down = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = (int(rng.integers(room + 1)) for room in (width - across, height - down))
            return left, top, left + across, top + down
    side = min(height, width)  # no part of that size and proportion lies inside
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _rand_augmented(images: Bytes, rng: np.random.Generator, number: int, magnitude: int) -> Bytes:
    import torch

    augment = _rand_augment(number, magnitude)
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    # kornia draws from torch's global generator. The GPUs' generators are not touched.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(int(rng.integers(2**62)))
        # One by one: a batch would share its operations.
        varied = torch.cat([augment(image[None]) for image in x])
    found: Bytes = (varied * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return found


@cache
def _rand_augment(number: int, magnitude: int) -> Any:
    from kornia.augmentation.auto import RandAugment

    return RandAugment(n=number, m=magnitude, transformation_matrix_mode="skip")


def _needs(module: str, package: str, option: str, more: str = "") -> None:
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{option} needs the package {package}, which comes with "
            f"pip install 'subquad[images]'{more}",
            name=package,
        )
