"""Layers over images, timed in turn and measured alone. No test here asserts a time."""

import dataclasses
import json

import pytest
import torch

from helpers import assert_near
from subquad.bench import image_layers
from subquad.bench.image_layers import (
    ALL,
    BOTH,
    FORWARD,
    LAYERS,
    STACKS,
    LayerSizes,
    build_layer,
    embedding_bytes,
    expected_bytes,
    form_taken,
    layer_pass,
    layer_peaks,
)
from subquad.experiments import lambda_memory_run as run_module
from subquad.experiments.lambda_memory import EXPERIMENT, PAPER, preset
from subquad.experiments.lambda_memory_run import estimate_lambda_memory, within_limit
from subquad.experiments.lambda_memory_tables import (
    growth,
    memory_by_the_image,
    memory_tables,
    memory_verdicts,
)
from subquad.experiments.runner import run_experiment

SMOKE = preset("smoke", "linear")
SIZES = LayerSizes(channels=16, attention_heads=2, head_dim=4, threads=1)
MB = 10**6


def run(folder, options=SMOKE):
    return run_experiment(EXPERIMENT, options, folder, command=["subquad"], say=str)


def row(layer, side, median=1.0, which=BOTH, **more):
    return {
        "layer": layer, "side": side, "batch_size": 2, "pass": which, "median": median,
        "q25": median, "q75": median, "count": 7, "images_per_second": 2 / median,
        "form": None, "embedding_bytes": 0, **more,
    }  # fmt: skip


def test_the_experiment_has_a_row_for_each_layer_side_and_pass(tmp_path):
    results = run(tmp_path / "run")
    rows = {(r["layer"], r["side"], r["pass"]) for r in results["layers"]}
    assert rows == {
        *((name, side, which) for name in LAYERS for side in (4, 6) for which in (FORWARD, BOTH)),
        *((name, 4, which) for name in STACKS for which in (FORWARD, BOTH)),
    }
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    page = (tmp_path / "run" / "report.html").read_text()
    for words in ("b l h n sqrt(n)", "beside the paper", "1,160", "0.63"):
        assert words in page
    assert page.count("data:image/png;base64,") == 1


@pytest.mark.parametrize("name", ALL)
def test_every_layer_keeps_the_shape_and_both_passes_run(name):
    layer = build_layer(name, SIZES, 6)
    x = torch.randn(2, 16, 6, 6)
    assert layer(x).shape == x.shape
    assert layer_pass(name, SIZES, 6, 2, FORWARD)().shape == x.shape
    gradients = layer_pass(name, SIZES, 6, 2, BOTH)()
    assert [g.shape for g in gradients[1:]] == [p.shape for p in layer.parameters()]
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_sharing_changes_who_holds_the_embeddings_and_not_the_result():
    built = build_layer("three lambdas, einsum, shared embeddings", SIZES, 5).double()
    plain = build_layer("three lambdas, shared embeddings", SIZES, 5).double()
    plain.load_state_dict(
        {name.removeprefix("layers."): x for name, x in built.state_dict().items()}
    )
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    assert_near(built(x), plain(x), 1e-10)
    assert len([p for n, p in built.named_parameters() if n.endswith("table")]) == 1
    gradients = [torch.autograd.grad(m(x).square().sum(), list(m.parameters()))
                 for m in (built, plain)]  # fmt: skip
    assert_near(*gradients, 1e-9)


def test_embeddings_are_counted_once_where_they_are_shared():
    own, shared = (embedding_bytes(name, SIZES, 5) for name in list(STACKS)[:2])
    assert (own, shared) == (3 * 4 * 4 * 81, 4 * 4 * 81)
    assert embedding_bytes("lambda, half of k", SIZES, 5) == 2 * 4 * 81
    assert embedding_bytes("lambda 7 x 7", SIZES, 5) == 4 * 4 * 49
    assert embedding_bytes("global attention", SIZES, 5) == 0


def test_the_form_that_auto_takes_is_told_by_shape():
    assert form_taken("lambda", SIZES, 4, 2) == "rows"
    assert form_taken("lambda", SIZES, 64, 2) == "fft"
    assert form_taken("three lambdas", SIZES, 64, 2) == "fft"
    assert form_taken("lambda, einsum", SIZES, 64, 2) is None
    assert form_taken("axial attention", SIZES, 64, 2) is None


def test_peaks_are_measured_and_stay_below_what_is_expected():
    name = "lambda, einsum"
    found = list(layer_peaks(name, SIZES, [(16, 1), (24, 2)], (FORWARD, BOTH)))
    assert [(x["side"], x["batch_size"], x["pass"]) for x in found] == [
        (16, 1, FORWARD), (16, 1, BOTH), (24, 2, FORWARD), (24, 2, BOTH),
    ]  # fmt: skip
    pairs = 4 * 24**4 * SIZES.head_dim  # E alone
    assert pairs <= found[-1]["peak_bytes"] <= expected_bytes(name, SIZES, 24, 2) + 3 * MB


def test_what_needs_too_much_is_never_run(tmp_path, monkeypatch):
    def expected(name, sizes, side, batch_size):
        return 10**10 if (name, side) == ("global attention", 6) else 10**6

    monkeypatch.setattr(run_module, "expected_bytes", expected)
    results = run(tmp_path / "run")
    assert not [r for r in results["layers"] if (r["layer"], r["side"]) == ("global attention", 6)]
    assert (
        "Left out: global attention at 6 x 6: expected to need 10.0 GB, more than 6."
        in results["notes"]
    )


def test_the_laptop_leaves_out_what_a_laptop_cannot_hold():
    laptop, left_out = preset("laptop", "linear"), []
    kept = {side: within_limit(laptop, side, left_out) for side in laptop.sides_named}
    assert set(kept[56]) == set(ALL)
    assert "global attention" in kept[64]
    assert {"global attention", "lambda, einsum"}.isdisjoint(kept[128])
    assert {"lambda", "lambda, FFT", "lambda 7 x 7", "linear attention"} <= set(kept[256])
    assert all(x["expected_bytes"] > 6e9 for x in left_out)


def test_expectations_grow_as_the_papers_space_does():
    def ratio(name):
        return expected_bytes(name, SIZES, 256, 2) / expected_bytes(name, SIZES, 128, 2)

    assert 15 < ratio("global attention") < 16.1
    assert 15 < ratio("lambda, einsum") < 16.1
    assert 6 < ratio("axial attention") < 8
    assert ratio("lambda") < 4.1


def test_a_layer_that_fails_is_left_out(tmp_path, monkeypatch):
    class Fails(torch.nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise RuntimeError("out of memory")
            return x

    monkeypatch.setitem(image_layers.ALL, "linear attention", lambda sizes, side: Fails())
    results = run(tmp_path / "run")
    assert [(x["layer"], x["side"], x["pass"], x["reason"]) for x in results["left_out"]] == [
        ("linear attention", side, BOTH, "cannot run: out of memory") for side in (4, 6)
    ]
    rows = {(r["layer"], r["pass"]) for r in results["layers"]}
    assert {("linear attention", FORWARD), ("lambda", BOTH)} <= rows


def test_a_peak_that_was_not_measured_is_said(tmp_path, monkeypatch):
    def killed(name, sizes, cells, passes):
        side, batch = cells[0]
        yield {"side": side, "batch_size": batch, "pass": FORWARD, "peak_bytes": 1}

    monkeypatch.setattr(run_module, "layer_peaks", killed)
    results = run(tmp_path / "run", dataclasses.replace(SMOKE, has_memory=True))
    assert (
        "Left out: lambda at 6 x 6, forward and backward: its memory could not be measured."
        in results["notes"]
    )


def test_memory_is_split_into_what_is_fixed_and_what_an_image_adds():
    rows = [row("lambda, einsum", 56, peak_bytes=500 * MB, peak_bytes_of_half=450 * MB)]
    found = memory_by_the_image(rows, "lambda, einsum", 56, 2)
    assert found == {"fixed": 400 * MB, "an_image": 50 * MB,
                     "of_paper_batch": 3 * (400 + 128 * 50) * MB}  # fmt: skip
    rows = [row("three lambdas", 56, peak_bytes=500 * MB, peak_bytes_of_half=450 * MB)]
    found = memory_by_the_image(rows, "three lambdas", 56, 2)
    assert found["of_paper_batch"] == (400 + 128 * 50) * MB
    assert memory_by_the_image([row("lambda", 56)], "lambda", 56, 2) is None


def test_growth_is_a_slope_over_tokens_from_the_base_side_on():
    rows = [row("lambda", side, side**3.0, peak_bytes=side**2) for side in (8, 16, 32)]
    rows[0]["median"] = 1e9  # below the base side, where overheads rule
    (found,) = growth(rows, 16)
    assert found["layer"] == "lambda"
    assert found["median"] == pytest.approx(1.5)
    assert found["peak_bytes"] == pytest.approx(1.0)
    assert growth(rows[:2], 16) == []


def split(of_paper_batch, fixed=100.0, an_image=1.0):
    return {"fixed": fixed, "an_image": an_image, "of_paper_batch": of_paper_batch}


def test_verdicts_follow_the_numbers():
    order = {
        "global attention": split(9e9), "axial attention": split(8e9, 10, 3),
        "lambda, einsum": split(7e9), "lambda, half of k, einsum": split(6e9),
        "three lambdas, einsum, shared embeddings": split(5e9),
    }  # fmt: skip
    held, crossing = memory_verdicts([], order, [], 56, 2)
    assert held.endswith("The order is the same here.")
    assert "from 45 images on" in crossing
    order["axial attention"] = split(1e9, 10, 0.5)
    other, crossing = memory_verdicts([], order, [], 56, 2)
    assert other.endswith("The order is another one here.")
    assert "more memory than axial attention at any number" in crossing
    rows = [
        row("lambda, einsum", 56, 2.0, peak_bytes=100), row("lambda", 56, peak_bytes=5, form="fft"),
        row("lambda", 56, 1.0, FORWARD), row("axial attention", 56, 3.0, FORWARD),
        row("three lambdas, einsum", 56, peak_bytes=6 * MB, embedding_bytes=3000),
        row("three lambdas, einsum, shared embeddings", 56, peak_bytes=2 * MB,
            embedding_bytes=1000),
    ]  # fmt: skip
    forms, sharing, rates = memory_verdicts(rows, {}, [], 56, 2)
    assert forms == (
        "AUTO takes the form fft at 56 x 56: 0.050 of the memory and 0.50 of the time of the "
        "einsum form."
    )
    assert "by a factor of 3.00 (the paper 3, of embeddings alone), from 6 MB to 2 MB" in sharing
    assert "embeddings from 3 kB to 1 kB" in sharing
    assert "lambda over axial attention 3.00 (the paper 1.21)." in rates
    grown = [
        {"layer": "global attention", "points": 2, "median": 2.0, "peak_bytes": 1.9},
        {"layer": "axial attention", "points": 3, "median": 1.5, "peak_bytes": 1.0},
        {"layer": "lambda", "points": 3, "median": 1.1, "peak_bytes": 0.9},
    ]
    (said,) = memory_verdicts([], {}, grown, 56, 2)
    assert "global attention 1.90 (as the paper says)" in said
    assert "axial attention 1.00 (the paper 1.5)" in said
    assert said.endswith("lambda 0.90, in time 1.10.")


def test_the_papers_rows_stand_in_the_table_though_they_were_left_out():
    rows = [row("lambda", 56), row("lambda", 64)]
    first, second = memory_tables(rows, {}, [], 56)
    named = {line[0]: line for line in first["lines"]}
    assert set(named) == {*PAPER, "lambda"}
    assert named["global attention"][-4:] == ["b l h n^2", "120"] + 2 * ["\N{EN DASH}"]
    assert all(len(line) == len(first["head"]) for line in first["lines"])
    assert [line[0] for line in second["lines"]] == ["lambda"]


def test_the_estimate_names_the_limit():
    cost = estimate_lambda_memory(preset("laptop", "linear"))
    assert cost["memory_gb"] == 6.0
    assert 4 < cost["minutes"] < 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": "6,4"}, "sides must be rising whole numbers of at least 4 with commas"),
        ({"sides": "2,4"}, "sides must be rising whole numbers of at least 4 with commas"),
        ({"base_side": 5}, "base_side must be among the sides 4,6, got 5"),
        ({"heads": 3}, r"heads must divide channels \(16\), got 3"),
        ({"attention_heads": 16}, r"channels must be an even multiple of attention_heads \(16\)"),
        ({"head_dim": 1}, "head_dim must be at least 2, got 1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"limit": 0.0}, "limit must be above 0, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = dataclasses.replace(SMOKE, device="cuda")
    with pytest.raises(ValueError, match="device must be cpu where torch can use no GPU, got cuda"):
        run_module.run_lambda_memory(options, tmp_path, str)
