import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from subquad.bench import approximation
from subquad.bench.approximation_inputs import read_tokens
from subquad.cli import main

TINY = ["--num-features", "4,8", "--draws", "2", "--threads", "1"]
RANDOM = ["--seq-len", "5", "--head-dim", "4", *TINY]


def outcome(capsys, *words):
    code = main(["approx", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def arrays(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(2, 5, 4)).astype(np.float32) for name in "qkv"}


def test_random_input_is_measured_printed_and_drawn(tmp_path, capsys):
    out = tmp_path / "new" / "a.json"
    code, text, _ = outcome(capsys, *RANDOM, "--error", "0.5", "--out", out)
    assert code == 0
    for words in (
        "random input of norm 4",
        "orthogonal positive",
        "Lemma 2",
        "features for an error of 0.5",
    ):
        assert words in text
    assert {path.name for path in out.parent.iterdir()} == {"a.json", "a-error.png"}
    found = json.loads(out.read_text())
    assert found["format"] == "subquad-approximation"
    assert len(found["rows"]) == 2 * 12
    assert found["environment"]["packages"]["torch"]


def test_a_users_file_is_read(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **arrays())
    save_file({n: torch.from_numpy(x) for n, x in arrays().items()}, tmp_path / "a.safetensors")
    texts = []
    for name in ("a.npz", "a.safetensors"):
        code, text, _ = outcome(
            capsys, tmp_path / name, *TINY, "--estimators", "positive", "--causal"
        )
        assert code == 0
        assert "q (1, 2, 5, 4)" in text
        texts.append(text.replace(name, "").split())
    assert texts[0] == texts[1]


def test_half_precision_and_no_values(tmp_path):
    save_file(
        {"q": torch.ones(3, 4).bfloat16(), "k": torch.ones(2, 4).half()}, tmp_path / "h.safetensors"
    )
    q, k, v = read_tokens(tmp_path / "h.safetensors")
    assert (q.dtype, q.shape, k.shape, v) == (torch.float64, (1, 1, 3, 4), (1, 1, 2, 4), None)


def test_ctrl_c_prints_what_there_is(tmp_path, capsys, monkeypatch):
    measure, calls = approximation._measure, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(approximation, "_measure", interrupted)
    out = tmp_path / "a.json"
    code, text, _ = outcome(capsys, *RANDOM, "--out", out)
    assert code == 130
    assert "interrupted: these are the measurements until then" in text
    found = json.loads(out.read_text())
    assert found["interrupted"] is True
    assert len(found["rows"]) == 2


def test_files_that_are_no_such_files_are_refused(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (exit, ("unpickled",))

    np.savez(tmp_path / "pickled.npz", q=np.array([Trap()], dtype=object), k=np.ones((2, 2)))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "text.npz").write_text("q k v")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", np.ones((2, 2)))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    whole = tmp_path / "whole.npz"
    np.savez(whole, **arrays())
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:300])
    damaged = bytearray(whole.read_bytes())
    damaged[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("q.npy", b"\x93NUMPY")
    for name in ("pickled", "raw", "text", "empty", "single", "cut", "damaged", "other"):
        code, _, error = outcome(capsys, tmp_path / f"{name}.npz", *TINY)
        assert code == 1, name
        assert f"{name}.npz must be a .npz file of plain numbers, got one" in error, name
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{}")
    code, _, error = outcome(capsys, tmp_path / "bad.safetensors", *TINY)
    assert code == 1
    assert "bad.safetensors must be a .safetensors file, got one" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.npz"], "there is no file nothing.npz"),
        (["a.pt"], "the file must be .npz or .safetensors, got a.pt"),
        (["a.npz", "--norm", "3"], "--norm is of random input, but there is a file: a.npz"),
        (["--num-features", "8,4"], "num_features must rise and be at least one, got [8, 4]"),
        (["--estimators", "sine"], "estimators must be among trigonometric, positive, hyperbolic"),
        (["--error", "0"], "error must be above 0, got 0"),
        (["--seq-len", "0"], "seq_len must be at least 1, got 0"),
        (["--out", "a.txt"], "--out must name a .json file, got a.txt"),
        (["--feature", "8"], "unknown option --feature"),
    ],
)
def test_mistakes_take_one_line(capsys, words, message):
    code, _, error = outcome(capsys, *words)
    assert code in (1, 2)
    assert message in error
    assert error.count("\n") == 1


def test_arrays_of_other_names_are_named(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", query=np.ones((2, 2)), k=np.ones((2, 2)))
    code, _, error = outcome(capsys, tmp_path / "a.npz")
    assert code == 1
    assert "a.npz must hold arrays q and k, got k" in error
