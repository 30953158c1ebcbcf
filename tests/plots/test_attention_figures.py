import numpy as np
import pytest

from subquad.plots import attention_figure, picture_attention_figure, png_bytes


def maps(figure):
    """Return the axes that show a map or a picture, without the colour bar."""
    return [axes for axes in figure.axes if axes.images]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


@pytest.fixture
def weights():
    found = np.random.default_rng(0).random((3, 2, 9))
    return found / found.sum(-1, keepdims=True)


def test_every_head_has_a_map_of_its_rows(weights):
    figure = attention_figure(weights, [4, 7])
    panels = maps(figure)
    assert [axes.get_title() for axes in panels] == ["head 1", "head 2", "head 3"]
    for axes, expected in zip(panels, weights, strict=True):
        np.testing.assert_array_equal(shown(axes), expected)
    ticks = {label.get_text() for label in panels[0].get_yticklabels()}
    assert ticks == {"4", "7"}
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_five_heads_take_two_lines_and_one_row_is_enough():
    panels = maps(attention_figure(np.ones((5, 1, 4)), [2]))
    assert len(panels) == 5
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["2"]


def test_one_scale_serves_all_heads_and_white_is_zero(weights):
    for axes in maps(attention_figure(weights, [0, 1])):
        assert axes.images[0].get_clim() == (0.0, weights.max())
    signed = weights.copy()
    signed[1, 0, 0] = -2.0
    for axes in maps(attention_figure(signed, [0, 1])):
        assert axes.images[0].get_clim() == (-2.0, 2.0)


def test_weights_lie_on_the_pixels_they_belong_to():
    picture = np.arange(24, dtype=np.uint8).reshape(3, 4, 2)
    weights = np.zeros((1, 2, 23))
    weights[0, 0, 9] = 0.5  # of 24 bytes: line 1, pixel 0, second colour
    weights[0, 0, 8] = 0.25  # the same pixel's first colour
    weights[0, 1, 22] = 1.0  # the last pixel
    figure = picture_attention_figure(weights, [10, 22], picture=picture)
    panels = maps(figure)
    assert len(panels) == 4
    first, second = shown(panels[1]), shown(panels[3])
    assert first.shape == (3, 4)
    assert first[1, 0] == 0.75
    assert first.sum() == 0.75
    assert second[2, 3] == 1.0
    (cross,) = panels[1].lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (1, 1)  # byte 10 is pixel 5
    np.testing.assert_array_equal(shown(panels[0]), picture[..., 0])


@pytest.mark.parametrize(
    ("shape", "rows", "message"),
    [
        ((2, 9), [0, 1], r"weights must have the shape \(H, R, T\), got \(2, 9\)"),
        ((1, 0, 9), [], r"weights must have the shape \(H, R, T\), got \(1, 0, 9\)"),
        ((1, 2, 9), [0], "rows must name 2 tokens, got 1"),
        ((1, 2, 9), [0, 9], "rows must lie from 0 to 8, got 9"),
        ((1, 2, 9), [-1, 0], "rows must lie from 0 to 8, got -1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, rows, message):
    with pytest.raises(ValueError, match=message):
        attention_figure(np.zeros(shape), rows)
    with pytest.raises(ValueError, match=message):
        picture_attention_figure(np.zeros(shape), rows, picture=np.zeros((3, 3, 1), np.uint8))


@pytest.mark.parametrize(
    "picture", [np.zeros((2, 4, 1), np.uint8), np.zeros((3, 3, 1)), np.zeros((3, 3), np.uint8)]
)
def test_a_picture_that_does_not_fit_is_refused(picture, weights):
    with pytest.raises(ValueError, match=r"at least as many bytes as tokens \(9\), got"):
        picture_attention_figure(weights, [0, 1], picture=picture)
