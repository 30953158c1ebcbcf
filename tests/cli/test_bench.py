import json
import subprocess
import sys

import pytest

from subquad.bench import attention, machine
from subquad.cli import main

TINY = ["--repetitions", "1", "--seconds", "0.1", "--threads", "1", "--no-memory"]
ATTENTION = ["bench", "attention", "--lengths", "8,16", "--heads", "1", "--head-dim", "4", *TINY]
FEW = ["--mechanisms", "softmax,linear-torch-64"]


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(machine, "CPU_GEMM", 8)
    monkeypatch.setattr(machine, "CPU_COPY", 2**10)


def outcome(capsys, *words):
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_attention_is_printed_written_and_compared(tmp_path, capsys):
    out = tmp_path / "new" / "a.json"
    code, text, _ = outcome(capsys, *ATTENTION, *FEW, "--out", str(out))
    assert code == 0
    assert "attention, forward+backward" in text
    assert "linear-torch-64" in text
    assert json.loads(out.read_text())["options"]["lengths"] == [8, 16]
    assert {p.name for p in out.parent.iterdir()} == {"a.json", "a-scaling.png", "a-wall.png"}
    code, text, _ = outcome(capsys, "bench", "compare", str(out), str(out))
    assert code == 0
    assert "within the spread" in text
    assert "not the same" not in text


def test_ctrl_c_prints_and_writes_what_there_is(tmp_path, capsys, monkeypatch):
    measure = attention._Session._time

    def interrupted(self, which, seq_len):
        if seq_len == 16:
            raise KeyboardInterrupt
        measure(self, which, seq_len)

    monkeypatch.setattr(attention._Session, "_time", interrupted)
    out = tmp_path / "a.json"
    code, text, _ = outcome(capsys, *ATTENTION, *FEW, "--out", str(out))
    assert code == 130
    assert "interrupted: these are the measurements until then" in text
    found = json.loads(out.read_text())
    assert found["interrupted"] is True
    assert {row["what"]["seq_len"] for row in found["rows"]} == {8}


def test_train_prints_a_table_or_a_profile(capsys):
    words = ["bench", "train", "--layers", "1", "--width", "8", "--heads", "2", "--seq-len", "5",
             "--batch", "2", "--mixers", "linear", *TINY]  # fmt: skip
    code, text, _ = outcome(capsys, *words)
    assert code == 0
    assert "images/s" in text
    code, text, _ = outcome(capsys, *words, "--profile")
    assert code == 0
    assert "aten::" in text


def test_decode_takes_its_options(capsys, monkeypatch):
    from subquad.bench import decode

    monkeypatch.setattr(
        decode, "measure_decode", lambda options, report, progress: seen.append(options)
    )
    seen = []
    words = ["bench", "decode", "--models", "mnist", "--batches", "1,64", "--no-recompute"]
    assert outcome(capsys, *words)[0] == 0
    assert seen[0].models == ("mnist",)
    assert seen[0].batches == (1, 64)
    assert seen[0].has_recompute is False


def test_an_encoder_is_printed_and_written(tmp_path, capsys):
    out = tmp_path / "new" / "e.json"
    words = ["bench", "encoder", "--batch", "1", "--seq-len", "5", "--width", "8", "--heads", "2",
             "--layers", "1", "--d-ff", "8", "--threads", "1", "--no-memory"]  # fmt: skip
    code, text, _ = outcome(capsys, *words, "--mixers", "linear", "--out", str(out))
    assert code == 0
    assert "1 layers, 2 heads, d_ff 8, input (1, 5, 8), float32, cpu, 1 threads" in text
    assert "CPU seconds" in text
    found = json.loads(out.read_text())
    assert set(found) == {"size", "measurements", "environment"}
    assert found["size"] == {"batch_size": 1, "seq_len": 5, "d_model": 8, "num_layers": 1,
                             "num_heads": 2, "d_ff": 8}  # fmt: skip
    (measured,) = found["measurements"]
    assert set(measured) == {"mixer", "device", "threads", "seconds", "cpu_seconds", "peak_bytes"}
    assert found["environment"]["packages"]["torch"]


def test_an_encoders_measurements_survive_ctrl_c(tmp_path, capsys, monkeypatch):
    from subquad.bench import encoder_speed

    def measure(options):
        yield encoder_speed.Measurement(
            mixer="linear", device="cpu", threads=1, seconds=1.0, cpu_seconds=1.0, peak_bytes=10**7
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder_speed, "measure_encoder", measure)
    out = tmp_path / "e.json"
    code, text, _ = outcome(capsys, "bench", "encoder", "--out", str(out))
    assert code == 130
    assert "interrupted: these are the measurements until then" in text
    assert [m["mixer"] for m in json.loads(out.read_text())["measurements"]] == ["linear"]


def test_peers_that_are_absent_are_named(capsys):
    words = ["bench", "peers", "--lengths", "8", "--heads", "1", "--head-dim", "4", *TINY]
    code, text, _ = outcome(capsys, *words)
    assert code == 0
    assert "flash-linear-attention" in text
    assert "left out" in text


def test_lsh_rounds_are_printed_and_written(tmp_path, capsys):
    out = tmp_path / "lsh.json"
    words = ["bench", "lsh-rounds", "--rounds", "1,2", "--draws", "1", "--seq-len", "48",
             "--heads", "1", "--head-dim", "4", "--threads", "1", "--out", str(out)]  # fmt: skip
    code, text, _ = outcome(capsys, *words)
    assert code == 0
    assert "clustered" in text
    assert len(json.loads(out.read_text())["rows"]) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"lsh.json", "lsh-error.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lsh-rounds", "--rounds", "2,1"], "rounds must rise and be at least one, got [2, 1]"),
        (["atention"], "unknown benchmark 'atention'; did you mean attention?"),
        (["attention", "--length", "8"], "unknown option --length; did you mean --lengths?"),
        (["attention", "--lengths", "8,x"], "--lengths must be whole numbers with commas between"),
        (["attention", "--lengths", "16,8"], "lengths must rise and be at least one, got [16, 8]"),
        (["attention", "--mechanisms", "sofmax"], "mechanisms must be among softmax, "),
        (["attention", "--out", "a.txt"], "--out must name a .json file, got a.txt"),
        (["attention", "--dtype", "float8"], "--dtype must be one of float32, bfloat16, float16"),
        (["attention", "--heads", "0"], "heads must be at least 1, got 0"),
        (["decode", "--models", "mnst"], "models must be among mnist, cifar10, got 'mnst'"),
        (["decode", "--batches", ""], "--batches must be whole numbers with commas between"),
        (["train", "--width", "33"], "width must be a multiple of heads = 8, got 33"),
        (["train", "--mixers", "lineer"], "mixers must be among"),
        (["train", "--profile", "--mixers", "lineer"], "mixers must be among"),
        (["encoder", "--mixers", "lineer"], "mixers must be among"),
        (["encoder", "--width", "100"], "width must be a multiple of heads = 12, got 100"),
        (["encoder", "--out", "a.txt"], "--out must name a .json file, got a.txt"),
        (["compare", "a.json"], "bench compare needs two result files, got 1"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    code, out, err = outcome(capsys, "bench", *words)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("what", ["train", "encoder"])
def test_a_device_that_is_not_there_is_refused(what, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = outcome(capsys, "bench", what, "--device", "cuda")
    assert code == 2
    assert "--device must be cpu where torch can use no GPU, got cuda" in err


def test_files_that_cannot_be_compared_are_named(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    code, _, err = outcome(capsys, "bench", "compare", "nowhere.json", "nowhere.json")
    assert (code, "nowhere.json" in err) == (1, True)
    a = str(tmp_path / "a.json")
    code, _, err = outcome(capsys, "bench", "compare", a, a)
    assert code == 1
    assert "a.json must be a result file of subquad bench" in err


def test_help_lists_the_benchmarks_without_torch(capsys):
    code, text, _ = outcome(capsys, "bench", "--help")
    assert code == 0
    assert all(
        name in text for name in ("attention", "decode", "train", "encoder", "peers", "compare")
    )
    check = (
        "import sys, subquad.cli; subquad.cli.main(['bench', 'attention', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
