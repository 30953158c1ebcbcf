import sys

import pytest

from subquad.bench import encoder_speed
from subquad.bench.encoder_speed import encoder_table, measure_encoder, memory_in_this_process
from subquad.bench.options import EncoderOptions, EncoderSize

SMALL = EncoderSize(batch_size=1, seq_len=20, d_model=16, num_layers=1, num_heads=2, d_ff=16)


def options(**changes):
    return EncoderOptions(**{"size": SMALL, "threads": 1, **changes})


def test_each_mixer_is_timed_and_its_memory_measured_in_another_process():
    size = EncoderSize(batch_size=1, seq_len=2000, d_model=32, num_layers=1, num_heads=2, d_ff=1000)
    (measured,) = measure_encoder(options(size=size, mixers=("softmax",)))
    assert measured.mixer == "softmax"
    assert measured.threads == 1
    assert measured.seconds > 0
    assert measured.cpu_seconds > 0
    assert measured.peak_bytes > 4 * size.seq_len * size.d_ff
    table = encoder_table([measured], size)
    assert table.rows[0][0] == "softmax"
    assert table.rows[0][3] == f"{measured.peak_bytes / 1e6:.0f}"


def test_memory_may_be_left_out():
    measured = list(measure_encoder(options(has_memory=False)))
    assert [m.mixer for m in measured] == ["linear", "softmax"]
    assert [m.peak_bytes for m in measured] == [None, None]
    assert [row[3] for row in encoder_table(measured, SMALL).rows] == ["", ""]


def test_memory_that_could_not_be_measured_is_left_out(monkeypatch):
    monkeypatch.setattr(encoder_speed, "measured_apart", lambda job: iter(()))
    (measured,) = measure_encoder(options(mixers=("linear",)))
    assert measured.peak_bytes is None


def test_the_childs_job_is_one_pass_of_this_size(monkeypatch):
    jobs, told = [], []
    monkeypatch.setattr(encoder_speed, "measured_apart", lambda job: jobs.append(job) or iter(()))
    list(measure_encoder(options(mixers=("linear",))))
    monkeypatch.setattr(encoder_speed, "peak_bytes", lambda run, device: run().shape)
    memory_in_this_process(jobs[0], told.append)
    assert told == [{"peak_bytes": (1, 20, 16)}]


def test_outputs_that_are_not_finite_are_an_error(monkeypatch):
    forward = encoder_speed._forward

    def broken(*given):
        run = forward(*given)
        return lambda: run() / 0

    monkeypatch.setattr(encoder_speed, "_forward", broken)
    with pytest.raises(RuntimeError, match="mixer linear gave outputs that are not finite"):
        list(measure_encoder(options()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"mixers must be among .*linear.*, got 'lineer'"):
        list(measure_encoder(options(mixers=("linear", "lineer"))))
    with pytest.raises(ValueError, match="mixers must be at least one, got none"):
        options(mixers=())
    with pytest.raises(ValueError, match="d_ff must be at least 1, got 0"):
        EncoderSize(d_ff=0)
    with pytest.raises(ValueError, match="width must be a multiple of heads = 12, got 100"):
        EncoderSize(d_model=100)


@pytest.mark.slow
def test_the_authors_example_runs_with_both_mixers(capsys):
    size = EncoderSize()
    measurements = list(measure_encoder(EncoderOptions()))
    for measured in measurements:
        output_bytes = 4 * size.batch_size * size.seq_len * size.d_model
        assert output_bytes < measured.peak_bytes < 40 * output_bytes
    with capsys.disabled():
        sys.stdout.write(f"\n{encoder_table(measurements, size)}\n")
