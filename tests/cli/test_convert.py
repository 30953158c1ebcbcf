import json

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertForSequenceClassification, ViTModel

from cases.transformers import bert, llama, vit
from subquad.cli import main
from subquad.experiments.corpus import read_corpus
from subquad.pretrained import load_converted, load_tokenizer

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def save(model, folder):
    model.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    )
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text(" ".join(LETTERS[i * i % 20] for i in range(1200)))
    return path


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "chains.fasta"
    path.write_text("".join(f">{i}\n{LETTERS[i % 7 :]}\n{LETTERS[:5]}\n" for i in range(60)))
    return path


def convert(*words, steps=(2, 2)):
    return main(
        ["convert", *map(str, words), "--device", "cpu", "--seq-len", "16", "--batch-size", "2",
         "--transfer-steps", str(steps[0]), "--finetune-steps", str(steps[1])]
    )  # fmt: skip


def test_a_masked_model_on_fasta(tmp_path, fasta, capsys):
    model = save(bert(dropout=0.1), tmp_path / "old")
    out = tmp_path / "new"
    assert convert(model, "--out", out, "--data", fasta, "--num-features", 8) == 0
    said = capsys.readouterr().out
    assert "before " in said
    assert "trained " in said
    report = json.loads((out / "conversion.json").read_text())
    assert report["before"]["loss"] != report["swapped"]["loss"] != report["trained"]["loss"]
    page = (out / "report.html").read_text()
    assert "before, with softmax" in page
    assert "after 4 steps" in page
    loaded = load_converted(out)
    assert loaded(torch.tensor([[2, 5, 6, 3]])).logits.shape == (1, 4, 30)
    assert (out / "vocab.txt").is_file()
    # Finished: the second call reads what the first one measured.
    assert convert(model, "--out", out, "--data", fasta, "--num-features", 8) == 0
    assert convert(model, "--out", out, "--data", fasta, "--num-features", 9) == 1
    assert "--num-features 8, not 9" in capsys.readouterr().err


def test_a_causal_model_on_text(tmp_path, text):
    model = save(llama(), tmp_path / "old")
    out = tmp_path / "new"
    assert convert(model, "--out", out, "--data", text, "--mixer", "linear") == 0
    assert json.loads((out / "subquad.json").read_text())["swap"]["mixer"] == "linear"
    assert load_converted(out)(torch.tensor([[5, 6]])).logits.isfinite().all()


def test_a_model_without_a_head_is_matched_alone(tmp_path, text):
    model = save(bert().bert, tmp_path / "old")
    out = tmp_path / "new"
    assert convert(model, "--out", out, "--data", text, steps=(3, 0)) == 0
    report = json.loads((out / "conversion.json").read_text())
    assert report["before"]["loss"] == 0
    assert report["swapped"]["loss"] > 0
    assert type(load_converted(out)).__name__ == "BertModel"


def test_a_stopped_conversion_goes_on(tmp_path, text, monkeypatch):
    from subquad.experiments import convert as module

    model = save(bert(), tmp_path / "old")
    out, whole = tmp_path / "new", tmp_path / "whole"
    fit = module.fit

    def stop(task, config, folder):
        fit(task, config, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", stop)
    assert convert(model, "--out", out, "--data", text) == 130
    assert not (out / "subquad.json").exists()
    monkeypatch.setattr(module, "fit", fit)
    assert convert(model, "--out", out, "--data", text) == 0
    assert convert(model, "--out", whole, "--data", text) == 0
    found, expected = (load_converted(folder).state_dict() for folder in (out, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing"], 1, "MODEL must be a folder in transformers' layout, or one of antiberty"),
        ([], 2, "MODEL is missing"),
        (["old"], 1, "data must be a text or FASTA file for this model, got none"),
        (["old", "--data", "no.txt"], 1, "data must be a text or FASTA file, found none at no.txt"),
        (["old", "--data", "short.txt"], 1, "must hold at least 3 rows of tokens"),
        (["old", "--data", "short.fasta"], 1, "must be a FASTA file"),
        (["old", "--data", "bytes.txt"], 1, "data must be a text in UTF-8, got bytes.txt"),
        (["old", "--data", "other.txt"], 1, "got special ones alone in other.txt"),
        (["old", "--seq-len", "33"], 1, "seq_len must be at most the model's 32 positions, got 33"),
        (["old", "--kernel", "cosine"], 2, "--kernel must be one of positive, "),
        (["old", "--mixer", "linear", "--num-features", "8"], 2, "left out with the mixer linear"),
        (["old", "--mixer", "softmax"], 2, "--mixer must be one of performer, linear"),
        (["old", "--out", "old"], 1, "out must be a new folder or one that convert began"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, words, code, message):
    save(bert(), tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("A C D")
    (tmp_path / "short.fasta").write_text("A C D")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    (tmp_path / "other.txt").write_text("x " * 400)
    out = [] if "--out" in words else ["--out", "new"]
    out += [] if "--seq-len" in words or "--kernel" in words else ["--seq-len", "16"]
    assert main(["convert", *words, *out]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (BertForSequenceClassification, "or a base model, got a BertForSequenceClassification"),
        (ViTModel, "MODEL must be a model of tokens, got a ViTModel"),
    ],
)
def test_models_of_another_kind(tmp_path, capsys, text, kind, message):
    config = (vit() if kind is ViTModel else bert()).config
    save(kind(config), tmp_path / "old")
    assert convert(tmp_path / "old", "--out", tmp_path / "new", "--data", text) == 1
    assert message in capsys.readouterr().err


def test_a_part_without_a_token_to_guess_is_refused_before_training(tmp_path, capsys):
    model, path = save(bert(), tmp_path / "old"), tmp_path / "few.fasta"
    path.write_text(">a\nA\n" * 20)
    assert convert(model, "--out", tmp_path / "new", "--data", path) == 1
    assert "rows must hold a token to guess, got none in " in capsys.readouterr().err


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(save(bert(), tmp_path / "old"))


def test_sequences_of_a_causal_model_are_joined(tmp_path, tokenizer):
    path = tmp_path / "chains.fasta"
    path.write_text(">a\nACD\n" + ">sp|1| p.Arg>Gly\nACDEF\nGHI\n" * 9)
    found = read_corpus(path, tokenizer, vocab_size=30, masked=False, seq_len=7)
    assert set(found.train.lengths) == {8}
    assert found.train.tokens[:8].tolist() == [5, 6, 7, 3, 5, 6, 7, 8]
    assert sum(len(part.tokens) for part in (found.train, found.validation, found.test)) == 80


def test_what_is_cut_is_said(tmp_path, tokenizer):
    path = tmp_path / "chains.fasta"
    path.write_text(">a\nACD\n" + ">b\nACDEFGHI\n" * 9)
    options = {"vocab_size": 30, "masked": True}
    cut = read_corpus(path, tokenizer, seq_len=8, **options)
    assert cut.source.endswith("; 9 sequences cut to their first 6 tokens")
    assert read_corpus(path, tokenizer, seq_len=10, **options).source.endswith("of the file")
    tokenizer.cls_token = None  # no frame: the first row is of one token
    path.write_text(">a\nA\n" + ">b\nACDEFGHI\n" * 9)
    left_out = read_corpus(path, tokenizer, seq_len=10, **options)
    assert left_out.source.endswith("; 1 rows of less than 3 tokens left out")


def test_ids_that_the_model_lacks(fasta, tokenizer):
    with pytest.raises(ValueError, match=r"below the model's vocab_size = 20, got 24"):
        read_corpus(fasta, tokenizer, vocab_size=20, masked=True, seq_len=16)
    tokenizer.add_special_tokens({"mask_token": "[NEW]"})
    with pytest.raises(ValueError, match=r"below the model's vocab_size = 25, got 25"):
        read_corpus(fasta, tokenizer, vocab_size=25, masked=True, seq_len=16)


def test_approx_looks_at_a_layer(tmp_path, text, capsys):
    model = save(llama(), tmp_path / "old")
    out = tmp_path / "approx.json"
    words = ["approx", "--model", str(model), "--layer", "1", "--data", str(text)]
    few = ["--num-features", "8,16", "--draws", "2", "--estimators", "positive"]
    assert main([*words, *few, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert "layer 1 of old" in json.dumps(written)
    assert written["options"]["scale"] == 8**-0.5 or written["options"]["is_causal"]
    assert main(["approx", "--model", str(model), "--causal"]) == 2
    assert "--causal must be left out with --model" in capsys.readouterr().err
    assert main(["approx", "--layer", "1"]) == 2
    assert "name it by --model" in capsys.readouterr().err
    assert main(["approx", "--model", str(model)]) == 1
    assert "data must be a text for this model" in capsys.readouterr().err
