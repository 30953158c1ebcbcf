from subquad.plots import png_bytes
from subquad.plots.lambda_measures import accuracy_figure, cost_figure, growth_figure

BOTH = "forward and backward"


def network(label, kind, seconds, **paper):
    times = {"median": seconds, "q25": seconds, "q75": 2 * seconds}
    return {"label": label, "kind": kind, "multiply_adds": 10**9, "paper": paper,
            "training": times, "inference": times}  # fmt: skip


def test_cost_has_a_panel_for_each_pass_and_a_mark_for_each_kind():
    rows = [network(kind, kind, 3.0) for kind in ("ResNet", "ResNet + SE", "LambdaResNet")]
    del rows[1]["training"]
    figure = cost_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["training", "inference"]
    assert [len(axes.containers) for axes in figure.axes] == [2, 3]
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert cost_figure([]).axes[0].get_legend() is None


def test_accuracies_stand_over_the_papers_seconds_and_ours():
    rows = [
        network("EfficientNet-B0", "EfficientNet", 5.0, training_seconds=0.09, accuracy=77.1),
        network("LambdaResNet-50@128", "LambdaResNet", 4.0, training_seconds=0.06, accuracy=77.4),
        network("ResNet 50", "ResNet", 4.0),
    ]
    figure = accuracy_figure(rows)
    lines = [{line.get_label(): list(line.get_xdata()) for line in a.lines} for a in figure.axes]
    assert lines == [
        {"EfficientNet": [0.09], "LambdaResNet": [0.06]},
        *2 * [{"EfficientNet": [5.0], "LambdaResNet": [4.0]}],
    ]
    assert [text.get_text() for text in figure.axes[1].texts] == ["B0", "50@128"]


def test_growth_shows_what_was_left_out_as_expected():
    rows = [
        {"layer": layer, "side": side, "pass": which, "median": 0.1, "peak_bytes": side * 10**6}
        for layer in ("lambda", "global attention")
        for side in (16, 32)
        for which in ("forward", BOTH)
    ]
    rows.append({"layer": "three lambdas", "side": 32, "pass": BOTH, "median": 0.1})
    left_out = [
        {"layer": "global attention", "side": 128, "expected_bytes": 10**10, "reason": ""},
        {"layer": "global attention", "side": 64, "expected_bytes": 10**9, "reason": ""},
    ]
    memory, time = growth_figure(rows, left_out, limit=6e9).axes
    named = {line.get_label(): line for line in memory.lines if line.get_label()[0] != "_"}
    assert set(named) == {"lambda", "global attention"}  # no line through a single point
    assert list(named["lambda"].get_ydata()) == [16.0, 32.0]
    dotted = [line for line in memory.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in dotted] == [[32, 64]]
    assert list(dotted[0].get_ydata()) == [32.0, 1000.0]
    assert list(memory.lines[-1].get_ydata()) == [6000.0, 6000.0]
    assert list(time.lines[0].get_ydata()) == [100.0, 100.0]


def test_growth_without_memory_has_the_panel_of_times_alone():
    rows = [{"layer": "lambda", "side": side, "pass": BOTH, "median": 0.1} for side in (4, 8)]
    (axes,) = growth_figure(rows, [], limit=1e9).axes
    assert axes.get_ylabel() == "milliseconds"
