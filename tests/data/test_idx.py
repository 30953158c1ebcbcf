import gzip
import struct

import numpy as np
import pytest

from subquad.data.idx import read_idx

SHAPE = (2, 3, 4)
VALUES = np.arange(24, dtype=np.uint8).reshape(SHAPE)


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def test_a_plain_and_a_packed_file_give_the_same_array(tmp_path):
    (tmp_path / "plain").write_bytes(idx(VALUES))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(VALUES)))
    for name in ("plain", "packed.gz"):
        read = read_idx(tmp_path / name, SHAPE)
        np.testing.assert_array_equal(read, VALUES)
        assert read.dtype == np.uint8
        assert read.flags.writeable  # torch.from_numpy warns about what is not


FLOAT_IDX = bytes((0, 0, 13, 3)) + idx(VALUES)[4:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an idx file of bytes with 3 axes: it is empty, expected 00 00 08 03"),
        (b"hello, this is text", "it begins with 68 65 6c 6c, expected 00 00 08 03"),
        (gzip.compress(idx(VALUES), mtime=0), "it begins with 1f 8b"),
        (idx(VALUES.ravel()), "it begins with 00 00 08 01, expected 00 00 08 03"),
        (FLOAT_IDX, "it begins with 00 00 0d 03"),
        (idx(VALUES)[:9], "ends inside its header, after 9 of 16 bytes"),
        (idx(VALUES[:1]), "holds 1 x 3 x 4 values, expected 2 x 3 x 4"),
        (idx(VALUES.transpose(0, 2, 1)), "holds 2 x 4 x 3 values, expected 2 x 3 x 4"),
        (idx(VALUES)[:-1], "is short: it ends after 23 of its 24 values"),
        (idx(VALUES) + b"\0", "goes on after its 24 values"),
    ],
    ids=[
        "empty",
        "text",
        "packed",
        "one axis",
        "floats",
        "part of a header",
        "too few images",
        "axes swapped",
        "a value short",
        "a value more",
    ],
)
def test_a_bad_file_is_named_in_one_sentence(tmp_path, data, message):
    path = tmp_path / "train-images"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="^" + str(path)) as error:
        read_idx(path, SHAPE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


PACKED = gzip.compress(idx(np.arange(240, dtype=np.uint8).reshape(20, 3, 4)), mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        b"not gzip at all",
        idx(VALUES),
        PACKED[: len(PACKED) // 2],
        PACKED[:10] + b"\xff" * 30,  # no block of a deflate stream begins so
        PACKED[:-8] + bytes(8),
    ],
    ids=["text", "plain idx", "truncated", "bytes flipped", "wrong checksum"],
)
def test_a_corrupt_gz_is_named_in_one_sentence(tmp_path, data):
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is not a whole gzip file: .+") as error:
        read_idx(path, (20, 3, 4))
    assert str(path) in str(error.value)


def test_a_missing_file_a_folder_and_an_unreadable_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist$"):
        read_idx(tmp_path / "nothing", SHAPE)
    with pytest.raises(ValueError, match=r"is a folder, expected a file$"):
        read_idx(tmp_path, SHAPE)
    loop = tmp_path / "loop"  # unreadable even for root, whom permissions do not stop
    loop.symlink_to(loop)
    with pytest.raises(ValueError, match=r"loop cannot be read: Too many levels"):
        read_idx(loop, SHAPE)


def test_a_file_is_not_read_further_than_needed(tmp_path):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(idx(VALUES) + bytes(50_000_000)))
    with pytest.raises(ValueError, match="goes on after its 24 values"):
        read_idx(bomb, SHAPE)
