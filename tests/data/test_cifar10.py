import pickle
from pathlib import Path

import numpy as np
import pytest

from subquad.data.images import load_cifar10

NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def write_records(path: Path, labels: list[int], planes: np.ndarray) -> None:
    pairs = zip(labels, planes.astype(np.uint8), strict=True)
    path.write_bytes(b"".join(bytes([label]) + image.tobytes() for label, image in pairs))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        write_records(tmp_path / name, [i, i + 1], rng.integers(0, 256, (2, 3, 32, 32)))
    return tmp_path


def test_planes_become_the_last_axis(folder):
    planes = np.zeros((2, 3, 32, 32), np.uint8)
    planes[0, 1, 4, 5] = 200  # green, row 4, column 5
    write_records(folder / NAMES[0], [7, 8], planes)
    images = load_cifar10(folder, per_file=2)
    assert images.train.shape == (10, 32, 32, 3)
    assert images.test.shape == (2, 32, 32, 3)
    assert np.argwhere(images.train[0]).tolist() == [[4, 5, 1]]
    assert images.train_labels.tolist() == [7, 8, 1, 2, 2, 3, 3, 4, 4, 5]
    assert images.test_labels.tolist() == [5, 6]
    assert images.train.flags.c_contiguous
    assert images.train.dtype == images.train_labels.dtype == np.uint8
    assert "10 training and 2 test images" in images.source


def test_the_folder_around_the_unpacked_one_will_do(folder, tmp_path):
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    for name in NAMES:
        (folder / name).rename(inside / name)
    assert len(load_cifar10(tmp_path, per_file=2).train) == 10


def test_without_a_folder_the_cache_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="cifar10 is not a folder with CIFAR-10: unpack"):
        load_cifar10()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cifar10").symlink_to(folder)
    assert len(load_cifar10(per_file=2).test) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"short: it holds 6145 bytes, expected 6146 \(2 records of 3073"),
        (lambda data: b"", "is short: it holds 0 bytes"),
        (lambda data: data + b"\0", "goes on after its 2 records of 3073 bytes"),
        (lambda data: bytes([10]) + data[1:], "holds the label 10, expected 0 to 9"),
        (lambda data: pickle.dumps({"data": data}, protocol=2), "is a pickle, which subquad never"),
        (lambda data: pickle.dumps({"data": data}, protocol=4), "is a pickle, which subquad never"),
    ],
    ids=["short", "empty", "long", "label", "pickle 2", "pickle 4"],
)
@pytest.mark.parametrize("name", [NAMES[2], NAMES[5]])
def test_a_bad_file_is_named_in_one_sentence(folder, name, change, message):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_cifar10(folder, per_file=2)
    assert str(path) in str(error.value)


def test_the_pickled_version_is_refused_and_not_opened(tmp_path):
    class Opened:
        def __reduce__(self):
            return Path.touch, (tmp_path / "opened",)

    for folder in (tmp_path / "a", tmp_path / "b" / "cifar-10-batches-py"):
        folder.mkdir(parents=True)
        (folder / "data_batch_1").write_bytes(pickle.dumps(Opened()))
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(ValueError, match=r"is CIFAR-10 as pickles.*take the binary version"):
            load_cifar10(folder)
    assert not (tmp_path / "opened").exists()


def test_a_missing_file_and_a_folder_in_its_place_are_named(folder):
    (folder / NAMES[4]).unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_5\.bin does not exist"):
        load_cifar10(folder, per_file=2)
    (folder / NAMES[4]).mkdir()
    with pytest.raises(ValueError, match=r"data_batch_5\.bin is a folder, expected a file"):
        load_cifar10(folder, per_file=2)
