"""``subquad package``: put a run's trained model into the package; for its maintainers."""

from pathlib import Path

from subquad.cli.console import say
from subquad.cli.parsing import UsageError

USAGE = """usage: subquad package RUN NAME

Copy the model of the finished run in the folder RUN into the package, as NAME, with a card that
says what it is. A model of that name is replaced."""


def package(words: list[str]) -> int:
    """Copy the model into the package's source, and write its card."""
    if not words or {"-h", "--help"} & set(words):
        say(USAGE)
        return 0
    if len(words) != 2 or any(word.startswith("-") for word in words):
        raise UsageError(f"package takes a run's folder and a name, got {' '.join(words)!r}")
    run, name = Path(words[0]), words[1]
    if not run.is_dir():
        raise UsageError(f"RUN must be the folder of a finished run, got {run}")
    from subquad.experiments.packaging import package_run

    say(f"packaged in {package_run(run, name)}")
    return 0
