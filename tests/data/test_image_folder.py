import os

import numpy as np
import pytest

from subquad.data.image_folder import list_folder, read_folder

Image = pytest.importorskip("PIL.Image")


def draw(path, value=0, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


@pytest.fixture
def flat(tmp_path):
    """Two classes: 10 red images of their own red, 20 of another, and what is to be left alone."""
    for i in range(10):
        draw(tmp_path / "apples" / f"{i}.png", i)
    for i in range(20):
        draw(tmp_path / "beets" / "deep" / f"{i:02}.PNG", 100 + i)
    (tmp_path / "apples" / "notes.txt").write_text("x")
    (tmp_path / "apples" / ".hidden.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").write_text("x")
    return tmp_path


def reds(images):
    return images[:, 0, 0, 0].tolist()


def test_a_share_of_each_class_is_held_back(flat):
    found = list_folder(flat, test_share=0.2, seed=3)
    assert found.classes == ("apples", "beets")
    assert sorted(p.name for p in found.others) == ["notes.txt", "readme.md"]
    for label, count in ((0, 2), (1, 4)):
        held = {p for p, k in found.test if k == label}
        kept = {p for p, k in found.train if k == label}
        assert len(held) == count
        assert len(held | kept) == (10, 20)[label]
    assert list_folder(flat, test_share=0.2, seed=3).test == found.test
    assert list_folder(flat, test_share=0.2, seed=4).test != found.test
    assert found.split == "0.2 of each class held back with seed 3"


def test_images_are_read_with_their_labels(flat):
    seen = []
    found = read_folder(
        list_folder(flat), side=4, progress=lambda done, total: seen.append((done, total))
    )
    images = found.images
    assert images.train.shape == (27, 4, 4, 3)
    assert images.test.shape == (3, 4, 4, 3)
    assert seen[-1] == (30, 30)
    for part, labels in ((images.train, images.train_labels), (images.test, images.test_labels)):
        assert [int(red >= 100) for red in reds(part)] == labels.tolist()
    assert sorted(reds(images.train) + reds(images.test)) == [*range(10), *range(100, 120)]
    assert found.skipped == ()
    assert read_folder(list_folder(flat), side=4, channels=1).images.train.shape[3] == 1


@pytest.mark.parametrize("test", ["val", "valid", "validation", "test"])
def test_given_parts_are_taken(tmp_path, test):
    for part, shift in (("train", 0), (test, 50)):
        for i, name in enumerate(("a", "b", "c")):
            if (part, name) != (test, "b"):  # a class without test images
                draw(tmp_path / part / name / "x.jpg", shift + i)
    found = list_folder(tmp_path)
    assert [(p.parent.name, k) for p, k in found.train] == [("a", 0), ("b", 1), ("c", 2)]
    assert [(p.parent.name, k) for p, k in found.test] == [("a", 0), ("c", 2)]
    assert found.split == f"those of {test}/"
    assert found.unused == ()
    draw(tmp_path / test / "d" / "x.png")
    with pytest.raises(ValueError, match="must hold classes that are trained on, got 'd'"):
        list_folder(tmp_path)


def test_a_train_part_alone_is_split_and_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train"):
        for i in range(4):
            draw(tmp_path / name / f"{i}.png")
    assert list_folder(tmp_path).classes == ("car", "train")
    for name in ("x", "y"):
        for i in range(4):
            draw(tmp_path / "other" / "train" / name / f"{i}.png")
    found = list_folder(tmp_path / "other")
    assert found.classes == ("x", "y")
    assert (len(found.train), len(found.test)) == (6, 2)


def test_folders_beside_the_parts_are_left_alone_and_named(tmp_path):
    for part in ("train", "val", "test", "sketches"):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "x.png")
    found = list_folder(tmp_path)
    assert found.split == "those of val/"
    assert found.unused == ("sketches", "test")


@pytest.mark.parametrize("parts", [("training", "validation"), ("test", "val")])
def test_parts_are_not_taken_for_classes(tmp_path, parts):
    for part in parts:
        for name in ("a", "b"):
            draw(tmp_path / part / name / "x.png")
    sentence = rf"train with val or test beside it, got {parts[0]}, {parts[1]}$"
    with pytest.raises(ValueError, match=sentence):
        list_folder(tmp_path)


def test_the_only_image_of_a_class_is_trained_on(tmp_path):
    draw(tmp_path / "a" / "1.png")
    draw(tmp_path / "b" / "1.png")
    with pytest.raises(ValueError, match="a class must have two images, to train on and to test"):
        list_folder(tmp_path)
    draw(tmp_path / "b" / "2.png")
    found = list_folder(tmp_path)
    assert [k for _, k in found.train] == [0, 1]
    assert [k for _, k in found.test] == [1]


def test_unreadable_files_are_named_and_counted_or_left_out(flat):
    (flat / "apples" / "3.png").write_bytes(b"")
    (flat / "beets" / "deep" / "02.PNG").write_bytes(b"nothing")
    (flat / "beets" / "gone.png").symlink_to(flat / "nowhere")
    os.mkfifo(flat / "beets" / "pipe.jpg")
    listing = list_folder(flat)
    with pytest.raises(ValueError, match=r"3\.png cannot be .*: is empty \(and 3 more\); skip"):
        read_folder(listing, side=4)
    found = read_folder(listing, side=4, unreadable="skip")
    assert len(found.skipped) == 4
    assert sum("is missing or no file" in sentence for sentence in found.skipped) == 2
    assert len(found.images.train) + len(found.images.test) == 28
    assert "4 could not be read" in found.images.source
    left = reds(found.images.train) + reds(found.images.test)
    labels = [*found.images.train_labels.tolist(), *found.images.test_labels.tolist()]
    assert [int(red >= 100) for red in left] == labels


def test_a_class_with_nothing_left_is_refused(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            draw(tmp_path / name / f"{i}.png")
    for i in range(3):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"class 'a' of .* must have an image to train on that can"
    ):
        read_folder(list_folder(tmp_path), side=4, unreadable="skip")


def test_memory_is_counted_before_anything_is_read(flat):
    for path in flat.rglob("*.png"):
        path.write_bytes(b"")
    sentence = (
        r"memory_gb must be at least 0\.0009 for 30 images of 100 x 100 x 3 bytes, got 0\.0008"
    )
    with pytest.raises(ValueError, match=sentence):
        read_folder(list_folder(flat), side=100, memory_gb=0.0008)


def test_links_are_followed_but_in_no_circle(flat):
    (flat / "apples" / "more").symlink_to(flat / "beets" / "deep")
    assert len(list_folder(flat).train) + len(list_folder(flat).test) == 50
    (flat / "beets" / "deep" / "up").symlink_to(flat / "beets")
    with pytest.raises(ValueError, match="must not be a link to a folder that it lies in"):
        list_folder(flat)


def test_more_than_256_classes_take_wider_labels(tmp_path):
    for i in range(257):
        draw(tmp_path / "train" / f"{i:03}" / "x.png", size=(1, 1))
    draw(tmp_path / "val" / "256" / "x.png", size=(1, 1))
    images = read_folder(list_folder(tmp_path), side=1).images
    assert images.test_labels.tolist() == [256]
    assert images.test_labels.dtype == np.uint16


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone must be a folder with images, found none"):
        list_folder(tmp_path / "gone")
    with pytest.raises(ValueError, match="for each of two classes or more, got none"):
        list_folder(tmp_path)
    draw(tmp_path / "a" / "x.png")
    with pytest.raises(ValueError, match="two classes or more, got the one folder 'a'"):
        list_folder(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*b must hold images, found none"):
        list_folder(tmp_path)
    draw(tmp_path / "b" / "x.png")
    draw(tmp_path / "x.png")
    draw(tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"images that lie in none: x\.png \(and 1 more\)"):
        list_folder(tmp_path)
    (tmp_path / "bad\nname").mkdir()
    (tmp_path / "x.png").unlink()
    (tmp_path / "y.png").unlink()
    with pytest.raises(ValueError, match=r"names can be printed, got 'bad\\nname'"):
        list_folder(tmp_path)


def test_numbers_out_of_range_are_refused(flat, unhooked):
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="test_share must be above 0 and below 1"):
            list_folder(flat, test_share=share)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        list_folder(flat, seed=-1)
    listing = list_folder(flat)
    for options, message in (
        ({"side": 0}, "side must be above 0, got 0"),
        ({"side": 4, "memory_gb": 0.0}, "memory_gb must be above 0, got 0"),
        ({"side": 4, "channels": 2}, "channels must be 1 or 3, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            read_folder(listing, **options)
