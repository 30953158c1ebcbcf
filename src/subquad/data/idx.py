"""The idx format, in which MNIST and Fashion-MNIST are distributed.

Two zero bytes, a type (8 = unsigned byte), the number of axes, the axes as big-endian 32-bit
integers, the values. Source: the format note on the MNIST page, http://yann.lecun.com/exdb/mnist/.
"""

import math
import struct
from pathlib import Path

import numpy as np

from subquad.data.image_set import Bytes
from subquad.data.reading import read_bytes

UNSIGNED_BYTE = 8


def read_idx(path: Path, shape: tuple[int, ...]) -> Bytes:
    """Return the array of bytes in an idx file, which may be packed (.gz).

    Args:
        path: the file.
        shape: what the array must be; a file that holds another is refused.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such idx file, is short, goes on, or cannot be read.
    """
    header, size = 4 + 4 * len(shape), math.prod(shape)
    data = read_bytes(path, header + size + 1)
    magic = bytes((0, 0, UNSIGNED_BYTE, len(shape)))
    if data[:4] != magic:
        start = f"begins with {data[:4].hex(' ')}" if data else "is empty"
        raise ValueError(
            f"{path} is not an idx file of bytes with {len(shape)} axes: "
            f"it {start}, expected {magic.hex(' ')}"
        )
    if len(data) < header:
        raise ValueError(f"{path} ends inside its header, after {len(data)} of {header} bytes")
    found = struct.unpack(f">{len(shape)}I", data[4:header])
    if found != shape:
        raise ValueError(f"{path} holds {_times(found)} values, expected {_times(shape)}")
    if len(data) < header + size:
        raise ValueError(
            f"{path} is short: it ends after {len(data) - header} of its {size} values"
        )
    if len(data) > header + size:
        raise ValueError(f"{path} goes on after its {size} values")
    # A copy, because an array on top of bytes cannot be written to, which torch warns about.
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
