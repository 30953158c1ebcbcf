"""``subquad run`` with an experiment of many rows."""

import pytest

from subquad.cli import main
from subquad.experiments import hybrid_share_run

TINY = ["--scale", "smoke", "--max-steps", "1", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture
def one_row(monkeypatch):
    monkeypatch.setattr("subquad.tasks.marked_tokens.FULL_BATCHES", 1)
    monkeypatch.setattr("subquad.tasks.marked_tokens.QUICK_BATCHES", 1)
    monkeypatch.setattr(hybrid_share_run, "SHARES", (25.0,))


def test_the_rows_are_shown_as_one_table_a_task(capsys, tmp_path, one_row):
    assert main(["run", "hybrid-share", *TINY, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "hybrid-share, all, smoke scale" in out
    for words in ("hybrid-share: copy", "hybrid-share: recall", "25 %", "row 2 of 2: recall-25"):
        assert words in out
    assert "report.html" in out


def test_a_group_with_such_an_experiment_needs_no_second_table(
    capsys, tmp_path, one_row, monkeypatch
):
    monkeypatch.setattr("subquad.cli.run.GROUPS", {"shares": (("hybrid-share", "linear"),)})
    assert main(["run-all", "shares", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["hybrid-share-all-smoke"]


def test_its_mixers_are_not_to_be_chosen(capsys, tmp_path):
    words = ["run", "hybrid-share", *TINY, "--mixer", "linear", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "unknown option --mixer" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
