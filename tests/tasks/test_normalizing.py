import numpy as np
import pytest
from numpy.testing import assert_allclose

from subquad.tasks import normalizing
from subquad.tasks.normalizing import normalization_of, normalized

IMAGES = np.random.default_rng(0).integers(0, 200, (9, 4, 5, 3)).astype(np.uint8)


def test_measured_is_mean_and_deviation(monkeypatch):
    monkeypatch.setattr(normalizing, "CHUNK", 2)
    mean, std = normalization_of(IMAGES, "data")
    assert_allclose(mean, IMAGES.mean((0, 1, 2)) / 255, rtol=1e-13)
    assert_allclose(std, IMAGES.std((0, 1, 2)) / 255, rtol=1e-13)
    x = normalized(IMAGES, mean, std)
    assert x.shape == (9, 3, 4, 5)
    assert_allclose(x.double().mean((0, 2, 3)), 0, atol=1e-6)
    assert_allclose(x.double().std((0, 2, 3), correction=0), 1, rtol=1e-6)


def test_one_value_has_no_deviation_and_stays_finite():
    mean, std = normalization_of(np.full((2, 3, 3, 1), 7, np.uint8), "data")
    assert_allclose(mean, 7 / 255)
    assert std == [normalizing.LEAST_STD]


def test_named_ones():
    x = normalized(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1), *half(1))
    assert x.flatten().tolist() == [-1, 1]
    mean, std = normalization_of(IMAGES, "imagenet")
    assert mean.tolist() == [0.485, 0.456, 0.406]
    assert std.tolist() == [0.229, 0.224, 0.225]
    with pytest.raises(ValueError, match="normalization 'imagenet' needs C = 3, got C = 1"):
        normalization_of(IMAGES[..., :1], "imagenet")


def test_an_unknown_name_is_refused(unhooked):
    with pytest.raises(ValueError, match="normalization must be one of"):
        normalization_of.__wrapped__(IMAGES, "none")


def half(channels):
    return normalization_of(np.zeros((1, 1, 1, channels), np.uint8), "half")
