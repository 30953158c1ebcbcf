"""``subquad bench vit``. No test here asserts a time."""

import json

import pytest
import torch

from subquad.bench import image_job, vit
from subquad.bench.image_job import ImageJob, training_peak, training_step
from subquad.bench.memory import measured_apart
from subquad.bench.tables import tables
from subquad.bench.timing import Progress
from subquad.bench.vit import BLOCK, BOTH, FORWARD, Cell, build, measure_vit, new_report
from subquad.bench.vit_options import ViTOptions
from subquad.cli import main

TINY = {
    "preset": "Ti/16", "image_sizes": (32,), "block_tokens": (8, 16), "repetitions": 1,
    "seconds": 0.1, "threads": 1, "has_memory": False,
}  # fmt: skip
SMALL = {
    "image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "d_model": 8,
    "num_layers": 1, "num_heads": 2,
}  # fmt: skip


@pytest.fixture
def shallow(monkeypatch):
    whole = vit.VisionTransformer.preset

    def preset(name, *rest, **changes):
        return whole(name, *rest, **{"num_layers": 1, "num_classes": 3, **changes})

    monkeypatch.setattr(vit.VisionTransformer, "preset", preset)


def test_ratios_are_those_of_the_times(shallow):
    options = ViTOptions(**TINY)
    report, progress = new_report(options), Progress()
    measure_vit(options, report, progress=progress)
    assert progress.done == progress.total == 18
    names = ("what", "tokens", "mixer", "pass")
    assert {tuple(row.what[name] for name in names) for row in report.rows} == {
        (what, tokens, mixer, which)
        for what, tokens in (("Ti/16", 4), (BLOCK, 8), (BLOCK, 16))
        for mixer, which in [
            ("softmax", FORWARD), ("softmax", BOTH), ("softmax, again", BOTH),
            ("linear", FORWARD), ("linear", BOTH), ("linear, again", BOTH),
        ]
    }  # fmt: skip
    for row in report.rows:
        softmax = report.find(**{**row.what, "mixer": "softmax"})
        ratio = softmax.seconds.median / row.seconds.median
        assert row.more["faster_than_softmax"] == ratio
        assert row.more["images_per_second"] == 1 / row.seconds.median
    (table,) = tables(report)
    assert len(table.rows) == 18
    assert table.rows[0][:4] == ("Ti/16", "4", FORWARD, "softmax")


def test_a_block_is_that_of_the_preset():
    options = ViTOptions(**TINY)
    block = build(options, Cell(BLOCK, 8, 8), "linear")
    model = build(options, Cell("Ti/16", 32, 4), "linear")
    ours, wanted = (sum(p.numel() for p in m.parameters()) for m in (block, model.blocks[0]))
    assert ours == wanted
    assert build(options, Cell(BLOCK, 8, 8), "linformer")(torch.randn(1, 8, 192)).shape[1] == 8


def test_a_mixer_that_runs_again_does_so_in_models_and_blocks():
    options = ViTOptions(**TINY)
    assert build(options, Cell("Ti/16", 32, 4), "linear, again").checkpointing == "mixers"
    assert build(options, Cell(BLOCK, 8, 8), "linear, again").repeat_mixer
    assert not build(options, Cell(BLOCK, 8, 8), "linear").repeat_mixer
    report = new_report(ViTOptions(**TINY, repeats=False))
    measure_vit(ViTOptions(**{**TINY, "image_sizes": ()}, repeats=False), report)
    assert {row.what["mixer"] for row in report.rows} == {"softmax", "linear"}


def test_a_mixer_that_is_wrong_in_float32_is_not_timed(shallow, monkeypatch):
    class Wrong(vit.MIXERS["linear"]):
        def forward(self, x, **masks):
            y = super().forward(x, **masks)
            return y if x.dtype == torch.float64 else 2 * y

    monkeypatch.setitem(vit.MIXERS, "linear", Wrong)
    options = ViTOptions(**{**TINY, "block_tokens": ()})
    report = new_report(options)
    with pytest.raises(RuntimeError, match=r"the mixer linear is .* off in float32, and was not"):
        measure_vit(options, report)
    assert not report.rows


def test_what_would_take_too_long_is_left_out(shallow):
    options = ViTOptions(**{**TINY, "image_sizes": (), "limit": 1e-9})
    report, progress = new_report(options), Progress()
    measure_vit(options, report, progress=progress)
    assert {row.what["tokens"] for row in report.rows} == {8}
    assert len(report.left_out) == 6
    for left in report.left_out:
        assert left["tokens"] == 16
        assert "expected to take" in left["reason"]
        assert "more than 1e-09" in left["reason"]
    assert progress.done == progress.total


def test_memory_is_measured_in_a_process_of_its_own():
    options = ViTOptions(**{**TINY, "block_tokens": (64,)})
    job = {"kind": "vit", "options": new_report(options).options, "mixer": "linear"}
    (found,) = measured_apart({**job, "cell": [BLOCK, 512, 512]})
    assert 1e6 < found["peak_bytes"] < 1e9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_sizes": (64, 32)}, r"image_sizes must rise, got \[64, 32\]"),
        ({"block_tokens": (0,)}, "block_tokens must be at least 1, got 0"),
        ({"image_sizes": (), "block_tokens": ()}, "image_sizes or block_tokens must name a size"),
        ({"mixers": ()}, r"mixers must be at least one, none twice, got \[\]"),
        ({"mixers": ("linear", "linear")}, "mixers must be at least one, none twice, got"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"limit": 0.0}, "limit must be above 0, got 0"),
        ({"mixers": ("nothing",)}, "mixers must be among softmax, .*, got 'nothing'"),
        ({"preset": "S"}, "name must be a size of Ti, S, B, L, H and a patch"),
        ({"image_sizes": (30,)}, r"sides of images must be multiples of patch_size \(16\), got"),
    ],
)
def test_bad_options_are_refused_before_anything_is_timed(changes, message):
    with pytest.raises(ValueError, match=message):
        new_report(ViTOptions(**{**TINY, **changes}))


def test_an_image_job_builds_any_model_with_any_mixer():
    job = ImageJob(
        model="VisionTransformer", arguments=SMALL, shape=(2, 1, 8, 8), mixer="local",
        mixer_settings={"window": 2},
    )  # fmt: skip
    assert image_job.build(job).blocks[0].mixer.window == 2
    mlp = {"image_size": 8, "in_channels": 1, "num_classes": 3, "width": 4}
    model = image_job.build(ImageJob(model="PixelMLP", arguments=mlp, shape=(2, 1, 8, 8)))
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        training_step(model, torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), precision)
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Nothing"}, "model must be one of .*VisionTransformer.*, got 'Nothing'"),
        ({"mixer": "nothing"}, "mixer must be one of softmax, .*, got 'nothing'"),
    ],
)
def test_an_image_job_of_something_unknown_is_refused(changes, message):
    job = {"model": "VisionTransformer", "arguments": SMALL, "shape": (1, 1, 8, 8), **changes}
    with pytest.raises(ValueError, match=message):
        image_job.build(ImageJob(**job))


@pytest.mark.slow
def test_a_step_of_more_images_needs_more_memory():
    arguments = {**SMALL, "image_size": 32}
    peaks = [
        training_peak(
            ImageJob(model="VisionTransformer", arguments=arguments, shape=(count, 1, 32, 32))
        )
        for count in (2, 256)
    ]
    assert 0 <= peaks[0] < peaks[1]


@pytest.mark.slow
def test_a_job_that_cannot_be_done_gives_no_peak():
    assert training_peak(ImageJob(model="Nothing", arguments={}, shape=(1, 1, 8, 8))) is None


def test_the_command_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "vit.json"
    words = ["--preset", "Ti/16", "--image-sizes", "", "--block-tokens", "8", "--no-memory"]
    code = main(
        ["bench", "vit", *words, "--repetitions", "1", "--seconds", "0.1", "--out", str(out)]
    )
    assert code == 0
    found = json.loads(out.read_text())
    assert found["kind"] == "vit"
    names = [row["what"]["mixer"] for row in found["rows"]]
    assert names == ["softmax"] * 2 + ["linear"] * 2 + ["softmax, again", "linear, again"]
    shown = capsys.readouterr().out
    for words in ("Vision Transformers", "one block", "× softmax"):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mixers", "nothing"], "mixers must be among softmax"),
        (["--preset", "S"], "name must be a size of Ti, S, B, L, H"),
        (["--image-sizes", "large"], "--image-sizes must be whole numbers with commas between"),
        (["--image-sizes", "", "--block-tokens", ""], "must name a size, got none"),
    ],
)
def test_the_command_refuses_in_one_sentence(words, message, capsys, unhooked):
    assert main(["bench", "vit", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
