import hashlib
from pathlib import Path

import numpy as np
import pytest

from subquad.data import clipart, fetch
from subquad.data.clipart import (
    CLASSES,
    SIDE,
    fetch_clipart,
    load_clipart,
    made_up_drawings,
    read_drawings,
)

image = pytest.importorskip("PIL.Image")  # Pillow, which the extra train brings


def draw(path: Path, *, size=(200, 100), color=(255, 0, 0, 255)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGBA", size, color).save(path)
    return path


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)


def ramp(count: int = 20) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint8), SIDE * SIDE * 3).reshape(-1, SIDE, SIDE, 3)


def test_a_drawing_is_in_the_middle_of_a_white_square_and_what_is_clear_is_white(tmp_path):
    wide = draw(tmp_path / "animals" / "wide.png")
    half = draw(tmp_path / "tools" / "half.png", size=(64, 64), color=(0, 0, 0, 51))
    images, labels = read_drawings([wide, half], tmp_path)
    assert images.shape == (2, SIDE, SIDE, 3)
    assert labels.tolist() == [CLASSES.index("animals"), CLASSES.index("tools")]
    np.testing.assert_array_equal(images[0, :16], np.full((16, SIDE, 3), 255))
    np.testing.assert_array_equal(images[0, 16:48], np.tile([255, 0, 0], (32, SIDE, 1)))
    np.testing.assert_array_equal(images[0, 48:], np.full((16, SIDE, 3), 255))
    np.testing.assert_array_equal(images[1], np.full((SIDE, SIDE, 3), 204))  # a fifth black


def test_drawings_that_are_the_same_are_kept_once(tmp_path):
    paths = [draw(tmp_path / "animals" / f"{i}.png", size=(20, 10 + i // 2)) for i in range(3)]
    images, labels = read_drawings(paths, tmp_path)
    assert len(images) == len(labels) == 2


def test_a_drawing_of_too_many_pixels_is_left_out(tmp_path, monkeypatch):
    paths = [draw(tmp_path / "animals" / f"{n}.png", size=(n, n)) for n in (10, 12, 30)]
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 110)  # a warning above, an error above twice
    images, labels = read_drawings(paths, tmp_path)
    assert len(images) == len(labels) == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("other/a.png", None, "must lie below one of animals, .*, got other"),
        ("animals/a.png", b"not a picture", "is no picture that can be read"),
        ("animals/a.png", b"\x89PNG\r\n\x1a\n" + bytes(20), "is no picture that can be read"),
    ],
    ids=["no class", "text", "part of a picture"],
)
def test_what_is_no_drawing_is_named_in_one_sentence(tmp_path, name, data, message):
    path = draw(tmp_path / name)
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_drawings([path], tmp_path)
    assert str(path) in str(error.value)


def test_the_drawings_come_out_of_a_debian_package(tmp_path, monkeypatch):
    def run(program, *arguments, folder: Path):
        if program == "apt-get":
            assert arguments == ("download", "openclipart-png")
            (folder / "openclipart-png_1_all.deb").touch()
        else:
            for name in ("food", "animals"):
                draw(folder / "unpacked" / clipart.FOLDER / name / "a.png", size=(len(name), 9))

    monkeypatch.setattr(fetch, "run_program", run)
    with pytest.raises(ValueError, match=r"hold 8,121 drawings with the md5 .*, got 2 with"):
        fetch_clipart(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    paths = [draw(tmp_path / f"{name}.png", size=(len(name), 9)) for name in ("animals", "food")]
    digest = hashlib.md5(b"".join(path.read_bytes() for path in paths)).hexdigest()
    monkeypatch.setattr(clipart, "MD5", digest)
    monkeypatch.setattr(clipart, "COUNT", 2)
    assert fetch_clipart(tmp_path / "new") == tmp_path / "new"
    monkeypatch.setattr(clipart, "TEST", 0.5)
    found = load_clipart(tmp_path / "new")
    assert sorted(found.train_labels.tolist() + found.test_labels.tolist()) == [
        CLASSES.index("animals"), CLASSES.index("food"),
    ]  # fmt: skip
    monkeypatch.setattr(fetch, "run_program", None)  # nothing is brought again
    assert fetch_clipart(tmp_path / "new") == tmp_path / "new"


def test_the_split_is_fixed_and_loses_none(tmp_path):
    write(tmp_path, ramp(), np.arange(20, dtype=np.uint8))
    found = load_clipart(tmp_path)
    assert (len(found.train), len(found.test)) == (18, 2)
    assert sorted([*found.train_labels, *found.test_labels]) == list(range(20))
    for images, labels in ((found.train, found.train_labels), (found.test, found.test_labels)):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    again = load_clipart(tmp_path)
    np.testing.assert_array_equal(found.test_labels, again.test_labels)
    assert "18 to train on, 2 to test" in found.source


def test_files_that_are_not_ours_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\.npy is missing: bring it with `subquad"):
        load_clipart(tmp_path)
    zeros = np.zeros(20, np.uint8)
    for images, labels, message in (
        (ramp()[:, :32], zeros, r"images\.npy must have the shape \(20, 64, 64, 3\)"),
        (ramp().astype(np.int16), zeros, r"images\.npy must hold an array of bytes, got int16"),
        (ramp(), zeros.astype(np.int64), r"labels\.npy must hold an array of bytes, got int64"),
        (ramp(19), zeros, r"images\.npy must have the shape \(20, 64, 64, 3\)"),
        (ramp(), zeros + 22, r"labels\.npy must hold classes .*, got shape \(20,\) with 22"),
        (ramp(0), zeros[:0], r"labels\.npy must hold classes .*, got shape \(0,\)"),
        (ramp(), zeros[0], r"labels\.npy must hold classes .*, got shape \(\)"),
        (ramp(), np.array([{}] * 20), r"labels\.npy is no whole \.npy file"),
    ):
        write(tmp_path, images, labels)
        with pytest.raises(ValueError, match=message):
            load_clipart(tmp_path)
    write(tmp_path, ramp(), zeros)
    data = (tmp_path / "images.npy").read_bytes()
    for part in (b"", b"text", data[:1000]):
        (tmp_path / "images.npy").write_bytes(part)
        with pytest.raises(ValueError, match=r"images\.npy is no whole \.npy file"):
            load_clipart(tmp_path)


def test_made_up_drawings_are_the_same_each_time():
    one, two = made_up_drawings(), made_up_drawings()
    np.testing.assert_array_equal(one.train, two.train)
    assert one.train.shape == (36, 8, 8, 3)
    assert len(np.unique(one.train.reshape(36, -1), axis=0)) > 30
