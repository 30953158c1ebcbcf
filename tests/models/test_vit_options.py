"""What a Vision Transformer refuses: images, options and changes that do not fit."""

import pytest
import torch

from vit_cases import SIDES, images, small


def test_images_that_do_not_fit_are_refused(unhooked):
    model = small()
    for wrong in (images(2, 1, *SIDES), images(3, *SIDES), images(0, 3, *SIDES)):
        with pytest.raises(ValueError, match=r"x must have the shape \(B, 3, H, W\), got \("):
            model(wrong)
    with pytest.raises(TypeError, match=r"x must be of a floating dtype, got torch\.uint8"):
        model(torch.zeros(1, 3, *SIDES, dtype=torch.uint8))
    message = r"sides of images must be multiples of patch_size \(4\), got 8 x 13"
    with pytest.raises(ValueError, match=message):
        model(images(1, 3, 8, 13))
    with pytest.raises(ValueError, match=message):
        model.forward_packed([images(3, 8, 13)])
    with pytest.raises(ValueError, match=r"images\[1\] must have the shape \(3, H, W\), got"):
        model.forward_packed([images(3, 8, 8), images(1, 8, 8)])
    with pytest.raises(ValueError, match="images must hold at least one, got none"):
        model.forward_packed([])
    with pytest.raises(ValueError, match=r"patches must have the shape \(B, 6, 16\), got"):
        model.encode(images(1, 5, 16))
    with pytest.raises(ValueError, match=r"patches must have the shape \(B, 6, 16\), got \(0, 6"):
        model.encode(images(0, 6, 16))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": 10}, ValueError, r"multiples of patch_size \(4\), got 10 x 10"),
        ({"image_size": (8, 8, 8)}, ValueError, "image_size must be a side, or height and width"),
        ({"image_size": 8.0}, TypeError, "image_size must be an int or a sequence, got float 8.0"),
        ({"image_size": (8, 8.0)}, TypeError, "image_size must be an int, got float 8.0"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_heads": 3}, ValueError, r"num_heads must divide d_model \(16\)"),
        ({"mixer": "sofmax"}, ValueError, "mixer must be one of softmax, .* got 'sofmax'"),
        ({"mixer": ["softmax"]}, ValueError, "one for each of 2 layers, got 1"),
        ({"pooling": "max"}, ValueError, "pooling must be one of class, mean, sequence; got 'max'"),
        ({"positions": "2d"}, ValueError, "positions must be one of none, .* got '2d'"),
        (
            {"position_place": "end"},
            ValueError,
            "position_place must be one of stem, layers",
        ),
        ({"stem": "r51"}, ValueError, "stem must be one of patch, conv, .* got 'r51'"),
        (
            {"activation": "relu"},
            ValueError,
            "activation must be one of gelu, .* got 'relu'",
        ),
        ({"norm_eps": 0.0}, ValueError, "norm_eps must be a finite number above 0, got 0.0"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, ValueError, "drop_path must be at least 0 and below 1, got -0.1"),
        ({"resampling": "cubic"}, ValueError, "resampling must be one of zoom, .* got 'cubic'"),
        (
            {"positions": "relative", "position_place": "stem"},
            ValueError,
            'position_place must be "layers" with positions="relative", got \'stem\'',
        ),
        (
            {"positions": "relative", "mixer": ["softmax", "lsh-4"]},
            ValueError,
            'positions="relative" needs a mixer with the option relative_len, got LSHAttention',
        ),
        (
            {"attention_dropout": 0.1, "mixer": "linear"},
            ValueError,
            "attention_dropout needs a mixer with the option attention_dropout, got Linear",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message, unhooked):
    with pytest.raises(error, match=message):
        small(**options)


def test_changes_that_do_not_fit_leave_the_model_as_it_is(unhooked):
    model, x = small(), images(1, 3, *SIDES)
    before, config = model(x), dict(model.config)
    for size in (10, (8, 0), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"sides of images|image_size must be"):
            model.resample(size)
    with pytest.raises(ValueError, match=r"method must be one of zoom, .* got 'nearest'"):
        model.resample(16, "nearest")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        model.reset_head(0)
    assert torch.equal(model(x), before)
    assert model.config == config
