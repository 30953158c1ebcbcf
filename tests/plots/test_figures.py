import io

import matplotlib as mpl
import numpy as np
import pytest

from subquad.plots import (
    Curve,
    completion_figure,
    learning_curves,
    png_bytes,
    read_curve,
    sample_figure,
)
from subquad.plots.style import CYCLE, line_colors

PNG = b"\x89PNG\r\n\x1a\n"


def pixels(figure):
    return mpl.image.imread(io.BytesIO(png_bytes(figure)))


@pytest.fixture
def digits():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 6, 6, 1), (7, 4, 4, 3)])
def test_samples_of_any_kind_become_a_png(shape):
    figure = sample_figure(np.zeros(shape, np.uint8))
    assert png_bytes(figure).startswith(PNG)


def test_every_image_stands_in_its_own_tile(digits):
    (axes,) = sample_figure(digits).axes
    grid = np.asarray(axes.images[0].get_array())
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 4, 3)
    np.testing.assert_array_equal(grid[:6, 8:14, 0], digits[1, :, :, 0])
    np.testing.assert_array_equal(grid[8:, 8:14, 2], digits[4, :, :, 0])
    assert (grid[8:, 16:] == 255).all()  # no sixth image


def test_completions_show_given_completed_and_original_in_rows(digits):
    completed = digits.copy()
    completed[:, 3:] = 7
    figure = completion_figure(digits, completed, given_rows=3)
    given, middle, original = (np.asarray(a.images[0].get_array()) for a in figure.axes)
    assert [a.get_ylabel() for a in figure.axes] == ["given", "completed", "original"]
    np.testing.assert_array_equal(given[:3], original[:3])
    assert len(np.unique(given[3:, :6].reshape(-1, 3), axis=0)) == 1  # hidden: one tint
    assert (middle[3:, :6] == 7).all()
    np.testing.assert_array_equal(original[:, :6, 0], digits[0, :, :, 0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), "N >= 1"),
        (np.zeros((2, 4, 4)), "must be uint8"),
        (np.zeros((2, 4), np.uint8), "must be uint8 of shape"),
        (np.zeros((2, 4, 4, 2), np.uint8), "1 or 3 channels, got 2"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        sample_figure(images)


def test_completions_must_fit_together(digits):
    with pytest.raises(ValueError, match="one shape"):
        completion_figure(digits, digits[:2], given_rows=3)
    with pytest.raises(ValueError, match="between 1 and 5, got 6"):
        completion_figure(digits, digits, given_rows=6)


def test_a_curve_is_read_from_a_metrics_file(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,samples,seconds,train,test\n0,0,0.0,,3.5\n10,80,60.0,2.0,\n20,160,90,1,2\n"
    )
    curve = read_curve(file, "linear")
    assert curve.train == [(10, 1.0, 2.0), (20, 1.5, 1.0)]
    assert curve.test == [(0, 0.0, 3.5), (20, 1.5, 2.0)]


def test_a_file_that_is_no_metrics_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="lacks seconds, test, train"):
        read_curve(tmp_path / "metrics.csv", "linear")


@pytest.mark.parametrize("log_scale", [False, True])
def test_several_curves_share_one_figure(log_scale):
    curves = [
        Curve(label=label, train=[(1.0, 0.1, 3.0), (2.0, 0.2, 2.0)], test=[(2.0, 0.2, 2.5)])
        for label in ("linear", "softmax")
    ]
    figure = learning_curves(curves, unit="bits/dim", log_scale=log_scale)
    steps, minutes = figure.axes
    assert steps.get_ylabel() == "bits/dim"
    assert steps.get_yscale() == ("log" if log_scale else "linear")
    assert minutes.get_xlabel() == "minutes of training"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "linear (test)",
        "softmax (test)",
    ]
    assert png_bytes(figure).startswith(PNG)
    below = legend.get_window_extent()
    assert all(not below.overlaps(axes.get_tightbbox()) for axes in figure.axes)


@pytest.mark.parametrize(("count", "length"), [(24, 54), (10, 38), (4, 34), (12, 9), (1, 200)])
def test_a_legend_below_stays_within_the_figure(count, length):
    labels = [f"{i:0{length}d}"[:110] for i in range(count)]
    curves = [Curve(label=label, train=[], test=[(1.0, 1.0, 1.0)]) for label in labels]
    figure = learning_curves(curves, unit="nats")
    png_bytes(figure)
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert all(axes.get_window_extent().height > 200 for axes in figure.axes)


@pytest.mark.parametrize("strange", [0.0, float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("others", [[], [1.5]])
@pytest.mark.parametrize("log_scale", [False, True])
def test_losses_without_a_place_on_the_axis_are_left_out(strange, others, log_scale):
    points = [(float(i), 0.1, value) for i, value in enumerate([strange, *others])]
    curve = Curve(label="x", train=points, test=points)
    assert png_bytes(learning_curves([curve], unit="nats", log_scale=log_scale)).startswith(PNG)


def test_a_run_that_recorded_nothing_yet_still_gives_a_figure():
    assert png_bytes(learning_curves([Curve(label="x", train=[], test=[])], unit="nats"))


def test_figures_are_mostly_light(digits):
    assert pixels(sample_figure(digits)).mean() > 0.2


def test_every_line_has_a_color_of_its_own():
    names = ["relu", "softmax", "favor+", "linear", "elu+1"]
    colors = line_colors(names)
    assert len(set(colors.values())) == len(names)
    assert colors["softmax"] == line_colors(["softmax"])["softmax"]
    assert line_colors(["a", "b"], {"b": CYCLE[0]}) == {"a": CYCLE[1], "b": CYCLE[0]}
    many = line_colors([str(i) for i in range(30)])
    assert len(many) == 30
