from subquad.plots import png_bytes
from subquad.plots.performer import depth_figure, output_error_figure, speed_figure


def test_figure_4_has_a_line_and_a_band_for_each_kind():
    rows = [
        {"kind": f"{d} {e}", "estimator": e, "directions": d, "num_features": n, "median": 1 / n,
         "low": 0.5 / n, "high": 2 / n}
        for d in ("iid", "orthogonal")
        for e in ("positive", "trigonometric")
        for n in (8, 16)
    ]  # fmt: skip
    figure = output_error_figure(rows)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == [
        "iid positive", "iid trigonometric", "orthogonal positive", "orthogonal trigonometric",
    ]  # fmt: skip
    assert list(axes.lines[0].get_ydata()) == [1 / 8, 1 / 16]
    assert len(axes.collections) == 4
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_figure_14_has_a_line_for_each_number_of_features():
    rows = [
        {"num_features": n, "layer": layer, "error": layer / n, "low": 0.0, "high": 1.0}
        for n in (8, 16)
        for layer in (1, 2, 3)
    ]
    (axes,) = depth_figure(rows).axes
    assert [line.get_label() for line in axes.lines] == ["8 features", "16 features"]
    assert list(axes.lines[1].get_ydata()) == [1 / 16, 2 / 16, 3 / 16]


def test_figure_3_has_a_panel_for_each_pass_and_leaves_gaps():
    rows = [
        {"kind": kind, "pass": which, "seq_len": n, "median": 1.0, "q25": 0.9, "q75": 1.1}
        for kind in ("softmax", "performer", "values only")
        for which in ("forward", "forward and backward")
        for n in (16, 32)
        if (kind, n) != ("softmax", 32)
    ]
    figure = speed_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["forward", "forward and backward"]
    lengths = {line.get_label(): list(line.get_xdata()) for line in figure.axes[1].lines}
    assert lengths == {"softmax": [16], "performer": [16, 32], "values only": [16, 32]}
