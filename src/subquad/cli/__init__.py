"""The command line: ``subquad run``, ``demo``, ``sample``, ``data`` and ``info``.

Neither torch nor lightning is imported before a command needs it, so help and errors are quick.
"""

import os
import sys
from collections.abc import Sequence

from subquad.cli import commands
from subquad.cli.console import INTERRUPTED, complain, say
from subquad.cli.parsing import UsageError, choose

# Modules that come with the extra; without them the library works but the command line does not.
EXTRA = {"tyro", "rich", "matplotlib", "lightning_fabric", "lightning", "tensorboard"}
# Errors that a user can cause; each carries a sentence of its own. --debug shows where.
EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    ModuleNotFoundError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 failed, 2 misused, 130 interrupted.

    ``arguments`` defaults to the words of the process's command line. With --debug an error shows
    its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except UsageError as error:
        complain(f"{error} (help: {_help_command(words)})")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("subquad: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, for instance head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EXPECTED as error:
        if debug:
            raise
        complain(_one_line(error))
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(commands.overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        say(f"subquad {version('subquad')}")
        return 0
    name = choose(words[0], commands.COMMANDS, what="command")
    try:
        return commands.COMMANDS[name].run(words[1:])
    except SystemExit as stop:  # after --help of a command
        return int(stop.code or 0)


def _help_command(words: list[str]) -> str:
    known = words[0] if words and words[0] in commands.COMMANDS else ""
    experiment = words[1] if known == "run" and commands.is_experiment(words[1:2]) else ""
    return " ".join(part for part in ("subquad", known, experiment, "--help") if part)


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRA:
        return (
            f"this command needs the package {error.name}, which comes with "
            f"pip install 'subquad[train]'"
        )
    if isinstance(error, OSError) and error.strerror:
        if error.filename and str(error.filename) not in error.strerror:
            return f"{error.strerror}: {error.filename}"
        return error.strerror
    return str(error) or type(error).__name__
