"""The Performer's language experiments: their rows, what a run leaves, and its baseline."""

import dataclasses
import json

import pytest
import torch

from subquad.data.text import source_text
from subquad.experiments import language_rows, performer_text_run
from subquad.experiments.language_options import ATTENTIONS, CAUSAL, FUNCTIONS
from subquad.experiments.language_rows import blank_parts, protein_parts
from subquad.experiments.performer_kernels_run import kernel_rows
from subquad.experiments.performer_protein_run import protein_rows
from subquad.experiments.performer_tables import TABLE_2
from subquad.experiments.performer_text_run import text_parts, text_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.layers import LinearAttention, LinformerAttention, PerformerAttention, SoftmaxAttention
from subquad.ops.generalized_features import KERNEL_FUNCTIONS

NAMES = ("performer-protein", "performer-kernels", "performer-text")
FEW = {
    "performer-protein": {"bidirectional": "relu", "unidirectional": "relu,favor+"},
    "performer-kernels": {"functions": "relu,tanh", "swept": "relu"},
    "performer-text": {"attentions": "softmax,favor+"},
}


def smoke(name, **changes):
    options = EXPERIMENTS[name].preset("smoke", "linear")
    train = dataclasses.replace(
        options.train, max_steps=2, warmup_steps=1, batch_size=2, eval_every=2, log_every=1
    )
    return dataclasses.replace(options, train=train, device="cpu", **changes)


def run(name, folder, **changes):
    options = smoke(name, **{**FEW[name], **changes})
    command = ["subquad", "run", "x"]
    return run_experiment(EXPERIMENTS[name], options, folder, command=command, say=str)


EXPECTED = {
    "performer-protein": ["bidirectional-relu", "unidirectional-relu", "unidirectional-favor"],
    "performer-kernels": ["functions-relu", "functions-tanh", "features-relu-4"],
    "performer-text": ["text-softmax", "text-favor"],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(language_rows, "seconds_per_step", lambda *_: 0.5)
    text = source_text()
    few = dataclasses.replace(text, test=text.test[:200], validation=text.validation[:200])
    monkeypatch.setattr(performer_text_run, "source_text", lambda: few)


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_scale_leaves_a_folder_a_row_and_the_baseline_in_each_group(tmp_path, name):
    folder = tmp_path / "run"
    results = run(name, folder)
    trained = [row for row in results["rows"] if row["label"] != "unigram"]
    assert [row["row"] for row in trained] == EXPECTED[name]
    for row in trained:
        assert row["steps"] == 2
        assert row["test_perplexity"] > 1
        assert row["seconds_per_step"] == 0.5
        assert json.loads((folder / row["row"] / "results.json").read_text())["test"] == row["test"]
    groups = list(dict.fromkeys(row["group"] for row in results["rows"]))
    firsts = [next(r for r in results["rows"] if r["group"] == group) for group in groups]
    assert [row["label"] for row in firsts] == ["unigram"] * len(groups)
    assert all(0 < row["test_accuracy"] < 0.5 for row in firsts)
    assert all((folder / figure).is_file() for figure in results["figures"])
    page = (folder / "report.html").read_text()
    for words in ("one seed", "perplexity", "unigram", *groups):
        assert words in page
    assert str(tmp_path) not in page
    assert run(name, folder) == results  # finished: nothing is trained again


def test_table_2_stands_beside_the_rows_that_it_has(tmp_path):
    results = run("performer-protein", tmp_path / "run")
    found = {(row["group"], row["label"]): row for row in results["rows"]}
    relu = found["unidirectional", "relu"]
    assert (relu["paper_accuracy"], relu["paper_perplexity"]) == (0.3158, 9.17)
    assert (relu["paper_held_out_accuracy"], relu["paper_held_out_perplexity"]) == (0.1844, 13.63)
    assert found["unidirectional", "unigram"]["paper_perplexity"] == 17.80
    assert "paper_accuracy" not in found["unidirectional", "favor+"]
    assert all("held_out_perplexity" in row for row in results["rows"])
    assert all("state_bytes" in row for (group, label), row in found.items()
               if group == "unidirectional" and label != "unigram")  # fmt: skip
    assert len(TABLE_2) == 6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "paper: share right, held-out" in page


def test_joined_sequences_have_a_pair_of_rows_of_one_size(tmp_path):
    results = run("performer-protein", tmp_path / "run", concatenated=True)
    assert [row["row"] for row in results["rows"]][1:] == ["joined-softmax", "joined-relu"]
    softmax, relu = results["rows"][1:]
    assert softmax["parameters"] == relu["parameters"]
    assert "paper_accuracy" not in relu
    options = smoke("performer-protein", concatenated=True)
    parts = protein_parts("made-up", None, joined_len=65)
    tokens, _, counts = protein_rows(options, parts)[0].build().batch(0)
    assert tokens.shape == (1, 64)
    assert not counts.all()  # boundaries are among them


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_needs_no_data(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_rows, "load_proteins", None)
    cost = EXPERIMENTS[name].estimate(smoke(name, **FEW[name]))
    assert cost["rows"] == len(EXPECTED[name])
    assert cost["steps"] == 2 * cost["rows"]
    assert min(cost[key] for key in ("flops", "parameters", "minutes", "memory_gb")) > 0
    assert not any(tmp_path.iterdir())


def test_every_row_can_be_trained():
    proteins = protein_parts("made-up", None, joined_len=None)
    text = smoke("performer-text")
    rows = [
        *protein_rows(smoke("performer-protein"), proteins),
        *kernel_rows(smoke("performer-kernels"), proteins),
        *text_rows(text, text_parts(text)),
    ]
    assert len({row.name for row in rows}) == len(rows) == 9 + 10 + 4
    for row in rows:
        task = row.build()
        task.model.train()
        loss = task.loss(*task.batch(0))
        loss.backward()
        for weight, p in task.model.named_parameters():
            assert p.grad is None or torch.isfinite(p.grad).all(), (row.name, weight)


def test_the_attentions_are_what_their_names_say():
    options = smoke("performer-protein", num_features=5, redraw_every=7)
    kinds = {}
    for name in ATTENTIONS:
        mixer = language_rows.attention(name, options, 32)(16, 2, is_causal=False)
        kinds[name] = type(mixer)
        if name in ("relu", "favor+"):
            assert mixer.features.num_directions == 5
            assert mixer.features.redraw_every == (7 if name == "favor+" else None)
    assert kinds == {
        "softmax": SoftmaxAttention,
        "relu": PerformerAttention,
        "favor+": PerformerAttention,
        "elu+1": LinearAttention,
        "linformer": LinformerAttention,
    }
    assert set(ATTENTIONS) - set(CAUSAL) == {"linformer"}


def test_the_eight_functions_of_the_paper_have_rows_and_two_are_swept():
    assert set(FUNCTIONS) <= set(KERNEL_FUNCTIONS)
    options = EXPERIMENTS["performer-kernels"].preset("laptop", "linear")
    rows = kernel_rows(options, protein_parts("made-up", None, joined_len=None))
    assert [row.label for row in rows[:8]] == list(FUNCTIONS)
    assert [row.label for row in rows[8:]] == ["relu, 16", "relu, 256", "exp, 16", "exp, 256"]
    assert all(row.facts["num_features"] == 64 for row in rows[:8])
    for row in rows[:8]:
        mixer = row.build().model.encoder.stack.blocks[0].mixer
        assert mixer.normalize == KERNEL_FUNCTIONS[row.label].nonnegative
        assert mixer.features.kernel.function.name == row.label


def test_the_laptop_model_has_about_a_million_parameters():
    options = EXPERIMENTS["performer-protein"].preset("laptop", "linear")
    parts = blank_parts(options, protein_parts("made-up", None, joined_len=None).vocabulary, 256)
    rows = protein_rows(options, parts)
    assert len(rows) == 6
    for row in rows:
        with torch.device("meta"):
            model = row.build().model
        assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
        assert row.train.minutes == 10


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("performer-protein", {"bidirectional": "lsh"}, "bidirectional must be among softmax, .*"),
        ("performer-protein", {"unidirectional": "linformer"}, "must be among .* got 'linformer'"),
        ("performer-protein", {"bidirectional": "relu,relu"}, "bidirectional must name none twice"),
        ("performer-protein", {"bidirectional": "", "unidirectional": " "}, "name a row, got none"),
        ("performer-protein", {"joined_len": 7}, "joined_len must be at least 8, got 7"),
        ("performer-protein", {"seq_len": 7}, "seq_len must be at least 8, got 7"),
        ("performer-protein", {"redraw_every": 0}, "redraw_every must be at least 1, got 0"),
        ("performer-protein", {"num_features": 0}, "num_features must be at least 1, got 0"),
        ("performer-kernels", {"functions": ""}, "functions must name at least one, got none"),
        ("performer-kernels", {"functions": "sine"}, "functions must be among .* got 'sine'"),
        ("performer-kernels", {"swept": "sine"}, "swept must be among sigmoid, .* got 'sine'"),
        ("performer-kernels", {"sizes": (8,)}, "sizes must be at least 1 and other than .* = 8"),
        ("performer-kernels", {"sizes": (0,)}, r"sizes must be at least 1 .* got \(0,\)"),
        ("performer-text", {"attentions": ""}, "attentions must name at least one, got none"),
        ("performer-text", {"attentions": "lstm"}, "attentions must be among .* got 'lstm'"),
    ],
)
def test_options_out_of_range_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        smoke(name, **change)
