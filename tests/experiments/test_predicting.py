import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from subquad.experiments.predicting import UnfitPictures, predict, read_for
from subquad.models import LambdaResNet
from subquad.tasks.classifier import Classifier, Labels

Image = pytest.importorskip("PIL.Image")

GREY = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)


def labels(**options):
    given = {"classes": ("a", "b", "c"), "image_size": (8, 8), "channels": 1}
    return Labels(**{**given, "mean": (0.5,), "std": (0.5,), **options})


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def test_exact_models_take_exact_images(tmp_path):
    path = save(tmp_path / "x.png", GREY)
    assert_array_equal(read_for(labels(), [path])[0, ..., 0], GREY)
    assert_array_equal(read_for(labels(), [path], invert=True)[0, ..., 0], 255 - GREY)


def test_other_sizes_and_channels_are_refused_each_in_a_sentence(tmp_path):
    good = save(tmp_path / "x.png", GREY)
    wide = save(tmp_path / "wide.png", np.zeros((8, 10), np.uint8))
    colour = save(tmp_path / "colour.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UnfitPictures, match=r"\(and 1 more files\)") as caught:
        read_for(labels(), [good, wide, colour])
    assert [sentence.removeprefix(str(tmp_path) + "/") for sentence in caught.value.sentences] == [
        "wide.png must be 8 pixels wide and 8 high for this model, got 10 and 8; "
        "--resize makes it so",
        "colour.png must be grey for this model, but it is in colours; --resize converts it",
    ]
    assert read_for(labels(), [good, wide, colour], resize=True).shape == (3, 8, 8, 1)


def test_larger_ones_are_resized_and_their_middle_taken(tmp_path):
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 10:30] = 200  # the middle square
    path = save(tmp_path / "x.png", picture)
    assert set(read_for(labels(fit="resize"), [path]).ravel().tolist()) <= set(range(150, 256))
    whole = read_for(labels(fit="resize", resize=10, image_size=(10, 10)), [path])
    cut = read_for(labels(fit="resize", resize=10), [path])
    assert_array_equal(cut, whole[:, 1:9, 1:9])


def test_images_that_are_not_square_are_never_resized(tmp_path):
    path = save(tmp_path / "x.png", np.zeros((8, 12), np.uint8))
    assert read_for(labels(image_size=(8, 12)), [path]).shape == (1, 8, 12, 1)
    with pytest.raises(
        ValueError, match=r"resize needs a classifier of squares, got one of \(8, 1"
    ):
        read_for(labels(image_size=(8, 12)), [path], resize=True)


def test_the_likeliest_come_first():
    torch.manual_seed(0)
    model = LambdaResNet(
        ("C", "C", "C", "L"), num_classes=3, in_channels=1, width=8, window=3
    ).eval()
    classifier = Classifier(model=model, labels=labels())
    images = np.stack([GREY, 255 - GREY])[..., None]
    shares = classifier.probabilities(images)
    found = predict(classifier, images, top=2)
    for row, guesses in zip(shares, found, strict=True):
        order = row.argsort(descending=True)[:2].tolist()
        assert [guess.label for guess in guesses] == ["abc"[i] for i in order]
        assert [guess.probability for guess in guesses] == [float(row[i]) for i in order]
    for top in (0, 4):
        with pytest.raises(
            ValueError, match=f"top must be from 1 to the model's 3 classes, got {top}"
        ):
            predict(classifier, images, top=top)
