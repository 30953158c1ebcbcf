"""vit-resolution: what is timed, what is trained, and where one mixer overtakes the other."""

import dataclasses

import numpy as np
import pytest
import torch

from subquad.experiments import vit_resolution_run, vit_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.experiments.vit_resolution_run import (
    INFERENCE,
    TRAINING,
    overtaking,
    resolution_rows,
    sizes,
    upsampled,
)
from subquad.experiments.vit_rows import black_pictures, pictures

EXPERIMENT = EXPERIMENTS["vit-resolution"]


def smoke(**changes):
    options = EXPERIMENT.preset("smoke", "linear")
    return dataclasses.replace(options, device="cpu", **changes)


def run(folder, **changes):
    command = ["subquad", "run", "x"]
    return run_experiment(EXPERIMENT, smoke(**changes), folder, command=command, say=str)


def timed(patches, softmax, linear):
    medians = {"softmax": softmax, "linear": linear}
    return [
        {"mixer": name, "patches": patches, TRAINING: {"median": median}}
        for name, median in medians.items()
        if median is not None
    ]


def test_the_smoke_scale_times_and_trains_all_sizes_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(vit_resolution_run, "training_peak", lambda job: 4000)
    folder = tmp_path / "run"
    results = run(folder)
    assert [(row["mixer"], row["patches"]) for row in results["times"]] == [
        ("softmax", 4), ("linear", 4), ("softmax", 49), ("linear", 49),
    ]  # fmt: skip
    for row in results["times"]:
        assert row["seconds_per_image"] == row[TRAINING]["median"] / 2 > 0
        assert row["peak_bytes_per_image"] == 2000
        assert row[INFERENCE]["median"] > 0
    assert [(row["group"], row["label"]) for row in results["rows"]] == [
        ("4 patches", "softmax"), ("4 patches", "linear"),
        ("49 patches", "softmax"), ("49 patches", "linear"),
    ]  # fmt: skip
    step, inference, memory, accuracy = results["tables"]
    found = {row["mixer"]: row for row in results["times"] if row["patches"] == 49}
    ratio = found["softmax"][TRAINING]["median"] / found["linear"][TRAINING]["median"]
    assert step["lines"][1][0] == "49"
    assert step["lines"][1][-1] == f"{ratio:.2f}"
    assert "training" in step["title"]
    assert "inference" in inference["title"]
    assert memory["lines"][0] == ["4", "2 kB", "2 kB"]
    right = {row["label"]: 100 * row["test_accuracy"] for row in results["rows"][2:]}
    gap = right["linear"] - right["softmax"]
    assert accuracy["lines"][1] == [
        "49", f"{right['softmax']:.2f}", f"{right['linear']:.2f}", f"{gap:+.2f}",
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    for words in ("one seed", "Peak memory of a step", "Linear is faster than softmax"):
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert not any(" " in figure for figure in results["figures"])
    (folder / "results.json").unlink()
    monkeypatch.setattr(vit_resolution_run, "measure_size", None)
    assert run(folder)["times"] == results["times"]  # what was timed is not timed again


def test_overtaking_is_for_good():
    assert overtaking([*timed(4, 1, 2), *timed(16, 3, 2), *timed(64, 9, 4)], TRAINING) == 16
    assert overtaking([*timed(4, 3, 2), *timed(16, 1, 2), *timed(64, 9, 4)], TRAINING) == 64
    assert overtaking([*timed(4, 3, 2), *timed(16, 1, 2)], TRAINING) is None
    assert overtaking([*timed(4, 3, 2), *timed(16, None, 2)], TRAINING) == 4


def test_upsampled_images_are_the_same_with_pixels_of_2_by_2():
    images = pictures(smoke())
    large = upsampled(images)
    assert large.train.shape == (64, 28, 28, 1)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.testing.assert_array_equal(large.test[:, row::2, column::2], images.test[:64])
    np.testing.assert_array_equal(large.train_labels, images.train_labels[:64])


def test_3136_patches_are_timed_and_not_trained():
    options = EXPERIMENT.preset("laptop", "linear")
    images = black_pictures(options)
    assert [each.patches for each in sizes(options, images)] == [49, 196, 784, 3136]
    rows = resolution_rows(options, images)
    assert len(rows) == 12
    assert {row.facts["patches"] for row in rows} == {49, 196, 784}
    with torch.device("meta"):
        tokens = rows[8].build().model.grid
    assert tokens == (28, 28)


def test_an_estimate_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vit_rows, "load_images", None)
    cost = EXPERIMENT.estimate(smoke(seconds=600.0))
    assert (cost["rows"], cost["steps"]) == (4, 8)
    assert 20 < cost["minutes"] < 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_sizes": ()}, r"patch_sizes must be at least one, none twice, got \(\)"),
        ({"patch_sizes": (2, 2)}, r"patch_sizes must be at least one, none twice, got \(2, 2\)"),
        ({"mixers": "nothing"}, "mixers must be among .*, got 'nothing'"),
        ({"timed_batch": 0}, "timed_batch must be at least 1, got 0"),
        ({"repetitions": 0}, "repetitions must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        smoke(**change)


def test_patches_that_do_not_fit_are_refused_before_anything_is_timed():
    with pytest.raises(ValueError, match=r"patch_size must divide .* sides, 14 x 14, got 4"):
        sizes(smoke(patch_sizes=(7, 4)), black_pictures(smoke()))
