import pytest
import torch

from subquad.bench import decode
from subquad.bench.decode import measure_decode, new_report
from subquad.bench.decode_parts import filled_state
from subquad.bench.decode_totals import integrate, positions
from subquad.bench.options import DecodeOptions
from subquad.bench.tables import tables
from subquad.bench.timing import Progress
from subquad.models import PixelModel
from subquad.ops.state import state_size_bytes

TINY = {
    "models": ("tiny",), "batches": (1, 2), "positions": 2, "repetitions": 1, "seconds": 0.5,
    "threads": 1,
}  # fmt: skip


def build(name, mixer):
    return PixelModel(6, d_model=8, num_layers=1, num_heads=2, mixer=mixer)


def measured(**changes):
    options = DecodeOptions(**{**TINY, **changes})
    report, progress = new_report(options), Progress()
    measure_decode(options, report, progress=progress, build=build)
    assert progress.done == pytest.approx(progress.total)
    return report


def test_all_ways_to_generate_are_measured():
    report = measured()
    rates = {
        (x["mixer"], x["batch"]): x["images_per_second"]
        for x in report.summary
        if "images_per_second" in x
    }
    ways = ("linear", "linear, generate()", "softmax", "softmax, recomputed")
    assert set(rates) == {(mixer, batch) for mixer in ways for batch in (1, 2)}
    assert all(rate > 0 for rate in rates.values())
    (shares,) = (x for x in report.summary if "other_share" in x and x["batch"] == 2)
    parts = ("products_share", "state_update_share", "other_share")
    assert sum(shares[part] for part in parts) == pytest.approx(1)
    assert len(tables(report)) == 3


def test_only_the_cache_grows_with_the_position():
    report = measured(batches=(1,), has_recompute=False)

    def held(mixer, place):
        row = report.find(mixer=mixer, position=place, part="step")
        return row.more["state_bytes_per_image"]

    assert held("linear", 1) == held("linear", 5)
    assert held("softmax", 5) - held("softmax", 1) == 4 * 2 * 8 * 4  # 4 tokens of k and v


def test_what_does_not_fit_is_said_with_its_size(monkeypatch):
    monkeypatch.setattr(decode, "free_memory", lambda device: 10)
    report = measured(batches=(2,), has_recompute=False)
    assert report.rows == []
    reasons = {x["mixer"]: x["reason"] for x in report.left_out}
    assert reasons["softmax"].startswith("its KV cache of 0.0 GB does not fit in 0.0 GB")
    assert reasons["linear"].startswith("its state of")


@pytest.mark.parametrize("mixer", ["linear", "softmax"])
def test_a_state_of_noise_is_as_large_as_a_real_one(mixer):
    model = build("tiny", mixer).eval()
    _, real = model.decoder.prefill(
        torch.zeros(3, 4, model.decoder.token_width), model.init_state(3)
    )
    fake = filled_state(model, 3, 4)
    assert state_size_bytes(fake) == state_size_bytes(real)
    assert torch.equal(fake.position, real.position)


def test_long_calls_shrink_the_batch_and_say_so():
    report = measured(batches=(4,), limit=1e-9)
    (line,) = (x for x in report.summary if x["mixer"] == "softmax, recomputed")
    assert line["how"].endswith("the longest timed 1 at once and scaled")
    assert report.find(mixer="softmax, recomputed", position=5).more["measured_batch"] == 1


def test_a_generation_that_is_too_long_is_cut_and_scaled(monkeypatch):
    monkeypatch.setattr(decode, "FEWEST_STEPS", 2)
    report = measured(batches=(1,), mixers=("linear",), seconds=1e-9)
    (line,) = (x for x in report.summary if x["mixer"] == "linear, generate()")
    assert line["how"] == "2 steps of a generation, scaled to all"


def test_positions_are_spread_from_first_to_last():
    assert positions(784, 3) == [1, 392, 783]
    assert positions(2, 5) == [1]


def test_the_integral_of_a_line_is_its_sum():
    points = [(place, 2.0 * place + 1) for place in positions(784, 5)]
    assert integrate(points, 784) == pytest.approx(sum(2.0 * t + 1 for t in range(1, 784)))


def test_unknown_names_are_refused():
    options = DecodeOptions(models=("mnst",))
    with pytest.raises(ValueError, match="models must be among mnist, cifar10, got 'mnst'"):
        measure_decode(options, new_report(options))
    with pytest.raises(ValueError, match="mixers must be among linear, softmax, got 'lstm'"):
        measured(mixers=("lstm",))
    with pytest.raises(ValueError, match="positions must be at least 2, got 1"):
        measured(positions=1)
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        measured(batches=(0,))
