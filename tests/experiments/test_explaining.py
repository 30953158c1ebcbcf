"""Figures and numbers of an explanation, against the measures themselves."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from subquad.experiments import explaining
from subquad.experiments.explaining import DEFINITIONS, explain, load_vision_transformer
from subquad.models import LambdaResNet, VisionTransformer
from subquad.models.insight import look
from subquad.models.insight_tables import filter_components, position_similarity
from subquad.tasks.classifier import load_classifier, save_classifier

ALL = ["attention-distance.png", "rollout.png", "heads.png", "filters.png", "positions.png"]


def saved(folder, **changes):
    torch.manual_seed(0)
    sizes = {
        "image_size": (8, 12), "patch_size": 4, "in_channels": 1, "num_classes": 2, "d_model": 16,
        "num_layers": 2, "num_heads": 2, **changes,
    }  # fmt: skip
    model = VisionTransformer(**sizes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    channels = sizes["in_channels"]
    save_classifier(
        model, folder, classes=["boot", "bag"], image_size=tuple(sizes["image_size"]),
        mean=[0.5] * channels, std=[0.5] * channels,
    )  # fmt: skip
    return load_vision_transformer(folder, "cpu")


def pictures(*, height=8, width=12, channels=1):
    shape = (3, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """A classifier, and the explanation of three pictures."""
    classifier = saved(tmp_path_factory.mktemp("model"))
    return classifier, explain(classifier, pictures(), ["a/1.png", "2.png", "3.png"])


@pytest.fixture
def quick(monkeypatch):
    """Leave the drawing of figures out, which takes most of the time."""
    monkeypatch.setattr(explaining, "png_bytes", lambda figure: b"\x89PNG")


def test_numbers_are_those_of_the_measures(explained):
    classifier, found = explained
    images = pictures()
    assert list(found.pictures) == ALL
    assert found.omitted == {}
    assert all(png.startswith(b"\x89PNG") and line for png, line in found.pictures.values())
    numbers = json.loads(json.dumps(found.numbers, allow_nan=False))

    seen = look(classifier.model, classifier.prepared(images))
    attention = numbers["attention"]
    assert set(DEFINITIONS) <= {*attention}
    for name in ("class_share", "weight_similarity", "output_similarity"):
        expected = [x.tolist() for x in getattr(seen, name)]
        np.testing.assert_allclose(attention[name], expected, rtol=1e-5)
    np.testing.assert_allclose(
        attention["distance_pixels"], [x.tolist() for x in seen.distance], rtol=1e-5
    )
    np.testing.assert_allclose(attention["rollout"], seen.rollout, rtol=1e-5)
    np.testing.assert_allclose(
        numbers["filters"]["variance_shares"], filter_components(classifier.model).shares,
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    similarity = position_similarity(classifier.model)
    row = [similarity[i, j, i, k] for i in range(2) for j in range(3) for k in range(3) if j != k]
    assert numbers["positions"]["mean_cosine"]["same row"] == pytest.approx(
        float(torch.stack(row).mean()), rel=1e-4
    )

    shares = classifier.probabilities(images)
    assert [image["file"] for image in numbers["images"]] == ["a/1.png", "2.png", "3.png"]
    for image, row in zip(numbers["images"], shares, strict=True):
        assert image["class"] == ("boot", "bag")[int(row.argmax())]
        assert image["probability"] == pytest.approx(float(row.max()), rel=1e-5)


def test_lines_say_what_the_figures_show(explained):
    _, found = explained
    lines = {name: line for name, (_, line) in found.pictures.items()}
    distances = found.numbers["attention"]["distance_pixels"]
    flat = [x for layer in distances for x in layer]
    assert f"{min(flat):.1f} to {max(flat):.1f} pixels far" in lines["attention-distance.png"]
    assert f"{np.mean(distances[0]):.1f} in the first" in lines["attention-distance.png"]
    assert "negative" not in lines["attention-distance.png"]
    rollout = np.array(found.numbers["attention"]["rollout"]).reshape(3, 6)
    top = 100 * rollout.max(1).mean()
    assert f"the 1 strongest of 6 patches hold {top:.0f}% " in lines["rollout.png"]
    shares = found.numbers["filters"]["variance_shares"]
    assert f"3 of the 16 components drawn hold {100 * sum(shares[:3]):.0f}%" in lines["filters.png"]
    assert "neighbours" in lines["positions.png"]
    alike = np.mean([matrix[0][1] for matrix in found.numbers["attention"]["weight_similarity"]])
    assert f"{alike:.2f} in where they look" in lines["heads.png"]


def test_negative_weights_are_told(tmp_path, quick):
    found = explain(saved(tmp_path, mixer="lambda", pooling="mean"), pictures(), ["1", "2", "3"])
    share = np.max(found.numbers["attention"]["negative_share"])
    assert (
        f"up to {100 * share:.0f}% of a head's weights are negative"
        in (found.pictures["attention-distance.png"][1])
    )
    assert found.numbers["mixers"] == ["LambdaMixer"] * 2


@pytest.mark.parametrize(
    "mixer", ["linear", "performer", "local", "strided", "linformer", "hybrid", "lsh-4"]
)
def test_every_mixer_with_weights_is_explained(mixer, tmp_path, quick, monkeypatch):
    for part in ("distance", "rollout", "heads", "filters", "positions"):
        monkeypatch.setattr(explaining, f"{part}_figure", lambda *_, **__: Figure())
    found = explain(saved(tmp_path, mixer=mixer), pictures(), ["1", "2", "3"])
    assert found.omitted == {}
    attention = json.loads(json.dumps(found.numbers["attention"], allow_nan=False))
    assert np.shape(attention["rollout"]) == (3, 2, 3)
    np.testing.assert_allclose(np.sum(attention["rollout"], (1, 2)), 1, rtol=1e-4)
    negative = np.max(attention["negative_share"]) > 1e-6
    assert negative == (mixer == "linformer")


def test_what_a_model_has_not_is_left_out_with_the_reason(tmp_path, quick):
    classifier = saved(
        tmp_path, mixer=["softmax", "lstm"], stem="conv", patch_size=4, positions="learned-2d"
    )
    found = explain(classifier, pictures(), ["1", "2", "3"])
    assert list(found.pictures) == ["positions.png"]
    assert [*found.omitted] == ALL[:4]
    assert "got LSTMMixer in layer 1" in found.omitted["rollout.png"]
    assert "whose patches are of features" in found.omitted["filters.png"]
    assert found.numbers["omitted"] == found.omitted
    assert "attention" not in found.numbers


def test_a_model_of_which_nothing_can_be_drawn_is_refused(tmp_path, quick):
    classifier = saved(tmp_path, mixer="lstm", stem="conv", positions="none")
    with pytest.raises(ValueError, match=r"nothing can be drawn of this model: .*LSTMMixer"):
        explain(classifier, pictures(), ["1", "2", "3"])


def test_one_head_one_patch_and_colours_are_drawn(tmp_path):
    classifier = saved(
        tmp_path, image_size=(4, 4), in_channels=3, num_heads=1, num_layers=1, pooling="mean"
    )
    found = explain(classifier, pictures(height=4, width=4, channels=3), ["1", "2", "3"])
    assert list(found.pictures) == ALL
    assert found.pictures["heads.png"][1] == "one head a layer has none to be compared with"
    assert found.pictures["positions.png"][1] == "there is but one patch"


def test_a_head_without_a_distance_is_null(tmp_path, quick, monkeypatch):
    classifier = saved(tmp_path)

    def without(model, images):
        seen = look(model, images)
        nowhere = torch.tensor([float("nan"), 2.0])
        return seen._replace(distance=(nowhere, torch.full((2,), float("nan"))))

    monkeypatch.setattr(explaining, "look", without)
    found = explain(classifier, pictures(), ["1", "2", "3"])
    assert found.numbers["attention"]["distance_pixels"] == [[None, 2.0], [None, None]]
    assert "heads look 2.0 to 2.0 pixels far" in found.pictures["attention-distance.png"][1]
    json.dumps(found.numbers, allow_nan=False)


def test_a_model_whose_weights_are_nan_is_refused(tmp_path):
    classifier = saved(tmp_path)
    torch.nn.init.constant_(classifier.model.norm.bias, float("nan"))
    with pytest.raises(ValueError, match=r"finite probability, got NaN for 1: did its training"):
        explain(classifier, pictures(), ["1", "2", "3"])


def test_of_many_pictures_the_first_are_drawn_and_all_are_measured(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(explaining, "MOST_PICTURES", 2)
    drawn = []

    def draw(*given):
        drawn.append(given)
        return Figure()

    monkeypatch.setattr(explaining, "rollout_figure", draw)
    found = explain(saved(tmp_path), pictures(), ["1", "2", "3"])
    (given,) = drawn
    assert [len(part) for part in given] == [2, 2, 2]
    assert found.pictures["rollout.png"][1].endswith("; the first 2 of 3 pictures are drawn")
    assert len(found.numbers["attention"]["rollout"]) == 3


def test_the_grid_is_that_of_the_pictures(tmp_path, quick):
    """A model may be made for another size than its pictures: tables are resampled on the way."""
    saved(tmp_path)
    described = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**described, "image_size": [12, 4]}))
    classifier = load_vision_transformer(tmp_path, "cpu")
    found = explain(classifier, pictures(height=12, width=4), ["1", "2", "3"])
    assert found.numbers["grid"] == [3, 1]
    assert np.array(found.numbers["attention"]["rollout"]).shape == (3, 3, 1)


def test_another_kind_of_model_is_refused(tmp_path):
    model = LambdaResNet(["C"] * 4, num_classes=2, width=8)
    save_classifier(
        model, tmp_path, classes=["a", "b"], image_size=32, mean=[0.5] * 3, std=[0.5] * 3
    )
    load_classifier(tmp_path)
    with pytest.raises(ValueError, match=r"must hold a VisionTransformer .*, got a LambdaResNet"):
        load_vision_transformer(tmp_path, "cpu")
