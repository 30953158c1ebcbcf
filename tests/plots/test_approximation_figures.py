from subquad.plots import png_bytes
from subquad.plots.approximation import approximation_figure


def row(kind, count, error, *, iid=1.0, output=True):
    directions, estimator = kind.split()
    found = {"kind": kind, "estimator": estimator, "directions": directions, "num_features": count}
    found["kernel"] = {"error": error, "iid_variance": iid}
    found["weights"] = {"error": error}
    return found | ({"output": {"error": error}} if output else {})


def test_a_panel_each_with_its_lines_and_what_overflowed_left_out():
    rows = [row("iid positive", 4, 1.0), row("iid positive", 8, None, iid=None),
            row("orthogonal trigonometric", 4, 90.0)]  # fmt: skip
    figure = approximation_figure({"rows": rows})
    assert [axes.get_title() for axes in figure.axes] == [
        "kernel, not divided", "attention weights", "output",
    ]  # fmt: skip
    drawn = [line for line in figure.axes[1].lines if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in drawn] == [[4], [4]]
    assert figure.axes[0].get_ylim()[1] == 5
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["positive", "trigonometric", "iid", "orthogonal", "Lemma 2, iid"]
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_without_values_there_are_two_panels():
    figure = approximation_figure({"rows": [row("iid positive", 4, 1.0, output=False)]})
    assert len(figure.axes) == 2
