import inspect

import numpy as np
import pytest

from subquad.data.images import ImageSet, downsample2x2


def parts(**changes):
    arrays = {
        "train": np.zeros((3, 4, 4, 1), np.uint8),
        "train_labels": np.zeros(3, np.uint8),
        "test": np.zeros((2, 4, 4, 1), np.uint8),
        "test_labels": np.zeros(2, np.uint8),
    }
    return {"source": "made up", **arrays, **changes}


def test_what_fits_together_is_taken():
    assert ImageSet(**parts()).train.shape == (3, 4, 4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_labels": np.zeros(4, np.uint8)},
            "train and train_labels must be equally many, got 3 images and 4 labels",
        ),
        ({"test": np.zeros((2, 4, 4), np.uint8)}, "test must have 4 axes, got shape"),
        ({"test_labels": np.zeros((2, 1), np.uint8)}, "test_labels must have 1 axes"),
        ({"test": np.zeros((2, 5, 4, 1), np.uint8)}, "train and test must hold images of one"),
        (
            {"test": np.zeros((0, 4, 4, 1), np.uint8), "test_labels": np.zeros(0, np.uint8)},
            "test must hold at least one image, got none",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(**parts(**change))


def test_only_bytes_are_images():
    # Under the import hook the annotation speaks first, so the check is called underneath it.
    check = inspect.unwrap(ImageSet.__post_init__)
    bad = object.__new__(ImageSet)
    for name, value in parts(train=np.zeros((3, 4, 4, 1))).items():
        object.__setattr__(bad, name, value)
    with pytest.raises(TypeError, match=r"train must hold bytes \(uint8\), got float64"):
        check(bad)
    with pytest.raises(TypeError, match=r"images must hold bytes \(uint8\), got float64"):
        inspect.unwrap(downsample2x2)(np.zeros((1, 2, 2, 1)))


def test_downsampling_is_the_rounded_mean():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    images[0, :2, :2] = 255  # the sum must not wrap around
    means = images.reshape(5, 3, 2, 4, 2, 3).astype(np.float64).mean(axis=(2, 4))
    small = downsample2x2(images)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.floor(means + 0.5))
    assert small[0, 0, 0].tolist() == [255, 255, 255]


def test_odd_sizes_are_not_cut():
    with pytest.raises(ValueError, match="even height and width, got 3 x 4"):
        downsample2x2(np.zeros((1, 3, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="even height and width, got 4 x 5"):
        downsample2x2(np.zeros((1, 4, 5, 1), np.uint8))
    with pytest.raises(ValueError, match="images must have 4 axes"):
        downsample2x2(np.zeros((1, 4, 4), np.uint8))
