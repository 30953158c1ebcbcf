import pytest

from subquad.bench import lambda_forms
from subquad.bench.lambda_forms import CONV3D, Cell, measure_lambda, new_report, step
from subquad.bench.lambda_options import LambdaOptions
from subquad.bench.memory import measured_apart
from subquad.bench.tables import tables
from subquad.bench.timing import Progress

TINY = {
    "sides": (4, 6), "windows": (3,), "local_side": 5, "batch": 2, "channels": 8, "heads": 2,
    "head_dim": 3, "repetitions": 3, "threads": 1, "has_memory": False,
}  # fmt: skip


def test_ratios_are_those_of_the_times_and_growth_is_a_slope():
    options = LambdaOptions(**TINY)
    report, progress = new_report(options), Progress()
    measure_lambda(options, report, progress=progress)
    assert progress.done == progress.total
    local = {row.what["form"]: row for row in report.rows if row.what["context"] == "local"}
    assert set(local) == {"auto", "fft", "rows", CONV3D}
    for row in local.values():
        ratio = local[CONV3D].seconds.median / row.seconds.median
        assert row.more["faster_than_published"] == ratio
        assert row.what["window"] == 3
    grown = [row for row in report.rows if row.what["context"] == "growth"]
    assert {row.what["side"] for row in grown} == {4, 6}
    by_form = {row.what["form"]: row for row in grown if row.what["side"] == 6}
    products = min(by_form[form].seconds.median for form in ("rows", "einsum"))
    assert by_form["fft"].more["faster_than_products"] == products / by_form["fft"].seconds.median
    assert {found["form"] for found in report.summary} == {"auto", "fft", "rows", "einsum"}
    table, growth = tables(report)
    assert len(table.rows) == len(report.rows)
    assert len(growth.rows) == 4


def test_memory_is_measured_in_a_process_of_its_own():
    options = LambdaOptions(**{**TINY, "has_memory": True})
    job = {"kind": "lambda", "options": new_report(options).options, "form": "fft"}
    cell = list(Cell("global", 24, None, 2, ("fft",)))
    found = list(measured_apart({**job, "cell": cell}))
    assert len(found) == 1
    assert 0 <= found[0]["peak_bytes"] < 1e9


def test_a_form_that_is_wrong_is_not_timed(monkeypatch):
    def wrong(options, cell, form):
        layer = right(options, cell, form)
        if form == "fft":
            layer.table.data[0] += 0.01
        return layer

    right = lambda_forms.build
    monkeypatch.setattr(lambda_forms, "build", wrong)
    report = new_report(LambdaOptions(**TINY))
    with pytest.raises(RuntimeError, match=r"the form fft is .* off its definition, and was not"):
        measure_lambda(LambdaOptions(**TINY), report)
    assert not report.rows


def test_what_needs_too_much_is_left_out_with_the_reason():
    options = LambdaOptions(**{**TINY, "sides": (4, 40), "limit": 1e-4, "longest": 1e-9})
    report = new_report(options)
    measure_lambda(options, report)
    reasons = {(x["form"], x["side"]): x["reason"] for x in report.left_out}
    assert "more than the limit of 0.0001" in reasons["einsum", 40]
    assert "expected to take" in reasons["rows", 40]
    assert "left out" in [table.title for table in tables(report)]
    assert step(options, Cell("global", 4, None, 1, ()), "fft")() is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sides": (6, 4)}, "sides must rise and be at least one, got"),
        ({"sides": ()}, "sides must rise and be at least one, got"),
        ({"windows": (4,)}, "windows must be odd, got"),
        ({"heads": 3}, r"heads must divide channels \(8\), got 3"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0.0"),
        ({"limit": -1.0}, "limit must be above 0, got -1.0"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        LambdaOptions(**{**TINY, **changes})
