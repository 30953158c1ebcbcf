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
