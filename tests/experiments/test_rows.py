"""The experiments of many rows: their tables of rows, and what a run leaves and takes up again."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from subquad.data.images import ImageSet
from subquad.experiments import (
    compare_copy,
    compare_copy_run,
    feature_maps_run,
    hybrid_share_run,
    rows,
)
from subquad.experiments.copy_rows import state_bytes
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import export_results, run_experiment
from subquad.experiments.spec import MIXER_HELP
from subquad.ops import feature_maps
from subquad.ops.feature_maps import FeatureMap

COMMAND = ["subquad", "run", "x"]
NAMES = ["compare-copy", "feature-maps", "hybrid-share"]


@pytest.fixture(autouse=True)
def eight_images(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(8, dtype=np.uint8)
    found = ImageSet(
        train=images,
        train_labels=labels,
        test=images,
        test_labels=labels,
        source="eight images of noise",
    )
    monkeypatch.setattr(feature_maps_run, "load_images", lambda *_, **__: found)


@pytest.fixture
def few_rows(monkeypatch):
    """Two rows a task, and few measurements: the training loop is the same for all rows."""
    monkeypatch.setattr("subquad.tasks.marked_tokens.FULL_BATCHES", 1)
    maps = feature_maps_run.maps
    monkeypatch.setitem(compare_copy.ROWS, "smoke", "linear,lstm")
    monkeypatch.setattr(feature_maps_run, "maps", lambda n: {"relu": maps(n)["relu"]})
    monkeypatch.setattr(hybrid_share_run, "SHARES", (12.5, 100.0))


def smoke(name, **changes):
    options = EXPERIMENTS[name].preset("smoke", "linear")
    train = dataclasses.replace(
        options.train, max_steps=2, warmup_steps=1, batch_size=2, eval_every=2, log_every=1
    )
    if name == "feature-maps":
        changes = {"image_steps": 2, **changes}
    return dataclasses.replace(options, train=train, device="cpu", **changes)


def run(name, folder, **changes):
    options = smoke(name, **changes)
    return run_experiment(EXPERIMENTS[name], options, folder, command=COMMAND, say=str)


EXPECTED = {
    "compare-copy": (["copy-linear", "copy-lstm"], ["curves-copy", "attention-linear"]),
    "feature-maps": (
        ["copy-softmax", "copy-relu", "images-softmax", "images-relu"],
        ["curves-copy", "curves-images", "distance", "attention-softmax", "attention-relu"],
    ),
    "hybrid-share": (
        ["copy-12.5", "copy-100", "recall-12.5", "recall-100"],
        ["curves-copy", "curves-recall", "state"],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_scale_leaves_a_folder_a_row_and_one_report(tmp_path, few_rows, name):
    folder = tmp_path / "run"
    results = run(name, folder)
    names, figures = EXPECTED[name]
    assert [row["row"] for row in results["rows"]] == names
    assert list(results["figures"]) == [f"figures/{figure}.png" for figure in figures]
    assert json.loads((folder / "results.json").read_text()) == results
    assert (results["experiment"], results["scale"]) == (name, "smoke")
    for row in results["rows"]:
        assert 0 < row["test"] < 100
        assert row["steps"] == 2
        assert (folder / row["row"] / "metrics.csv").is_file()
        assert json.loads((folder / row["row"] / "results.json").read_text()) == row
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {*names, "figures"}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures)
    for row in results["rows"]:
        assert f"<td>{row['label']}</td>" in page
        assert f"Measured in this run: {row['group']}" in page
    for words in ("one seed", "subquad run x", "batch_size"):
        assert words in page
    assert str(tmp_path) not in page
    export_results(folder, tmp_path / "exported" / "one.json")
    assert len(list((tmp_path / "exported" / "one").iterdir())) == len(figures)


def test_a_stopped_experiment_skips_finished_rows_and_ends_as_one_that_was_not(
    tmp_path, few_rows, monkeypatch
):
    whole = run("compare-copy", tmp_path / "whole")
    real, calls = rows.fit, []

    def second_row_is_stopped(*arguments):
        calls.append(arguments)
        found = real(*arguments)
        return dataclasses.replace(found, interrupted=len(calls) == 2)

    monkeypatch.setattr(rows, "fit", second_row_is_stopped)
    with pytest.raises(KeyboardInterrupt):
        run("compare-copy", tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    said = []
    options = smoke("compare-copy")
    resumed = run_experiment(
        EXPERIMENTS["compare-copy"], options, tmp_path / "run", command=COMMAND, say=said.append
    )
    assert len(calls) == 3  # the first row was not trained again
    assert said[0] == "row 1 of 2: copy-linear, finished"
    assert [row["test"] for row in resumed["rows"]] == [row["test"] for row in whole["rows"]]
    monkeypatch.setattr(rows, "fit", None)
    assert run("compare-copy", tmp_path / "run") == resumed


def test_rows_of_other_options_are_refused(tmp_path, few_rows, monkeypatch):
    run("compare-copy", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()  # stopped before the end
    with pytest.raises(ValueError, match=r"copy-linear holds a run with --max-len 32, not 40"):
        run("compare-copy", tmp_path / "run", max_len=40)


def test_a_row_that_goes_bad_is_told_and_the_others_go_on(tmp_path, few_rows, monkeypatch):
    real, calls = rows.fit, []

    def first_row_goes_bad(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise FloatingPointError(f"the loss is nan at step 1 of 2; kept in {tmp_path}")
        return real(*arguments)

    monkeypatch.setattr(rows, "fit", first_row_goes_bad)
    results = run("hybrid-share", tmp_path / "run")
    first, *others = results["rows"]
    assert first["failed"] == "the loss is nan at step 1 of 2"
    assert "test" not in first
    assert all("test" in row for row in others)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "12.5 %: the loss is nan at step 1 of 2." in page


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_adds_up_the_rows_and_starts_nothing(tmp_path, few_rows, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_maps_run, "load_images", None)
    cost = EXPERIMENTS[name].estimate(smoke(name))
    assert cost["rows"] == len(EXPECTED[name][0])
    assert cost["steps"] == 2 * cost["rows"]
    assert cost["flops_per_step"] == cost["flops"] // cost["steps"] > 0
    assert min(cost[key] for key in ("parameters", "minutes", "memory_gb", "disk_gb")) > 0
    assert not any(tmp_path.iterdir())


def test_every_causal_mixer_has_a_row_whose_reach_fits_the_length():
    found = compare_copy_run.mixers(64)
    assert set(found) == set(MIXER_HELP)
    names = EXPERIMENTS["compare-copy"].preset("long", "linear").names
    assert set(names) == set(MIXER_HELP)
    assert names[:3] == ("softmax", "linear", "lsh-4")  # those of the paper's figure
    for name in ("local", "hybrid"):
        assert found[name].keywords["window"] == 16
    assert found["strided"].keywords["stride"] == 8
    assert [found[f"lsh-{n}"].keywords["num_hashes"] for n in (1, 4, 8)] == [1, 4, 8]
    lsh = compare_copy_run.mixers(128)["lsh-4"].keywords
    assert (lsh["chunk_size"], lsh["num_buckets"]) == (32, 64)  # the paper's


@pytest.mark.parametrize("name", NAMES)
def test_every_row_can_be_trained(name):
    options = smoke(name)
    found = {
        "compare-copy": lambda: compare_copy_run.compare_copy_rows(options),
        "feature-maps": lambda: feature_maps_run.feature_map_rows(
            options, feature_maps_run.black_images(options)
        ),
        "hybrid-share": lambda: hybrid_share_run.hybrid_share_rows(options),
    }[name]()
    assert len({row.name for row in found}) == len(found)
    for row in found:
        task = row.build()
        loss = task.loss(*task.batch(0))
        loss.backward()
        assert torch.isfinite(loss), row.name
        for weight, p in task.model.named_parameters():
            assert p.grad is None or torch.isfinite(p.grad).all(), (row.name, weight)


def test_every_map_of_the_library_has_a_row():
    named = {value for value in vars(feature_maps).values() if isinstance(value, FeatureMap)}
    named = {value for value in named if not isinstance(value, type)}
    built = feature_maps_run.maps(16)
    assert named <= {build(2, 16) for build in built.values()}
    sizes = [build(2, 16).num_features(16) for name, build in built.items() if "learned" in name]
    assert sizes == [8, 16, 64]
    assert list(built)[-3:] == ["learned 8", "learned 16", "learned 64"]


def test_a_learned_map_is_of_its_layer_and_identity_is_not_divided():
    options = smoke("feature-maps")
    factories = feature_maps_run.mixers(options)
    first, second = (factories["learned 8"](32, 2, is_causal=True) for _ in range(2))
    assert first.feature_map is not second.feature_map
    assert first.num_features == 8
    assert not factories["identity"](32, 2, is_causal=True).normalize
    assert factories["relu"](32, 2, is_causal=True).normalize


def test_the_shares_are_of_all_heads_and_their_states_differ():
    options = smoke("hybrid-share", max_len=24)
    # Rotary positions would add one integer to the state of each kind of heads.
    model = dataclasses.replace(options.model, positions="none")
    options = dataclasses.replace(options, model=model)
    kinds, state = [], {}
    for row in hybrid_share_run.hybrid_share_rows(options)[:5]:
        model = row.build().model
        blocks = model.decoder.stack.blocks
        kinds.append([type(block.mixer).__name__ for block in blocks])
        state[row.facts["softmax_percent"]] = state_bytes(model, 24)
    assert kinds[0] == ["LinearAttention"] * 2
    assert sorted(kinds[1]) == ["HybridAttention", "LinearAttention"]  # 1 head of 8
    assert kinds[2] == kinds[3] == ["HybridAttention"] * 2
    assert kinds[4] == ["SoftmaxAttention"] * 2
    # 8 heads of width 8, 24 tokens, float32: keys and values against running sums.
    one_softmax, one_linear = 2 * 24 * 8 * 4, (8 * 8 + 8) * 4
    for share, found in state.items():
        count = share / 100 * 8
        assert found == count * one_softmax + (8 - count) * one_linear


def test_a_window_bounds_the_state_of_softmax_heads():
    options = smoke("hybrid-share", softmax_window=4)
    model = hybrid_share_run.hybrid_share_rows(options)[4].build().model
    short, long = (state_bytes(model, n) for n in (16, 32))
    assert short == long


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("compare-copy", {"max_len": 7}, "max_len must be at least 8, got 7"),
        ("compare-copy", {"num_symbols": 0}, "num_symbols must be at least 1, got 0"),
        ("compare-copy", {"mixers": " ,"}, "mixers must be at least one, none twice, got ' ,'"),
        ("compare-copy", {"mixers": "lstm,lstm"}, "mixers must be at least one, none twice"),
        ("compare-copy", {"mixers": "lsh"}, "mixers must be among linear, .* got 'lsh'"),
        ("feature-maps", {"image_steps": 0}, "image_steps must be at least 1, got 0"),
        ("feature-maps", {"image_steps": 1}, "image_steps must be above warmup_steps = 1, got 1"),
        ("hybrid-share", {"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ("hybrid-share", {"num_keys": 3}, "num_keys must be at least 4, got 3"),
        ("hybrid-share", {"softmax_window": 0}, "softmax_window must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        smoke(name, **change)


def test_heads_that_12_5_per_cent_cannot_be_taken_of_are_refused():
    model = dataclasses.replace(smoke("hybrid-share").model, num_layers=1)
    with pytest.raises(ValueError, match=r"multiple of 8, .* got 1 layers of 4"):
        smoke("hybrid-share", model=model)
