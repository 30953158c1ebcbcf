import json
import sys
from dataclasses import asdict

import pytest

from subquad.bench.encoder_speed import EncoderSize, main, measure_apart, table

SMALL = EncoderSize(batch_size=1, seq_len=20, d_model=16, num_layers=1, num_heads=2, d_ff=16)


def test_a_small_encoder_is_measured_in_this_process(capsys):
    main(["--child", "linear", "--size", '{"seq_len": 30, "batch_size": 1, "num_layers": 1}'])
    assert '"mixer": "linear"' in capsys.readouterr().out


def test_a_process_of_its_own_reports_back():
    measured = measure_apart("softmax", SMALL)
    assert measured.mixer == "softmax"
    assert measured.seconds > 0
    assert measured.peak_bytes >= 0
    assert "| softmax |" in table([measured], SMALL)


def test_the_numbers_go_to_a_file_with_where_they_were_measured(tmp_path, capsys):
    out = tmp_path / "speed.json"
    main(["--mixers", "linear", "--size", json.dumps(asdict(SMALL)), "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["size"] == asdict(SMALL)
    assert [m["mixer"] for m in found["measurements"]] == ["linear"]
    assert found["measurements"][0]["seconds"] > 0
    assert found["environment"]["packages"]["torch"]
    assert "| linear |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_authors_example_runs_with_both_mixers(capsys):
    size = EncoderSize()
    measurements = [measure_apart(mixer, size) for mixer in ("linear", "softmax")]
    for measured in measurements:
        output_bytes = 4 * size.batch_size * size.seq_len * size.d_model
        assert output_bytes < measured.peak_bytes < 40 * output_bytes
    with capsys.disabled():
        sys.stdout.write(f"\n{table(measurements, size)}\n")
