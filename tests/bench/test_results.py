import json

import pytest

from subquad.bench.results import (
    Report,
    Row,
    Spread,
    changed_options,
    compare,
    read_result,
    spread,
)
from subquad.bench.tables import compared, seconds, size, tables


def result(kind="attention", **medians):
    report = Report(kind=kind, options={"batch": 1})
    for name, (low, middle, high) in medians.items():
        report.rows.append(
            Row(
                what={"mechanism": name, "pass": "forward", "seq_len": 8},
                seconds=Spread(median=float(middle), q25=float(low), q75=float(high), count=3),
            )
        )
    return report.as_json()


def test_a_spread_is_median_and_quartiles():
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.q25, found.median, found.q75, found.count) == (2.0, 3.0, 4.0, 5)
    assert found.relative == pytest.approx(2 / 3)
    assert spread([7.0]) == Spread(median=7.0, q25=7.0, q75=7.0, count=1)


def test_no_samples_have_no_spread():
    with pytest.raises(ValueError, match="samples must hold at least one time, got none"):
        spread([])


def test_a_result_comes_back_from_its_file_with_where_it_was_measured(tmp_path):
    report = Report(kind="train", options={"batch": 2}, interrupted=True)
    report.leave_out("too slow", mixer="softmax")
    report.write(tmp_path / "new" / "r.json")
    found = read_result(tmp_path / "new" / "r.json")
    assert found["environment"]["packages"]["torch"]
    assert found["left_out"] == [{"mixer": "softmax", "reason": "too slow"}]
    assert found["interrupted"] is True


@pytest.mark.parametrize("text", ["no json", "[]", '{"format": "other"}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json must be a result file of subquad bench"):
        read_result(tmp_path / "x.json")


def test_results_are_compared_row_by_row_and_ties_are_marked():
    first = result(a=(0.9, 1.0, 1.2), b=(1.9, 2.0, 2.1), c=(1.0, 1.0, 1.0), only=(1, 1, 1))
    second = result(c=(3.0, 3.0, 3.0), b=(0.9, 1.0, 1.1), a=(1.1, 1.3, 1.5))
    found = compare(json.loads(json.dumps(first)), second)
    assert [d.what["mechanism"] for d in found] == ["a", "b", "c"]
    assert [d.ratio for d in found] == pytest.approx([1.3, 0.5, 3.0])
    assert [d.within_spread for d in found] == [True, False, False]
    assert [row[-1] for row in compared(found).rows] == ["within the spread", "faster", "slower"]


def test_what_cannot_be_compared_is_refused():
    one = result(a=(1, 1, 1))
    with pytest.raises(ValueError, match="one kind, got attention and train"):
        compare(one, result("train", a=(1, 1, 1)))
    with pytest.raises(ValueError, match="a measurement in common, got none"):
        compare(one, result(b=(1, 1, 1)))


def test_settings_that_differ_are_named():
    first, second = result(a=(1, 1, 1)), result(a=(1, 1, 1))
    assert changed_options(first, second) == []
    second["options"] = {"batch": 3}
    second["environment"] = {**second["environment"], "threads": 99}
    assert changed_options(first, second)[0] == "batch: 1 and 3"
    assert changed_options(first, second)[1].endswith("and 99")


@pytest.mark.parametrize(
    ("value", "text"), [(12.34, "12.3 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs"), (3e-9, "3 ns")]
)
def test_times_are_written_with_their_unit(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2e9, "2 GB"), (12.8e6, "12.8 MB"), (1.5e3, "1.5 kB"), (12.0, "12 B")]
)
def test_bytes_are_written_with_their_unit(value, text):
    assert size(value) == text


def test_what_was_left_out_has_a_table_of_its_own():
    report = Report(kind="train", options={})
    report.leave_out("does not fit", mixer="softmax", batch=64)
    (table,) = tables(report)
    assert table.rows == [("softmax, 64", "does not fit")]
