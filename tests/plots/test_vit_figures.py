"""The figures of the Vision Transformer's experiments hold the numbers that they were given."""

import pytest

from subquad.plots import png_bytes
from subquad.plots.vit import confusion_figure, data_size_figure, resolution_figure

PNG = b"\x89PNG"


def test_confusion_shows_shares_of_each_class():
    figure = confusion_figure([[9, 1], [0, 300]], ("cat", "dog"))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["90", "10", "100"]
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0, 1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert png_bytes(figure).startswith(PNG)


def test_resolution_has_a_line_a_mixer_in_three_panels():
    times = [
        {"mixer": name, "patches": n, "seconds_per_image": n / 100, "peak_bytes_per_image": 8.0 * n}
        for name in ("softmax", "linear")
        for n in (49, 4)
    ]
    times.append({"mixer": "linear", "patches": 196, "seconds_per_image": 3.0})  # no memory
    rows = [{"mixer": "linear", "patches": 4, "test_accuracy": 0.5},
            {"mixer": "softmax", "patches": 4}]  # fmt: skip
    figure = resolution_figure(times, rows)
    time, memory, accuracy = figure.axes
    softmax, linear = time.lines
    assert softmax.get_xdata().tolist() == [4, 49]
    assert linear.get_ydata().tolist() == pytest.approx([40, 490, 3000])  # milliseconds
    assert memory.lines[1].get_xdata().tolist() == [4, 49]
    assert accuracy.lines[1].get_ydata().tolist() == [50.0]
    assert len(accuracy.lines[0].get_xdata()) == 0  # its row did not end
    assert softmax.get_color() != linear.get_color()
    assert png_bytes(figure).startswith(PNG)


def test_data_size_has_a_solid_and_a_dashed_line_a_network():
    rows = [
        {"network": name, "train_images": n, "scrambled": mixed, "test_accuracy": 0.1 + 0.2 * mixed}
        for name in ("vit", "mlp")
        for mixed in (False, True)
        for n in (5000, 1000)
    ]
    figure = data_size_figure(rows, {"vit": "ViT", "mlp": "plain layers"})
    (axes,) = figure.axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-", "--"]
    assert axes.lines[1].get_xdata().tolist() == [1000, 5000]
    assert [round(y) for y in axes.lines[1].get_ydata()] == [30, 30]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["ViT", "plain layers", "pixels in order", "pixels scrambled"]
    assert png_bytes(figure).startswith(PNG)
