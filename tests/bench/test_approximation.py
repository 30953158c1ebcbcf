"""The measured error of random features: estimates beside their definition, sums beside theory."""

import dataclasses
import json

import pytest
import torch

from helpers import assert_near
from subquad.bench import approximation
from subquad.bench.approximation import Approximation, Kind, approximation_report
from subquad.bench.approximation_head import kernel_estimate, normalized, softmax_heads
from subquad.bench.approximation_inputs import checked_tokens, random_tokens
from subquad.bench.approximation_options import (
    DIRECTIONS,
    ESTIMATORS,
    ApproximationOptions,
    RandomInput,
)
from subquad.bench.approximation_tables import Need, approximation_tables, features_needed
from subquad.bench.timing import Progress
from subquad.ops.estimator_theory import regularized_ratio
from subquad.ops.performer_attention import performer_attention
from subquad.ops.softmax_attention import softmax_attention

FEW = ApproximationOptions(num_features=(4, 8), draws=3)
TOKENS = random_tokens(RandomInput(seq_len=9, heads=2, head_dim=4, norm=1.5))
kinds = pytest.mark.parametrize(
    "kind", [Kind(e, d) for e in ESTIMATORS for d in DIRECTIONS], ids=lambda kind: kind.name
)


def draw(kind, count=8, width=4):
    generator = torch.Generator().manual_seed(3)
    return kind.kernel.draw(
        width, kind.num_directions(count), generator=generator, dtype=torch.float64
    )


def report(**options):
    return approximation_report(*TOKENS, options=dataclasses.replace(FEW, **options)).rows


@pytest.mark.parametrize("is_causal", [False, True])
@kinds
def test_estimates_are_products_of_features_and_attention_is_the_operators(kind, is_causal):
    features = draw(kind)
    assert features.num_features(4) == 8
    options = dataclasses.replace(FEW, is_causal=is_causal)
    outputs, exact = [], []
    for head in softmax_heads(*TOKENS, options):
        estimate = kernel_estimate(head, features)
        expected = features(head.x) @ features(head.y).T / head.log_total.exp()
        assert_near(estimate, expected.tril() if is_causal else expected, 1e-12)
        outputs.append(normalized(estimate) @ head.v)
        exact.append(head.p @ head.v)
    q, k, v = TOKENS
    y = performer_attention(q, k, v, features=features, is_causal=is_causal)
    assert_near(torch.stack(outputs), y[0], 1e-9)
    assert_near(torch.stack(exact), softmax_attention(q, k, v, is_causal=is_causal)[0], 1e-12)


def test_a_long_sequence_is_looked_at_in_places():
    (head, _) = softmax_heads(*TOKENS, dataclasses.replace(FEW, max_queries=3, is_causal=True))
    assert head.seen.sum(1).tolist() == [1, 5, 9]
    assert head.p.shape == (3, 9)
    assert approximation_report(*TOKENS, options=FEW).inputs["queries"] == 9


def test_bias_and_variance_are_what_theory_says():
    tokens = random_tokens(RandomInput(seq_len=6, heads=2, head_dim=8, norm=1.2))
    draws = 250
    options = ApproximationOptions(num_features=(4,), draws=draws, directions=("iid", "orthogonal"))
    rows = {
        row["kind"]: row["kernel"] for row in approximation_report(*tokens, options=options).rows
    }
    for estimator in ESTIMATORS:
        iid = rows[f"iid {estimator}"]
        assert iid["variance"] == pytest.approx(iid["iid_variance"], rel=0.2)
        for directions in ("iid", "orthogonal"):
            found = rows[f"{directions} {estimator}"]
            assert abs(found["bias_squared"]) < found["variance"] / draws
    bounded = rows["orthogonal positive"]
    assert bounded["theorem_2"] < bounded["iid_variance"]
    assert bounded["variance"] < 1.1 * bounded["theorem_2"]


def test_the_bias_of_regularised_features_is_that_of_theorem_1():
    tokens = random_tokens(RandomInput(seq_len=6, heads=2, head_dim=8, norm=2.0))
    options = ApproximationOptions(
        num_features=(128,), draws=200, estimators=("positive",), directions=("regularized",)
    )
    (row,) = approximation_report(*tokens, options=options).rows
    bias = norm = 0.0
    for head in softmax_heads(*tokens, options):
        ratio = regularized_ratio(head.x[:, None], head.y[None])
        bias += float((head.p * (1 - ratio)).square().sum())
        norm += float(head.p.square().sum())
    assert row["kernel"]["bias_squared"] == pytest.approx(bias / norm, rel=0.1)
    assert row["kernel"]["bias_squared"] > 5 * row["kernel"]["variance"] / 200


def test_mean_square_is_bias_squared_and_variance():
    (row, _) = report(estimators=("positive",), directions=("iid",))
    drawn = [
        Kind("positive", "iid").kernel.draw(
            4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        for seed in range(3)
    ]
    square = norm = 0.0
    for head in softmax_heads(*TOKENS, FEW):
        outputs = torch.stack([normalized(kernel_estimate(head, f)) @ head.v for f in drawn])
        exact = head.p @ head.v
        square += float((outputs - exact).square().sum() / 3)
        norm += float(exact.square().sum())
    # With the variance that divides by N - 1, and the bias freed of its own noise.
    assert row["output"]["bias_squared"] + row["output"]["variance"] == pytest.approx(square / norm)


def test_the_queries_are_not_the_directions():
    """Of one seed they would be the same numbers, and every estimate of them wrong."""
    (head,) = softmax_heads(*random_tokens(RandomInput(seq_len=4, head_dim=8)), FEW)
    w = draw(Kind("positive", "iid"), 4, 8).projection
    same = Kind("positive", "iid").kernel.draw(
        8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for directions in (w, same.projection):
        cosines = torch.nn.functional.cosine_similarity(head.x, directions, dim=-1)
        assert cosines.abs().max() < 0.99


def test_without_values_there_is_no_output():
    rows = approximation_report(*TOKENS[:2], options=FEW).rows
    assert not any("output" in row for row in rows)
    tables = approximation_tables({**_result(), "rows": rows}, 0.1)
    assert tables[1].title == "features for an error of 0.1 in the weights"


def test_hadamard_is_left_out_where_the_width_does_not_suit():
    tokens = random_tokens(RandomInput(seq_len=4, head_dim=6))
    found = approximation_report(*tokens, options=FEW)
    assert found.left_out == [
        {"directions": "hadamard", "reason": "needs a width that is a power of 2, not 6"}
    ]
    assert {row["directions"] for row in found.rows} == {"iid", "orthogonal", "regularized"}


def test_what_float64_cannot_hold_is_told_not_written_as_infinity():
    q = torch.full((1, 3, 4), 60.0)
    found = approximation_report(q, q, options=FEW)
    assert any(row["kernel"]["iid_variance"] is None for row in found.rows)
    json.dumps(found.as_json(), allow_nan=False)
    cells = [cell for row in approximation_tables(found.as_json(), 0.1)[0].rows for cell in row]
    assert "too large" in cells


def test_ctrl_c_leaves_what_there_is(monkeypatch):
    measure, calls = approximation._measure, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(approximation, "_measure", interrupted)
    found = Approximation(options={})
    with pytest.raises(KeyboardInterrupt):
        approximation_report(*TOKENS, options=FEW, into=found)
    assert len(found.rows) == 2


def test_progress_ends_where_it_was_planned():
    progress = Progress()
    approximation_report(*TOKENS, options=FEW, progress=progress)
    assert progress.done == progress.total > 0


def _rows(errors, kind="orthogonal positive"):
    return [{"kind": kind, "num_features": m, "output": {"error": e}} for m, e in errors]


@pytest.mark.parametrize(
    ("errors", "needed"),
    [
        ([(16, 1.0), (64, 0.5), (256, 0.25)], Need("orthogonal positive", 64, "measured")),
        ([(16, 0.8), (64, 0.4), (256, 0.2)], Need("orthogonal positive", 41, "measured")),
        ([(16, 0.4)], Need("orthogonal positive", 16, "measured")),
        ([(16, 2.0), (64, 1.0)], Need("orthogonal positive", 256, "extrapolated")),
        ([(16, None), (64, 1.0)], Need("orthogonal positive", 256, "extrapolated")),
        ([(16, None)], Need("orthogonal positive", None, "not reached")),
    ],
)
def test_features_for_an_error_of_a_half(errors, needed):
    """0.8 at 16 falling with the square root is 0.5 at 16 (8/5)^2 = 40.96."""
    assert features_needed(_rows(errors), 0.5) == [needed]


def test_regularised_kinds_are_not_extrapolated():
    kind = "regularized positive"
    assert features_needed(_rows([(16, 1.0)], kind), 0.5) == [Need(kind, None, "not reached")]


def _result():
    return approximation_report(*TOKENS, options=FEW).as_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": (8, 4)}, r"num_features must rise and be at least one, got \[8, 4\]"),
        ({"num_features": (3,)}, "num_features must be even and at least 2, got 3"),
        ({"estimators": ("cosine",)}, "estimators must be among trigonometric, .*got 'cosine'"),
        ({"directions": ()}, r"directions must be at least one, none twice, got \[\]"),
        ({"draws": 1}, "draws must be at least 2, got 1"),
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
        ({"scale": -1.0}, "scale must be a finite number above 0, got -1.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ApproximationOptions(**options)


@pytest.mark.parametrize("norm", [0.0, float("inf")])
def test_a_length_that_is_none_is_refused(norm):
    with pytest.raises(ValueError, match="norm must be"):
        RandomInput(norm=norm)


def test_tensors_that_do_not_fit_are_refused():
    x = torch.zeros(3, 4)
    with pytest.raises(TypeError, match=r"q must hold floating-point numbers, got torch.int64"):
        checked_tokens(x.long(), x)
    for q, k, v, message in (
        (x[0], x, None, r"q must have the shape .* got \(4,\)"),
        (x[:0], x, None, r"q must have the shape .* got \(0, 4\)"),
        (x / 0, x, None, "q must be finite, got NaN or an infinity"),
        (x, x[:, :2], None, r"the same width, got \(1, 1, 3, 4\) and \(1, 1, 3, 2\)"),
        (x[None].repeat(2, 1, 1), x, None, "q and k must have as many heads"),
        (x, x, x[:2], r"v must have as many heads and tokens as k, got \(1, 1, 2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_tokens(q, k, v)
    with pytest.raises(ValueError, match="causal attention needs as many queries as keys, got 2 a"):
        approximation_report(x[:2], x, options=ApproximationOptions(is_causal=True))
