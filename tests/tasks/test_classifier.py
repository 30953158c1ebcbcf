import json

import numpy as np
import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.models import LambdaResNet
from subquad.tasks.classifier import Labels, load_classifier, save_classifier

KNOWN = {"classes": ("cat", "dog", "owl"), "image_size": 8, "mean": (0.5, 0.4, 0.3)}
KNOWN |= {"std": (0.2, 0.25, 0.3)}


def network(**options):
    torch.manual_seed(0)
    stages = ("C", "C", "C", "L")
    return LambdaResNet(stages, **{"num_classes": 3, "width": 8, "window": 3, **options}).eval()


@pytest.fixture
def folder(tmp_path):
    save_classifier(network(), tmp_path / "model", **KNOWN)
    return tmp_path / "model"


def test_what_is_saved_is_what_is_loaded(folder):
    found = load_classifier(folder)
    assert found.labels == Labels(**{**KNOWN, "image_size": (8, 8), "channels": 3})
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "labels.json",
        "model.safetensors",
    ]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    x = torch.tensor((images / 255 - np.array(KNOWN["mean"])) / np.array(KNOWN["std"]))
    expected = network()(x.permute(0, 3, 1, 2).float()).softmax(1).detach()
    assert_near(found.probabilities(images), expected, 1e-6)
    assert_near(found.probabilities(images, batch_size=2), expected, 1e-6)
    assert_near(found.probabilities(images).sum(1), torch.ones(5), 1e-6)


def test_images_of_another_shape_are_refused(folder):
    found = load_classifier(folder)
    for shape in ((1, 9, 8, 3), (1, 8, 8, 1)):
        with pytest.raises(ValueError, match=r"images must have the shape \(N, \(8, 8, 3\)\), got"):
            found.prepared(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b")}, "which has 3 classes, got 2"),
        ({"classes": ("a", "b", "a")}, "classes must have names of their own"),
        ({"mean": (0.5,), "std": (0.5,)}, "which has 3 channels, got 1"),
        ({"mean": (0.5, 0.5)}, "channels must be 1 or 3, got 2|channels must be one of"),
        ({"std": (0.1, 0.1, 0.0)}, "std must be above 0"),
        ({"std": (0.1, 0.1, float("nan"))}, "std must be a finite number for each of 3 channels"),
        ({"image_size": (0, 4)}, "image_size must be"),
        ({"resize": 7}, r"resize must be at least image_size = \(8, 8\), got 7"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        save_classifier(network(), tmp_path / "model", **{**KNOWN, **change})
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="model must classify images, got Linear"):
        save_classifier(nn.Linear(3, 3), tmp_path / "model", **KNOWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "labels.json must describe a classifier, it lacks 'classes'"),
        ({"version": 2}, "format and version must be subquad-classifier and 1, got .* and 2"),
        ({"classes": ["cat", "dog"]}, "does not fit together: .* which has 3 classes, got 2"),
        ({"mean": [0.5]}, "mean must be a finite number for each of 3 channels"),
        ({"fit": "stretch"}, "(?s)must describe a classifier: .*fit"),
    ],
)
def test_damaged_labels_are_refused(folder, change, message):
    path = folder / "labels.json"
    found = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None or k == "resize"}))
    with pytest.raises(ValueError, match=message):
        load_classifier(folder)


def test_other_folders_are_refused(folder):
    (folder / "labels.json").write_text("{")
    with pytest.raises(ValueError, match=r"labels\.json must describe a classifier"):
        load_classifier(folder)
    (folder / "labels.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold labels\.json, found none: is it an im"):
        load_classifier(folder)
