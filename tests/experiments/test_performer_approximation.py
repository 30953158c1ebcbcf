"""The formulas held against draws, and what the experiment leaves in its folder."""

import dataclasses
import json
import math

import pytest
import torch

from subquad.cli import main
from subquad.experiments import performer_approximation_run as run_module
from subquad.experiments.performer_approximation import EXPERIMENT, preset
from subquad.experiments.performer_theory import (
    beside,
    check_equation_8,
    check_theorem_1,
    check_theorem_2,
    estimates,
    pair,
)
from subquad.experiments.runner import run_experiment
from subquad.ops.random_features import Estimator, RandomFeatures

SMOKE = preset("smoke", "linear")


def test_one_directions_estimates_have_the_features_mean():
    w = torch.randn(5, 16, dtype=torch.float64)
    x, y = pair(0.7, 60)
    for estimator in Estimator:
        features = RandomFeatures(w, estimator)
        expected = float(features(x) @ features(y) / (x @ y).exp())
        assert float(estimates(estimator, w, x, y).mean()) == pytest.approx(expected, rel=1e-12)


def test_equation_8_holds_within_the_noise_of_drawing():
    rows = list(check_equation_8(20_000, seed=1))
    assert {row["estimator"] for row in rows} == {"positive", "hyperbolic", "trigonometric"}
    assert len(rows) == 24
    assert max(abs(row["deviation"]) for row in rows) < 4
    telling = [row for row in rows if row["theory"] > 1e-6]
    assert len(telling) == 18
    assert all(row["standard_error"] < 0.1 * row["theory"] for row in telling)


def test_theorem_1s_series_holds_where_drawing_can_tell():
    rows = [row for row in check_theorem_1(20_000, seed=1) if row["w"] <= 2]
    assert len(rows) == 4
    for row in rows:
        assert abs(row["deviation"]) < 4
        assert row["standard_error"] < 0.05


def test_theorem_2s_bound_holds_and_is_below_iid():
    rows = list(check_theorem_2(8_000, seed=1))
    assert max(row["deviation"] for row in rows) < 3
    assert all(row["theory"] < row["iid"] for row in rows if row["num_directions"] > 1)
    last = [row for row in rows if row["num_directions"] == 16]
    assert all(row["measured"] < row["iid"] for row in last)


def test_a_deviation_is_in_standard_errors():
    found = beside(torch.tensor([1.0, 3.0], dtype=torch.float64), 5.0)
    assert found["measured"] == 2.0
    assert found["standard_error"] == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert found["deviation"] == pytest.approx(-3.0)
    assert beside(torch.zeros(4, dtype=torch.float64), 0.0)["deviation"] == 0.0


def test_orthogonal_and_positive_features_err_less():
    """Figure 4's order, at a size for tests."""
    options = dataclasses.replace(SMOKE, seq_len=256, num_features="16,64", repetitions=3)
    with torch.no_grad():
        rows = [row for r in range(3) for row in run_module.output_errors(options, r)]
    found = {(r["kind"], r["num_features"]): r["median"] for r in run_module.summaries(rows)}
    assert found["orthogonal positive", 64] < found["iid positive", 64]
    assert found["orthogonal positive", 16] < found["orthogonal trigonometric", 16]
    assert found["orthogonal positive", 64] < found["orthogonal positive", 16]


def test_a_copys_error_grows_with_depth_and_falls_with_features(monkeypatch):
    monkeypatch.setattr(run_module, "DEPTH_FEATURES", (16, 1024))
    options = dataclasses.replace(SMOKE, num_layers=4, depth_seq_len=32)
    with torch.no_grad():
        rows = list(run_module.depth_errors(options, 0))
    found = {(row["num_features"], row["layer"]): row["error"] for row in rows}
    assert found[16, 4] > found[16, 1] > found[1024, 1] > 0
    assert found[1024, 4] < found[16, 4]


def test_the_experiment_leaves_tables_figures_and_numbers(tmp_path):
    results = run_experiment(EXPERIMENT, SMOKE, tmp_path / "run", command=["subquad"], say=str)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert all((tmp_path / "run" / file).is_file() for file in results["figures"])
    assert [table["title"].split(":")[0] for table in results["tables"]] == [
        "Figure 4", "Equation 8", "Theorem 1", "Theorem 2", "Figure 14",
    ]  # fmt: skip
    for table in results["tables"]:
        assert {len(line) for line in table["lines"]} == {len(table["head"])}
        assert all(isinstance(cell, str) for line in table["lines"] for cell in line)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    for table in results["tables"]:
        assert table["title"] in page
        assert table["lines"][0][-1] in page


def test_the_command_line_shows_the_tables_and_an_estimate(tmp_path, capsys, monkeypatch):
    words = ["run", "performer-approximation", "--scale", "smoke", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(run_module, "DEPTH_FEATURES", (16,))
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in ("performer-approximation, all, smoke scale", "Theorem 2", "report.html"):
        assert part in text
    assert main([*words, "--estimate"]) == 0
    assert "minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": "8,x"}, "num_features must be rising whole numbers of at least 2 with"),
        ({"num_features": "8,4"}, "num_features must be rising whole numbers of at least 2 with"),
        ({"num_features": "4,7"}, "num_features must be even, got '4,7'"),
        ({"repetitions": 1}, "repetitions must be at least 2, got 1"),
        ({"draws": 99}, "draws must be at least 100, got 99"),
        ({"norm": 0.0}, "norm must be above 0, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)
