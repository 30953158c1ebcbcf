"""The console: rich's, made when first used, so that ``subquad --help`` need not import it."""

import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130  # the exit code that shells report for a program ended by Ctrl-C


@functools.cache
def console() -> "Console":
    """Return the one console; it follows sys.stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write one line, marked as this program's error, to standard error."""
    sys.stderr.write(f"subquad: error: {' '.join(text.split())}\n")
