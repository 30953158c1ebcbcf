"""What a row measures besides its loss: without dropout, and the bytes of its state."""

import dataclasses

import pytest

from subquad.experiments import rows
from subquad.experiments.compare_copy_run import compare_copy_rows
from subquad.experiments.copy_rows import state_bytes, state_facts
from subquad.experiments.registry import EXPERIMENTS


def smoke(**changes):
    options = EXPERIMENTS["compare-copy"].preset("smoke", "linear")
    train = dataclasses.replace(options.train, max_steps=1, warmup_steps=0, batch_size=2)
    return dataclasses.replace(options, train=train, device="cpu", **changes)


def test_a_row_is_measured_without_dropout(tmp_path, monkeypatch):
    monkeypatch.setattr("subquad.tasks.marked_tokens.FULL_BATCHES", 1)
    options = smoke(mixers="linear")
    (row,) = compare_copy_rows(options)
    row = dataclasses.replace(
        row, measure=lambda task, folder: {"in_training": task.model.training}
    )
    (found,) = rows.run_rows("compare-copy", [row], options, tmp_path, str)
    assert found["in_training"] is False


@pytest.mark.parametrize("name", ["softmax", "linear", "lsh-4"])
def test_a_row_tells_the_bytes_of_its_state_if_it_has_one(name):
    (row,) = compare_copy_rows(smoke(mixers=name))
    model = row.build().model
    facts = state_facts(model, 32)
    assert facts == ({} if name == "lsh-4" else {"state_bytes": state_bytes(model, 32)})


def test_rows_come_in_the_order_asked_for():
    assert [row.label for row in compare_copy_rows(smoke(mixers="local, linear"))] == [
        "local", "linear",
    ]  # fmt: skip
