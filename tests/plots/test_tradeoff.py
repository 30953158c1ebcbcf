import itertools

from matplotlib.text import Text

from subquad.plots import Point, png_bytes, tradeoff_figure

PANELS = {
    "copy": [Point(label="0 %", x=10.0, y=0.5), Point(label="100 %", x=40.0, y=0.1)],
    "recall": [],
}
LABELS = {"copy": "share wrong", "recall": "nats"}


def test_every_point_stands_in_its_panel_under_its_name():
    figure = tradeoff_figure(PANELS, xlabel="bytes", ylabels=LABELS)
    copy, recall = figure.axes
    assert (copy.get_title(), recall.get_title()) == ("copy", "recall")
    assert (copy.get_ylabel(), recall.get_ylabel()) == ("share wrong", "nats")
    (line,) = copy.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10, 40], [0.5, 0.1])
    assert [text.get_text() for text in copy.texts] == ["0 %", "100 %"]
    assert [text.get_text() for text in recall.texts] == ["no row of it ended"]
    assert not len(recall.get_xticks())
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_points_are_joined_only_when_asked():
    for joined in (True, False):
        figure = tradeoff_figure(PANELS, xlabel="bytes", ylabels=LABELS, joined=joined)
        assert (figure.axes[0].lines[0].get_linewidth() > 0) == joined


CROWDED = [
    # Names of the networks that lambda-compare has, at about their places.
    ("convolution", 4.2, 83.9), ("squeeze-excitation", 4.25, 82.9), ("linear attention", 4.25, 77),
    ("local attention", 5.4, 81.9), ("axial attention", 6.3, 81.6), ("LCC", 6.9, 81.8),
    ("CCL", 6.8, 84.4), ("global attention", 8.3, 80.4), ("CLL", 12.8, 85.1), ("LLC", 12.9, 84.3),
    ("lambda u4 r7", 15.2, 85.0), ("lambda", 15.5, 84.6),
]  # fmt: skip


def test_names_cover_neither_each_other_nor_a_point_and_stay_within_the_axes():
    points = [Point(label=label, x=x, y=y) for label, x, y in CROWDED]
    figure = tradeoff_figure({"a": points}, xlabel="millions", ylabels={"a": "share right"})
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(points)
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)
    for x, y in axes.transData.transform([(point.x, point.y) for point in points]):
        assert not any(box.contains(x, y) for box in boxes)
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1


def test_a_name_far_from_its_point_has_a_line_to_it():
    points = [Point(label=f"number {i}", x=1.0, y=1 + 1e-6 * i) for i in range(12)]
    points += [Point(label="corner", x=0.0, y=0.0)]
    figure = tradeoff_figure({"a": points}, xlabel="x", ylabels={"a": "y"})
    far = [text for text in figure.axes[0].texts if abs(text.get_position()[1]) > 12]
    assert far
    for text in figure.axes[0].texts:
        assert (text.arrow_patch is not None) == (text in far)
