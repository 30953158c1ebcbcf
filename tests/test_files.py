"""A file is wholly there or not there at all."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from subquad import files
from subquad.files import atomic_path, atomic_write_bytes, atomic_write_json

# The child says that it is in the middle of a file, and waits to be killed.
HALF_WRITTEN = """
import sys, time
from pathlib import Path
from subquad.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_and_json_are_written_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_bytes(path, b"old")
    assert path.read_bytes() == b"old"
    atomic_write_json(path, {"a": [1, 2.5, None, "é"]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "é"]}
    assert path.read_text().endswith("\n")
    assert names(tmp_path) == ["a.json"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", HALF_WRITTEN, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


def test_nan_is_no_json_and_costs_nothing_written(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, 1)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            atomic_write_json(path, {"loss": value})
    with pytest.raises(TypeError):
        atomic_write_json(path, {"path": path})
    assert json.loads(path.read_text()) == 1
    assert names(tmp_path) == ["a.json"]


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    sync = os.fsync

    def noted(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append((kind, (tmp_path / "a").exists()))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted)
    atomic_write_bytes(tmp_path / "a", b"data")
    assert calls == [("file", False), ("folder", True)]


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "a", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path, kind, reason in (
        (tmp_path / "none" / "a", FileNotFoundError, "No such file or directory"),
        (tmp_path / "file" / "a", NotADirectoryError, "Not a directory"),
        (tmp_path / "folder", IsADirectoryError, "Is a directory"),
    ):
        with pytest.raises(kind, match=f"{path} cannot be written: {reason}"):
            atomic_write_bytes(path, b"data")
    assert names(tmp_path) == ["file", "folder"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    atomic_write_bytes(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path} cannot be written: File too large"):
            atomic_write_bytes(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_folders_are_synced_where_they_can_be_opened(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync", synced.append)
    for can in (True, False):
        monkeypatch.setattr(files, "SYNC_FOLDERS", can)
        atomic_write_bytes(tmp_path / "a", b"data")
        assert (tmp_path in synced) is can
        synced.clear()


def test_text_can_be_written_whatever_bytes_a_name_holds():
    assert files.printable("plain Ä") == "plain Ä"
    assert files.printable(os.fsdecode(b"a\xff")) == r"a\udcff"
