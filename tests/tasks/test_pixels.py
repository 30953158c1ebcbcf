import math
import re

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from subquad.models import PixelModel
from subquad.tasks.config import TrainConfig
from subquad.tasks.pixels import PixelTask
from subquad.tasks.training import fit

L = 9


def build(num_classes=None, dropout=0.0):
    torch.manual_seed(0)
    return PixelModel(
        L,
        num_layers=1,
        num_heads=2,
        d_model=16,
        d_ff=16,
        num_mixtures=2,
        dropout=dropout,
        num_classes=num_classes,
    )


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, L), dtype=np.uint8)


def task(n=10, batch_size=4, model=None, **options):
    return PixelTask(model or build(), images(n), images(7, 1), batch_size=batch_size, **options)


def test_each_pass_sees_each_image_once():
    one = task(n=10, batch_size=4)
    seen = torch.cat([one.batch(step)[0] for step in range(5)]).numpy()
    for rows in (seen[:10], seen[10:]):
        assert sorted(map(tuple, rows)) == sorted(map(tuple, images(10)))
    assert not (seen[:10] == seen[10:]).all()


def test_a_batch_is_a_pure_function_of_seed_and_step():
    one, two, other = task(), task(), task(seed=1)
    for step in (3, 0, 17, 3):
        assert_close(one.batch(step), two.batch(step))
    two.batch(40)
    assert_close(one.batch(5), two.batch(5))
    assert not (one.batch(0)[0] == other.batch(0)[0]).all()


def test_more_in_a_batch_than_there_are_images():
    batch = task(n=3, batch_size=8).batch(1)[0]
    assert batch.shape == (8, L)


def test_labels_go_with_their_images():
    labels = np.arange(10, dtype=np.uint8)
    one = task(model=build(10), train_labels=labels, test_labels=np.zeros(7, np.uint8))
    pixels, classes = one.batch(2)
    assert_close(pixels, torch.from_numpy(images(10)[classes.numpy()]))
    assert float(one.loss(pixels, classes).detach()) > 0
    assert one.evaluate(full=True)["loss"] > 0


def test_labels_are_left_out_where_the_model_has_no_classes():
    assert len(task(train_labels=np.zeros(10, np.uint8)).batch(0)) == 1


def test_bits_per_dim_are_nats_over_ln_2():
    one = task()
    batch = one.batch(0)
    expected = one.model.nll(*batch).mean()
    assert_close(one.loss(*batch), expected)
    assert one.metric(math.log(2)) == 1.0


@pytest.mark.parametrize("evaluation_batch", [1, 3, 7, 100])
def test_evaluation_in_parts_is_the_mean_over_all(evaluation_batch):
    one = task(evaluation_batch=evaluation_batch)
    nats = one.model.eval().nll(torch.from_numpy(images(7, 1))).mean()
    expected = float(nats.detach()) / math.log(2)
    assert one.evaluate(full=True)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_quick_evaluation_takes_the_same_few():
    one, two = task(quick_images=3), task(quick_images=3, seed=5)
    assert one.evaluate(full=False) == two.evaluate(full=False)
    assert one.evaluate(full=False) != one.evaluate(full=True)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_disturbs_nothing(training):
    one = task(model=build(dropout=0.5))
    one.model.train(training)
    before = torch.get_rng_state()
    assert one.evaluate(full=True) == one.evaluate(full=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.model.training is training


def test_the_model_learns_the_first_bytes():
    one = task()
    counts = np.bincount(images(10)[:, 0], minlength=256)
    assert_close(one.model.first_byte_counts, torch.from_numpy(counts).float())


def test_the_identity_tells_data_apart():
    other = PixelTask(build(), images(10, 2), images(7, 1), batch_size=4)
    assert task().identity == task().identity
    assert task().identity != other.identity
    other = PixelTask(build(), images(10), images(7, 2), batch_size=4)
    assert task().identity != other.identity


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"evaluation_batch": 0}, ValueError, "evaluation_batch must be at least 1, got 0"),
        ({"quick_images": -1}, ValueError, "quick_images must be at least 1, got -1"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"train": images(3).astype(np.float32)}, TypeError, "train must be uint8, got float32"),
        (
            {"train": images(3)[:, 1:]},
            ValueError,
            "train must have the shape (N, 9) with N >= 1, got (3, 8)",
        ),
        (
            {"test": images(0)},
            ValueError,
            "test must have the shape (N, 9) with N >= 1, got (0, 9)",
        ),
        (
            {"model": build(3)},
            ValueError,
            "train_labels must have the shape (5,) for a model with num_classes, got None",
        ),
        (
            {"model": build(3), "train_labels": np.full(5, 3, np.uint8)},
            ValueError,
            "train_labels must be from 0 to 2, got 3 to 3",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, error, sentence):
    given = {"model": build(), "train": images(5), "test": images(5), "batch_size": 2, **change}
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        PixelTask(given.pop("model"), given.pop("train"), given.pop("test"), **given)


def test_a_pixel_model_trains(tmp_path):
    one = task(n=4)
    before = one.evaluate(full=True)["loss"]
    options = TrainConfig(max_steps=30, batch_size=4, lr=1e-2, optimizer="adamw", device="cpu")
    fit(one, options, tmp_path, quiet=True)
    assert one.evaluate(full=True)["loss"] < before
