"""vit-inductive-bias: its 48 rows, their images, and the permutation that scrambles them."""

import dataclasses

import numpy as np
import pytest
import torch

from subquad.experiments import vit_rows
from subquad.experiments.registry import EXPERIMENTS
from subquad.experiments.runner import run_experiment
from subquad.experiments.vit_inductive_bias_run import (
    ORDER,
    SCRAMBLED,
    accuracy_table,
    accuracy_words,
    bias_rows,
    network,
    scrambled,
    subset,
)
from subquad.experiments.vit_options import NETWORKS
from subquad.experiments.vit_rows import black_pictures, pictures

EXPERIMENT = EXPERIMENTS["vit-inductive-bias"]


def smoke(**changes):
    options = EXPERIMENT.preset("smoke", "linear")
    return dataclasses.replace(options, device="cpu", **changes)


def row(network, count, mixed, accuracy):
    return {
        "network": network, "train_images": count, "scrambled": mixed, "test_accuracy": accuracy,
        "group": SCRAMBLED if mixed else ORDER,
    }  # fmt: skip


def test_the_smoke_scale_leaves_a_table_and_a_figure(tmp_path):
    folder, options = tmp_path / "run", smoke(networks="mlp,lstm", train_images=(50,))
    results = run_experiment(EXPERIMENT, options, folder, command=["subquad"], say=str)
    assert [(r["group"], r["label"]) for r in results["rows"]] == [
        (group, f"{NETWORKS[name]}, 50 images")
        for group in (ORDER, SCRAMBLED)
        for name in ("mlp", "lstm")
    ]
    assert results["accuracy"][SCRAMBLED]["lstm"]["50"] == results["rows"][3]["test_accuracy"]
    page = (folder / "report.html").read_text()
    for words in (
        "one seed",
        "Ours: test images right, %, pixels scrambled",
        "Table 5",
        "by chance",
    ):
        assert words in page
    assert all((folder / figure).is_file() for figure in results["figures"])
    assert not any(" " in figure for figure in results["figures"])


def test_there_are_48_rows_on_fixed_images_and_one_fixed_permutation():
    options = smoke(train_images=(3, 7, 20, 40))
    images = pictures(options)
    rows = bias_rows(options, images)
    assert len({r.name for r in rows}) == len(rows) == 48
    straight = next(r for r in rows if r.label.startswith("LSTM") and r.facts["train_images"] == 7)
    mixed = next(
        r for r in rows
        if r.facts == {**straight.facts, "scrambled": True}
    )  # fmt: skip
    found, moved = straight.build(), mixed.build()
    (x, labels), (y, same) = found.batch(0), moved.batch(0)
    torch.testing.assert_close(labels, same)
    torch.testing.assert_close(x.flatten(1).sort(1).values, y.flatten(1).sort(1).values)
    assert not torch.equal(x, y)
    for a, b in zip(found.model.parameters(), moved.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    model = moved.model.eval()
    with torch.no_grad():
        likeliest = model(moved.prepared(scrambled(images.test))).argmax(1).numpy()
    right = float((likeliest == images.test_labels).mean())  # test images are scrambled alike
    assert moved.evaluate(full=True)["accuracy"] == pytest.approx(right, abs=0.004)


def test_a_permutation_moves_the_pixels_of_all_images_alike_and_no_channel():
    images = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    moved = scrambled(images)
    assert moved.shape == images.shape
    np.testing.assert_array_equal(moved[1] - moved[0], np.full((3, 4, 2), 24))
    np.testing.assert_array_equal(moved[..., 1] - moved[..., 0], np.ones((2, 3, 4)))
    assert not np.array_equal(moved, images)
    np.testing.assert_array_equal(np.sort(moved[0, ..., 0].ravel()), images[0, ..., 0].ravel())
    np.testing.assert_array_equal(scrambled(images), moved)


def test_fewer_images_are_among_the_more():
    images = pictures(smoke())
    few, more = subset(images, 5), subset(images, 9)
    np.testing.assert_array_equal(few.train, more.train[:5])
    np.testing.assert_array_equal(few.train_labels, more.train_labels[:5])
    np.testing.assert_array_equal(few.test, images.test)
    for image, label in zip(few.train, few.train_labels, strict=True):
        same = (images.train == image).all((1, 2, 3))
        assert label in images.train_labels[same]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_and_is_of_the_size_that_is_said(name):
    options = smoke()
    images = black_pictures(options)
    model = network(options, name, images)
    model(torch.randn(4, 1, 14, 14)).square().mean().backward()
    again = network(options, name, images)
    for (weight, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), weight  # the seed fixes them
    laptop = EXPERIMENT.preset("laptop", "linear")
    with torch.device("meta"):
        large = network(laptop, name, black_pictures(laptop))
    assert 100_000 < sum(p.numel() for p in large.parameters()) < 300_000


def test_the_table_leaves_out_what_did_not_end():
    rows = [row("mlp", 5, False, 0.5), {**row("mlp", 9, False, 0), "failed": "the loss is nan"}]
    del rows[1]["test_accuracy"]
    assert accuracy_table(rows) == {ORDER: {"mlp": {"5": 0.5}}}


def test_the_noise_is_that_of_plain_layers():
    rows = [
        row("mlp", 5, False, 0.5), row("mlp", 5, True, 0.52), row("mlp", 9, False, 0.7),
        row("vit", 5, False, 0.1), row("vit", 5, True, 0.9),
    ]  # fmt: skip
    assert "differ by up to 2.00 points" in accuracy_words(rows)
    assert "no rows to tell the noise by" in accuracy_words(rows[3:])


def test_an_estimate_times_each_network_once_and_needs_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vit_rows, "load_images", None)
    cost = EXPERIMENT.estimate(smoke(networks="mlp,lstm", train_images=(1000, 5000, 60_000)))
    assert (cost["rows"], cost["steps"]) == (12, 24)
    assert cost["minutes"] > 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": ""}, "networks must be at least one, none twice, got ''"),
        ({"networks": "mlp,mlp"}, "networks must be at least one, none twice, got 'mlp,mlp'"),
        ({"networks": "cnn"}, "networks must be among vit, hybrid, .*, got 'cnn'"),
        ({"train_images": ()}, r"train_images must be above 0 and none twice, got \(\)"),
        ({"train_images": (0, 5)}, r"train_images must be above 0 and none twice, got \(0, 5\)"),
        ({"train_images": (5, 5)}, r"train_images must be above 0 and none twice, got \(5, 5\)"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        smoke(**change)


def test_more_images_than_there_are_are_refused():
    with pytest.raises(ValueError, match="train_images must be at most 4,500, got 5,000"):
        bias_rows(smoke(train_images=(5000,)), pictures(smoke()))
