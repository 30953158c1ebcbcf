import pytest

from subquad.plots import png_bytes
from subquad.plots.bench import decode_figure, figures, scaling_figure, wall_figure

PNG = b"\x89PNG\r\n\x1a\n"


def attention(*, peak=None, passes=("forward", "forward+backward")):
    names = ("softmax", "linear-torch-32", "linear-torch-64", "linear-cpu", "other")
    rows = [
        {
            "what": {"mechanism": name, "pass": which, "seq_len": n},
            "seconds": {"median": n * (i + 1) / 1e3},
            "more": {} if peak is None else {"peak_bytes_per_sample": peak * n},
        }
        for which in passes
        for n in (512, 1024)
        for i, name in enumerate(names)
    ]
    return {"kind": "attention", "rows": rows, "options": {"batch": 2}}


def test_time_and_memory_stand_side_by_side():
    time, memory = scaling_figure(attention(peak=1e6)).axes
    lines = {line.get_label(): line for line in time.lines}
    assert list(lines) == ["softmax", "linear (torch)", "linear (C++)", "other"]
    # Milliseconds a sample; of the chunk sizes the best.
    assert list(lines["linear (torch)"].get_ydata()) == [512.0, 1024.0]
    assert time.get_ylabel() == "ms a sample, forward+backward"
    assert [a.get_xscale() for a in (time, memory)] == ["log", "log"]
    assert list(memory.lines[0].get_ydata()) == [512.0, 1024.0]
    assert len({line.get_color() for line in time.lines}) == 4


def test_without_memory_there_is_one_panel():
    (time,) = scaling_figure(attention(passes=("forward",))).axes
    assert time.get_ylabel() == "ms a sample, forward"


def test_the_wall_has_straight_axes():
    (axes,) = wall_figure(attention()).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert axes.get_ylim()[0] == 0


def test_softmax_is_continued_by_its_square_where_it_was_not_measured():
    result = attention()
    result["rows"] = [
        row for row in result["rows"] if row["what"] != {
            "mechanism": "softmax", "pass": "forward+backward", "seq_len": 1024}
    ]  # fmt: skip
    (axes,) = wall_figure(result).axes
    measured, dotted = axes.lines[0], axes.lines[-1]
    assert measured.get_label() == "softmax"
    assert list(measured.get_xdata()) == [512.0]
    assert dotted.get_linestyle() == ":"
    assert dotted.get_xdata()[-1] == 1024.0
    assert dotted.get_ydata()[-1] == pytest.approx(4 * measured.get_ydata()[0])
    # As high as the measured times, which the dotted line may leave.
    assert axes.get_ylim()[1] == pytest.approx(1.06 * 1.024 * 5 / 2)
    assert axes.texts[0].get_text().startswith("not measured: T")


def test_a_softmax_that_was_measured_throughout_is_not_continued():
    (axes,) = wall_figure(attention()).axes
    assert len(axes.lines) == 4
    assert {text.get_text() for text in axes.texts} == {
        "softmax", "linear (torch)", "linear (C++)", "other"
    }  # fmt: skip


def decoding():
    rows = [
        {
            "what": {"model": m, "mixer": mixer, "batch": b, "position": p, "part": "step"},
            "seconds": {"median": 0.01},
            "more": {"state_bytes_per_image": 1e6 * p},
        }
        for m in ("mnist", "cifar10")
        for mixer in ("linear", "softmax")
        for b in (1, 64)
        for p in (1, 9)
    ]
    return {"kind": "decode", "rows": rows, "options": {}}


def test_decoding_shows_time_and_state_of_each_model():
    figure = decode_figure(decoding())
    assert len(figure.axes) == 4
    time, state = figure.axes[:2]
    assert [line.get_label() for line in time.lines][:2] == ["linear, batch 1", "linear, batch 64"]
    assert [line.get_label() for line in state.lines] == ["linear", "softmax"]


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (attention(peak=1.0), ["scaling", "wall"]),
        (decoding(), ["steps"]),
        ({"kind": "train", "rows": [], "options": {}}, []),
        ({"kind": "attention", "rows": [], "options": {}}, []),
    ],
)
def test_a_result_gives_the_figures_it_has_data_for(result, names):
    found = figures(result)
    assert list(found) == names
    assert all(png_bytes(figure).startswith(PNG) for figure in found.values())
