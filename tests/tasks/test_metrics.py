import errno

import pytest

from subquad.tasks.metrics import MetricsLog, columns_of, evaluation_columns

COLUMNS = ["step", "train", "test"]


def write(folder, steps, *, last_step=-1):
    with MetricsLog(folder, COLUMNS, last_step=last_step) as log:
        for step in steps:
            log.write({"step": step, "train": step / 10, "test": None})
        log.sync()
    return (folder / "metrics.csv").read_text().splitlines()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    write(tmp_path, [0, 5, 10, 15])
    assert write(tmp_path, [10], last_step=7) == ["step,train,test", "0,0.0,", "5,0.5,", "10,1.0,"]


def test_a_torn_last_line_is_dropped(tmp_path):
    write(tmp_path, [0, 5])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("7,0.")
    assert write(tmp_path, [], last_step=7) == ["step,train,test", "0,0.0,", "5,0.5,"]


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns step, train, test, got step, loss"):
        MetricsLog(tmp_path, COLUMNS, last_step=0)
    assert path.read_text() == "step,loss\n1,2\n"


def test_a_full_disk_is_named_in_one_sentence(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with MetricsLog(tmp_path, COLUMNS, last_step=-1) as log:
        monkeypatch.setattr("subquad.tasks.metrics.os.fsync", full)
        with pytest.raises(OSError, match=r"metrics.csv cannot be written: No space left on devic"):
            log.sync()
        monkeypatch.undo()


def test_columns_are_those_of_the_evaluation():
    evaluation = {"loss": 1.0, "accuracy": 0.5}
    assert columns_of(evaluation)[:5] == ["step", "samples", "seconds", "train", "test"]
    assert columns_of(evaluation)[-1] == "test_accuracy"
    assert evaluation_columns(evaluation) == {"test": 1.0, "test_accuracy": 0.5}
