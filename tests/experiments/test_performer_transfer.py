import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")

from subquad.data.antibodies import made_up_antibodies
from subquad.experiments import performer_transfer_run as transfer
from subquad.experiments.attention_transfer import (
    ANTIBERTY,
    ANTIBERTY_IDS,
    TransferTask,
    antiberty_rows,
    language_model,
)
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.pretrained.saving import SwapOptions

EXPERIMENT = EXPERIMENTS["performer-transfer"]


def smoke():
    return dataclasses.replace(EXPERIMENT.preset("smoke", "performer"), device="cpu")


def test_a_run_has_its_rows_its_figure_and_softmax(tmp_path, monkeypatch):
    rows = transfer.transfer_rows

    def two_rows(options):
        return [rows(options)[i] for i in (1, 2)]

    monkeypatch.setattr(transfer, "transfer_rows", two_rows)
    said = []
    results = run_experiment(
        EXPERIMENT, smoke(), tmp_path / "run", command=["subquad", "run", "x"], say=said.append
    )
    trained = [row for row in results["rows"] if row["group"] == transfer.GROUP]
    assert [row["label"] for row in trained] == ["FAVOR+, drawn anew", "FAVOR+, not matched"]
    assert all(0 <= row["accuracy_at_swap"] <= 1 for row in trained)
    similar = [row for row in results["rows"] if row["group"] != transfer.GROUP]
    assert [row["num_features"] for row in similar] == [8, 32]
    assert similar[1]["distance"] < similar[0]["distance"]
    assert 0 <= results["softmax"]["accuracy"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "share right at the swap" in page
    assert "FAVOR+, 32" in page
    assert (tmp_path / "run" / "figures" / "recovery.png").is_file()
    again = run_experiment(
        EXPERIMENT, smoke(), tmp_path / "run", command=["subquad", "run", "x"], say=said.append
    )
    assert json.dumps(again) == json.dumps(results)


def test_the_rows_are_the_six_that_were_planned():
    rows = transfer.transfer_rows(smoke())
    assert [row.label for row in rows] == [
        "FAVOR+", "FAVOR+, drawn anew", "FAVOR+, not matched", "trigonometric", "ReLU", "elu + 1",
    ]  # fmt: skip
    assert len({row.name for row in rows}) == 6


def test_chains_on_which_softmax_fails_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        transfer, "load_antiberty", lambda: transfer._tiny(transfer.BertForMaskedLM)
    )
    monkeypatch.setattr(transfer, "load_antibodies", made_up_antibodies)
    options = dataclasses.replace(smoke(), weights="antiberty")
    with pytest.raises(ValueError, match="softmax must guess 80% of the held-out residues, got"):
        transfer.run_transfer(options, tmp_path, lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer_steps": 4}, "transfer_steps must be below max_steps = 4, got 4"),
        ({"transfer_steps": 0}, "transfer_steps must be at least 1"),
        ({"num_features": 0}, "num_features must be at least 1"),
        ({"redraw_every": 0}, "redraw_every must be at least 1"),
    ],
)
def test_options_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(smoke(), **change)


def task(transfer_steps, *, teacher=True):
    pretrained = transfer._tiny(transfer.BertForMaskedLM)
    model, found = language_model(
        pretrained, SwapOptions(num_features=16), ANTIBERTY_IDS, transfers=teacher
    )
    chains = made_up_antibodies()
    parts = (chains.train, chains.validation, chains.test)
    train, validation, test = map(antiberty_rows, parts)
    return TransferTask(
        model, teacher=found, transfer_steps=transfer_steps, train=train, validation=validation,
        test=test, vocabulary=ANTIBERTY, objective="masked", seq_len=128, batch_size=2,
    )  # fmt: skip


def test_attention_is_matched_first_then_tokens_are_guessed():
    made = task(1)
    model = made.model.pretrained
    made.loss(*made.batch(0)).backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad is None
    made.loss(*made.batch(1)).backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad is not None
    with pytest.raises(
        ValueError, match="transfer_steps must be at least 0, and 0 without a teach"
    ):
        task(1, teacher=False)


def test_our_ids_are_antibertys():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]
    ours = [*"ACDEFGHIKLMNPQRSTVWY", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    assert [vocabulary[i] for i in ANTIBERTY_IDS] == ours
    rows = antiberty_rows(made_up_antibodies().test[:2])
    first = rows.tokens[: rows.lengths[0]]
    assert (first[0], first[-1]) == (20, 21)
    assert int(first[1:-1].max()) < 20


def test_the_loss_of_guessing_is_the_models_own():
    made = task(0)
    tokens, targets, counts, key_mask, _ = made.batch(0)
    ids = ANTIBERTY_IDS
    with torch.no_grad():
        found = made.loss(*made.batch(0))
        logits = made.model.pretrained(
            input_ids=ids[tokens], attention_mask=key_mask.long()
        ).logits[..., ids]
    expected = torch.nn.functional.cross_entropy(logits[counts], targets[counts])
    torch.testing.assert_close(found, expected)
