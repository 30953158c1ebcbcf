"""The classes of patches' colours, by hand."""

import numpy as np
import pytest

from subquad.data.image_set import ImageSet
from subquad.tasks.patch_colours import mean_colours, patches_of, small_patches, unseen_colours


def test_patches_are_in_raster_order():
    image = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    found = patches_of(image, 2)
    assert found.shape == (1, 6, 2, 2, 1)
    np.testing.assert_array_equal(found[0, 0, :, :, 0], [[0, 1], [6, 7]])
    np.testing.assert_array_equal(found[0, 2, :, :, 0], [[4, 5], [10, 11]])
    np.testing.assert_array_equal(found[0, 3, :, :, 0], [[12, 13], [18, 19]])


def test_mean_colours_by_hand():
    # Means 31.75, 32 and 255 have the levels 0, 1 and 7; in this order 0 * 64 + 1 * 8 + 7.
    patch = np.zeros((1, 1, 2, 2, 3), np.uint8)
    patch[..., 0] = [[32, 32], [32, 31]]
    patch[..., 1] = [[0, 0], [0, 128]]
    patch[..., 2] = 255
    assert mean_colours(patch).tolist() == [[15]]
    grey = np.array([0, 31, 32, 127, 128, 223, 224, 255], np.uint8)
    found = mean_colours(np.tile(grey.reshape(1, 8, 1, 1, 1), (1, 1, 3, 3, 1)))
    assert found.tolist() == [[0, 0, 1, 3, 4, 6, 7, 7]]
    assert mean_colours(np.full((1, 1, 16, 16, 3), 255, np.uint8)).tolist() == [[511]]


def test_small_patches_by_hand():
    # Sixteen squares of four pixels; square k has three pixels of 16 k and one of 16 k + 3.
    patch = np.zeros((1, 1, 8, 8, 1), np.uint8)
    for k in range(16):
        y, x = 2 * (k // 4), 2 * (k % 4)
        patch[0, 0, y : y + 2, x : x + 2, 0] = 16 * k
        patch[0, 0, y, x, 0] += 3
    assert small_patches(patch).tolist() == [[[k // 2 for k in range(16)]]]
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 4, 3), np.uint8)
    alone = (colours // 32).astype(int) @ [64, 8, 1]
    np.testing.assert_array_equal(small_patches(colours), alone.reshape(3, 5, 16))


def test_guessing_by_frequency_by_hand():
    # Training patches: classes 0, 0, 0, 7; test patches 0, 7, 7, 7. One more of each of 8 classes:
    # shares 4 / 12 and 2 / 12. Always 0 is right once in four.
    def four(*values):
        image = np.array(values, np.uint8).reshape(2, 2).repeat(2, 0).repeat(2, 1)
        return image[None, ..., None]

    labels = np.zeros(1, np.uint8)
    images = ImageSet(
        train=four(0, 10, 31, 255), train_labels=labels, test=four(1, 255, 230, 224),
        test_labels=labels, source="made up",
    )  # fmt: skip
    found = unseen_colours(images, 2)
    assert found["accuracy"] == 0.25
    assert found["loss"] == pytest.approx((np.log(3) + 3 * np.log(6)) / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: patches_of(x, 3), "side must divide 4 and 6, got 3"),
        (lambda x: patches_of(x, 0), "side must divide 4 and 6, got 0"),
        (
            lambda x: small_patches(patches_of(x, 2)),
            "the side of a patch must be a multiple of 4, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((1, 4, 6, 1), np.uint8))
