"""What stands in the figures of ``subquad explain``."""

import numpy as np
import pytest

from subquad.plots.insight import (
    distance_figure,
    filters_figure,
    heads_figure,
    positions_figure,
    rollout_figure,
)
from subquad.plots.style import png_bytes


def panels(figure):
    """Return the axes that show pictures, without the colour bar."""
    return [axes for axes in figure.axes if axes.images]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def test_each_head_is_a_dot_at_its_layer_and_the_even_one_a_line():
    figure = distance_figure(
        [np.array([1.0, 3.0]), np.array([2.0, np.nan])], uniform=2.5, image_size="8 x 8"
    )
    (axes,) = figure.axes
    dots = [np.asarray(found.get_offsets()) for found in axes.collections]
    np.testing.assert_array_equal(dots[0][:, 1], [1.0, 3.0])
    assert [round(x) for x in dots[1][:, 0]] == [2, 2]
    assert dots[0][0, 0] < dots[0][1, 0]
    (line,) = axes.lines
    assert set(line.get_ydata()) == {2.5}
    assert axes.get_ylabel() == "attention distance, pixels of 8 x 8"
    assert axes.get_ylim()[1] > 3
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_a_layer_whose_heads_have_no_distance_leaves_the_scale_to_the_others():
    figure = distance_figure([np.array([np.nan]), np.array([4.0])], uniform=1.0, image_size="8 x 8")
    assert 4 < figure.axes[0].get_ylim()[1] < 5
    near = distance_figure([np.array([4.0])], uniform=9.0, image_size="8 x 8")
    assert near.axes[0].get_ylim()[1] > 9


def test_the_rollout_lies_where_its_patches_are():
    pictures = np.full((2, 8, 12), 255, np.uint8)
    pictures[1, :, :6] = 0
    rollout = np.repeat(np.array([[[0.7, 0.1, 0.2]] * 2]) / 2, 2, axis=0)
    figure = rollout_figure(pictures, rollout, ["one.png", "two.png\nboot"])
    first, second, tinted, dark = panels(figure)
    assert [axes.get_title() for axes in (first, second)] == ["one.png", "two.png\nboot"]
    np.testing.assert_array_equal(shown(first)[..., 0], pictures[0])
    colors = shown(tinted)
    assert colors.shape == (8, 12, 3)
    red_less_blue = colors[..., 0] - colors[..., 2]
    assert red_less_blue[4, 0] > 0.2  # above an even spread
    assert red_less_blue[4, 5] < -0.2  # below
    assert (np.abs(np.diff(red_less_blue, axis=0)) < 1e-12).all()  # both rows are alike
    np.testing.assert_allclose(shown(dark)[:, :6], 0.5 * colors[:, :6])
    np.testing.assert_array_equal(shown(dark)[:, 6:], colors[:, 6:])
    bar = [axes for axes in figure.axes if not axes.images and axes.get_ylabel()]
    assert "times that of an even spread" in bar[0].get_ylabel()


def test_the_lower_right_of_a_rollout_is_the_lower_right_of_the_picture():
    rollout = np.array([[[0.1, 0.1, 0.1], [0.1, 0.1, 0.5]]])
    figure = rollout_figure(np.full((1, 8, 12), 255, np.uint8), rollout, ["one"])
    colors = shown(panels(figure)[1])
    red = colors[..., 0] - colors[..., 2]
    assert np.unravel_index(red.argmax(), red.shape)[0] >= 4
    assert (red[6:, 10:] > 0.5).all()
    assert (red[:2] < 0).all()
    assert (red[:, :4] < 0).all()


def test_an_even_rollout_and_many_pictures_are_drawn():
    figure = rollout_figure(
        np.zeros((7, 4, 4, 3), np.uint8), np.full((7, 2, 2), 0.25), ["a" * 90] * 7
    )
    assert len(panels(figure)) == 14
    assert len(panels(figure)[0].get_title()) < 30
    png_bytes(figure)


def test_components_are_signed_in_one_channel_and_colours_in_three():
    filters = np.zeros((2, 1, 2, 2))
    filters[0, 0, 0, 1], filters[0, 0, 1, 0] = -2.0, 1.0
    one = panels(filters_figure(filters, np.array([0.755, 0.0321])))
    assert [axes.get_title() for axes in one] == ["1: 76%", "2: 3.2%"]
    np.testing.assert_array_equal(shown(one[0]), filters[0, 0])
    assert one[0].images[0].get_clim() == (-2, 2)
    three = panels(filters_figure(np.repeat(filters, 3, axis=1), np.zeros(2)))
    np.testing.assert_array_equal(shown(three[0])[0, 1], [0, 0, 0])
    np.testing.assert_array_equal(shown(three[0])[1, 0], [0.75, 0.75, 0.75])
    assert (shown(three[1]) == 0.5).all()  # a filter of zeros is grey


def test_a_patchs_similarities_stand_at_its_place():
    similarity = np.random.default_rng(0).random((2, 3, 2, 3))
    figure = positions_figure(similarity)
    (axes,) = panels(figure)
    mosaic = shown(axes)
    assert mosaic.shape == (2 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(mosaic[3:5, 8:11], similarity[1, 2])
    assert np.ma.getmaskarray(axes.images[0].get_array())[2].all()  # the gap
    assert axes.images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]


def test_of_many_patches_every_second_or_third_has_a_grid():
    similarity = np.random.default_rng(0).random((33, 17, 33, 17))
    (axes,) = panels(positions_figure(similarity))
    mosaic = shown(axes)
    assert mosaic.shape == (11 * 34 - 1, 9 * 18 - 1)
    np.testing.assert_array_equal(mosaic[34:67, 18:35], similarity[3, 2])
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["1", "3", "5"]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "31"


def test_names_of_files_are_no_formulas():
    pictures, rollout = np.zeros((1, 4, 4), np.uint8), np.full((1, 2, 2), 0.25)
    png_bytes(rollout_figure(pictures, rollout, [r"$\no_such{$.png"]))


def test_heads_stand_above_by_weights_and_below_by_outputs():
    weights = [np.full((2, 2), 0.1 * layer) for layer in range(8)]
    outputs = [np.full((2, 2), 0.1 * layer + 0.05) for layer in range(8)]
    figure = heads_figure(weights, outputs)
    found = panels(figure)
    assert len(found) == 16
    titles = [axes.get_title() for axes in found if axes.get_title()]
    assert titles == [f"layer {layer}" for layer in range(1, 9)]
    np.testing.assert_array_equal(shown(found[1]), weights[1])
    np.testing.assert_array_equal(shown(found[6]), outputs[0])
    assert all(axes.images[0].get_clim() == (0, 1) for axes in found)
    signed = panels(heads_figure([np.array([[1, -0.5], [-0.5, 1]])], [np.eye(2)]))
    assert signed[0].images[0].get_clim() == (-0.5, 1)


def test_shapes_that_do_not_fit_are_refused():
    grey = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"rollout must have the shape \(B, h, w\) and labels B l"):
        rollout_figure(grey, np.zeros((3, 2, 2)), ["a", "b"])
    with pytest.raises(ValueError, match=r"for 2 pictures, got .* and 1 labels"):
        rollout_figure(grey, np.zeros((2, 2, 2)), ["a"])
    for wrong in (grey.astype(float), np.zeros((2, 4, 4, 2), np.uint8), grey[:0]):
        with pytest.raises(ValueError, match=r"pictures must be uint8 \(B, height, width\), or"):
            rollout_figure(wrong, np.zeros((2, 2, 2)), ["a", "b"])
    with pytest.raises(ValueError, match=r"filters must have the shape \(K, 1, P, P\) or .*2, 2,"):
        filters_figure(np.zeros((1, 2, 2, 2)), np.zeros(1))
    with pytest.raises(ValueError, match=r"with K shares, got .* and 2 shares"):
        filters_figure(np.zeros((1, 1, 2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match=r"similarity must have the shape \(h, w, h, w\), got \(2"):
        positions_figure(np.zeros((2, 3, 3, 2)))
    with pytest.raises(ValueError, match="as many layers, got 1 and 2"):
        heads_figure([np.eye(2)], [np.eye(2)] * 2)
