import getpass
import json
import os
import socket
import sys
from pathlib import Path

from subquad.environment import command_line, environment, source_commit


def test_the_stamp_is_json_and_names_versions_and_machine():
    stamp = environment(["subquad", "demo"])
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["packages"]["torch"]
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert stamp["cores"] >= 1
    assert stamp["threads"] >= 1
    assert stamp["command"] == "subquad demo"
    assert stamp["date"].endswith("+00:00")


def test_the_stamp_names_no_host_no_user_and_no_folder(tmp_path):
    command = ["/opt/bin/subquad", "run", "--out", str(tmp_path / "run"), f"--folder={tmp_path}"]
    text = json.dumps(environment(command))
    assert f'"{socket.gethostname()}"' not in text
    assert str(tmp_path) not in text
    assert str(Path.home()) + os.sep not in text
    assert getpass.getuser() + "@" not in text


def test_absolute_paths_in_the_command_are_cut_to_their_last_part():
    words = ["/usr/bin/subquad", "run", "--out", "/home/someone/run", "--lr", "1e-3", "a/b"]
    assert command_line(words) == "subquad run --out run --lr 1e-3 a/b"
    assert command_line(["x/__main__.py", "--folder=/data/mnist/"]) == "subquad --folder=mnist"
    assert command_line(["subquad", "~/runs/one", r"C:\Users\me\run"]) == "subquad one run"


def test_the_commit_is_a_hash_or_unknown():
    commit = source_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
