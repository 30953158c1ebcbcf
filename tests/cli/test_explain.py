"""``subquad explain``: its words, its files, and what it refuses before it writes any."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from subquad.cli import main
from subquad.cli.explain import ExplainOptions
from subquad.cli.parsing import separate
from subquad.experiments import checkpoints, explaining
from subquad.models import PixelModel, SmallResNet, VisionTransformer
from subquad.models.saving import save_model
from subquad.tasks.classifier import save_classifier

FILES = [
    "attention-distance.png", "explanation.json", "filters.png", "heads.png", "positions.png",
    "rollout.png",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("unhooked")


def outcome(capsys, *words):
    code = main(["explain", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder with a model of 8 x 8 grey images, beside two pictures."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(Path("run/model"))
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(name)
    Image.fromarray(rng.integers(0, 256, (9, 20, 3), dtype=np.uint8)).save("wide.png")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("colours.png")
    Path("words.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("one.png").read_bytes()[:60])
    return Path("run")


@pytest.fixture
def quick(monkeypatch):
    """Leave the drawing of figures out, which takes most of the time."""
    monkeypatch.setattr(explaining, "png_bytes", lambda figure: b"\x89PNG")


def save(folder, **changes):
    model = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=2, d_model=8, num_layers=1,
        num_heads=2, **changes,
    )  # fmt: skip
    save_classifier(model, folder, classes=["boot", "bag"], image_size=8, mean=[0.5], std=[0.5])


def test_figures_and_numbers_are_written_and_read_in_a_line_each(run, capsys):
    code, out, err = outcome(capsys, "run", "one.png", "--out", "seen", "two.png")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in Path("seen").iterdir()) == FILES
    lines = out.splitlines()
    assert len(lines) == len(FILES)
    assert lines[0].startswith(f"{Path('seen', 'attention-distance.png')}: heads look ")
    assert "replaced" not in out
    numbers = json.loads(Path("seen/explanation.json").read_text())
    assert [image["file"] for image in numbers["images"]] == ["one.png", "two.png"]
    assert numbers["model"] == str(Path("run/model"))


def test_earlier_files_are_replaced_and_this_is_said(run, quick, capsys):
    assert outcome(capsys, "run", "one.png", "--out=seen")[0] == 0
    Path("seen/heads.png").unlink()
    _, out, _ = outcome(capsys, "run", "two.png", "--out", "seen")
    assert out.count("(the earlier file is replaced)") == len(FILES) - 1
    assert f"{Path('seen', 'heads.png')}: two heads" in out
    assert "two.png" in Path("seen/explanation.json").read_text()


def test_pictures_of_other_sizes_are_taken_on_request(run, quick, capsys):
    code, _, err = outcome(capsys, "run", "one.png", "wide.png")
    assert code == 1
    assert "wide.png must be 8 pixels wide and 8 high for this model, got 20 and 9" in err
    assert not Path("explanation").exists()
    assert outcome(capsys, "run", "--resize", "one.png", "wide.png", "--invert")[0] == 0
    assert sorted(path.name for path in Path("explanation").iterdir()) == FILES


def test_a_run_on_photographs_takes_any_size(run, quick, capsys):
    """As train-images leaves it: pictures are resized and their middle is cut out."""
    model = VisionTransformer(
        image_size=8, patch_size=4, in_channels=3, num_classes=2, d_model=8, num_layers=1,
        num_heads=2, mixer="linear", stem="conv",
    )  # fmt: skip
    save_classifier(
        model, Path("photos/model"), classes=["boot", "bag"], image_size=8, mean=[0.5] * 3,
        std=[0.5] * 3, fit="resize", resize=9,
    )  # fmt: skip
    code, out, err = outcome(capsys, "photos", "wide.png", "one.png")
    assert (code, err) == (0, "")
    assert "left out filters.png: stem must be" in out
    numbers = json.loads(Path("explanation/explanation.json").read_text())
    assert np.shape(numbers["attention"]["rollout"]) == (2, 2, 2)


def test_a_packaged_model_is_found_by_its_name(run, quick, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "PACKAGED", tmp_path / "packaged")
    save(tmp_path / "packaged" / "vit-small")
    assert outcome(capsys, "vit-small", "one.png")[0] == 0
    code, _, err = outcome(capsys, "vit-smal", "one.png")
    assert code == 1
    assert "packaged are vit-small; did you mean vit-small?" in err


def test_what_is_left_out_is_said(run, quick, capsys):
    save(Path("lstm"), mixer="lstm")
    code, out, _ = outcome(capsys, "lstm", "one.png")
    assert code == 0
    assert (
        "left out attention-distance.png, rollout.png, heads.png: mixer must be one whose outputs "
        "are sums of values (with a method attend), got LSTMMixer in layer 0" in out
    )
    written = sorted(path.name for path in Path("explanation").iterdir())
    assert written == ["explanation.json", "filters.png", "positions.png"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "RUN is missing"),
        (["run"], 2, "IMAGE is missing: explain takes a run and one image or more"),
        (["run", "one.png", "--ot", "x"], 2, "unknown option --ot; did you mean --out?"),
        (["rn", "one.png"], 1, "rn is neither the folder of a run nor a packaged model"),
        (["run", "none.png"], 1, "none.png cannot be read as a picture: is missing or no file"),
        (["run", "words.png"], 1, "words.png cannot be read as a picture: is in no format"),
        (["run", "cut.png"], 1, "cut.png cannot be read as a picture"),
        (["run", "colours.png"], 1, "colours.png must be grey for this model, but it is in colou"),
        (["."], 2, "IMAGE is missing"),
        ([".", "one.png"], 1, ". holds no trained model: is its run finished?"),
        (["resnet", "one.png"], 1, "resnet must hold a VisionTransformer to be explained, got a S"),
        (["run", "one.png", "--out", "no/where"], 1, "--out must lie in a folder that exists"),
        (["run", "one.png", "--out", "one.png"], 1, "--out must be a folder, got the file one"),
        (["pixels", "one.png"], 1, "pixels must hold labels.json, found none"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
    run, capsys, words, code, message
):
    save_model(PixelModel(4, num_layers=1, num_heads=1, d_model=8, d_ff=8), "pixels")
    save_classifier(
        SmallResNet(["C"], num_classes=2, image_size=8, width=4), "resnet", classes=["a", "b"],
        image_size=8, mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip
    found, out, err = outcome(capsys, *words)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("explanation").exists()


def test_each_picture_that_cannot_be_read_is_named(run, capsys):
    code, out, err = outcome(capsys, "run", "words.png", "one.png", "cut.png")
    assert (code, out) == (1, "")
    assert [line.split()[2] for line in err.splitlines()] == ["words.png", "cut.png"]


def test_words_are_told_from_options():
    words = ["a", "--out", "b", "--resize", "c", "--device=cpu", "-", "d", "--unknown", "e"]
    free, rest = separate(words, ExplainOptions)
    assert free == ["a", "c", "-", "d", "e"]
    assert rest == ["--out", "b", "--resize", "--device=cpu", "--unknown"]
    assert separate(["--out"], ExplainOptions) == ([], ["--out"])
