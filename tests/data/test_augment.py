import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from subquad.data import augment
from subquad.data.augment import Augmentation, middle

PHOTO = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)
NEEDS_KORNIA = pytest.mark.skipif(find_spec("kornia") is None, reason="needs Python 3.11")
EVERYTHING = {"shift": 2, "mirror": True, "crop": 16, "rand_augment": (2, 9)}


def varied(seed=0, images=PHOTO, **options):
    return Augmentation(**options)(images, np.random.default_rng(seed))


@NEEDS_KORNIA
@pytest.mark.parametrize("options", [{"crop": 16}, {"rand_augment": (2, 9)}, EVERYTHING])
def test_the_same_generator_gives_the_same_images_and_no_other_is_touched(options):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002  (the global generator is what must not change)
    torch.manual_seed(5)
    first = varied(**options)
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    np.testing.assert_array_equal(varied(**options), first)
    assert (varied(1, **options) != first).any()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    assert first.dtype == np.uint8
    side = options.get("crop")
    assert first.shape[1:] == ((side, side, 3) if side else PHOTO.shape[1:])


def test_a_crop_is_a_part_of_the_image_resized(monkeypatch):
    boxes = []
    box = augment._box
    monkeypatch.setattr(augment, "_box", lambda *a: boxes.append(box(*a)) or boxes[-1])
    found = varied(crop=9)
    for image, (left, top, right, bottom), out in zip(PHOTO, boxes, found, strict=True):
        part = Image.fromarray(image[top:bottom, left:right])
        expected = np.asarray(part.resize((9, 9), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(out, expected)
    grey = varied(images=PHOTO[..., :1], crop=9)
    assert grey.shape == (6, 9, 9, 1)


def test_crops_keep_to_area_and_proportion():
    rng = np.random.default_rng(0)
    boxes = [augment._box(200, 300, rng, (0.1, 0.5)) for _ in range(500)]
    sides = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes])
    shares = sides.prod(1) / 60_000
    assert 0.095 < shares.min() < 0.13
    assert 0.45 < shares.max() < 0.505
    aspects = sides[:, 0] / sides[:, 1]
    assert 0.74 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.35
    assert all(0 <= b[0] < b[2] <= 300 and 0 <= b[1] < b[3] <= 200 for b in boxes)
    assert augment._box(10, 90, rng, (1.0, 1.0)) == (40, 0, 50, 10)  # no part is all of it


@NEEDS_KORNIA
def test_rand_augment_draws_operations_for_each_image():
    same = np.repeat(PHOTO[:1], 12, 0)
    found = varied(images=same, rand_augment=(1, 20))
    assert len({image.tobytes() for image in found}) > 4


@NEEDS_KORNIA
def test_rand_augment_is_kornias():
    from kornia.augmentation.auto import RandAugment

    seed = int(np.random.default_rng(3).integers(2**62))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        operations = RandAugment(n=2, m=9)
        x = torch.from_numpy(PHOTO).permute(0, 3, 1, 2).float() / 255
        expected = torch.cat([operations(image[None]) for image in x])
    found = torch.from_numpy(varied(3, rand_augment=(2, 9))).permute(0, 3, 1, 2) / 255
    assert (found - expected).abs().max() <= 0.51 / 255


def test_the_middle():
    np.testing.assert_array_equal(middle(PHOTO, 7), PHOTO[:, 6:13, 8:15])


@NEEDS_KORNIA
def test_options_that_came_later_are_written_only_where_they_are_used():
    assert Augmentation(shift=1).as_json() == {"shift": 1, "mirror": False}
    assert set(Augmentation(**EVERYTHING).as_json()) == {*EVERYTHING, "crop_area"}


@NEEDS_KORNIA
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "crop must be at least 1, got 0"),
        ({"crop_area": (0.5, 0.1)}, "crop_area must be two shares .*, got 0.5 and 0.1"),
        ({"crop_area": (0.0, 1.0)}, "crop_area must be two shares .*, got 0 and 1"),
        ({"rand_augment": (0, 9)}, "rand_augment must be a number of operations .* got 0 and 9"),
        ({"rand_augment": (2, 30)}, "rand_augment must be a number of operations .* got 2 and 30"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@NEEDS_KORNIA
@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"rand_augment": (2, 9)}, (8, 8, 1), "rand_augment must be left out unless C = 3, got C"),
        ({"crop": 4}, (8, 8, 2), "crop must be left out unless C is 1 or 3, got C = 2"),
        ({"crop": 9}, (8, 20, 3), "crop must be at most the images' shorter side 8, got 9"),
    ],
)
def test_images_that_do_not_fit_are_refused(options, shape, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options).check_images(shape)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(augment, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package kornia.*Python 3\.11"):
        Augmentation(rand_augment=(2, 9))
    with pytest.raises(ModuleNotFoundError, match="crop needs the package Pillow"):
        Augmentation(crop=4)
