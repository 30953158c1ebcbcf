"""Files that are either wholly there or not there at all.

Every file this library writes goes through here: a temporary file beside it, fsync, rename.
A process killed at any moment leaves the old file or the new one, never a part of one.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SYNC_FOLDERS = os.name == "posix"  # Windows cannot open a folder


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well it takes the place of ``path``.

    Args:
        path: the file to make or replace; its folder must exist.

    Raises:
        OSError: if the file cannot be written; an earlier file of that name is then untouched.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        if SYNC_FOLDERS:
            _sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} cannot be written: {reason}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        OSError: if the file cannot be written; an earlier file of that name is then untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if ``value`` holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    atomic_write_bytes(path, text.encode())


def printable(words: str) -> str:
    """Return text that can be written anywhere: names of files may hold bytes that are no text."""
    return words.encode(errors="backslashreplace").decode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
