"""The process around a training run: Ctrl-C, one run in a folder at a time, the progress bar."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts at once.

    Outside of the main thread Python delivers no signals, so it is then always False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold it for this process; the system lets go of it when the process dies.

    Raises:
        OSError: if the folder cannot be written, or another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{folder} cannot be written: {reason}") from error
    with lock:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(
                    error.errno, f"{folder} is in use by another run; wait for it or name another"
                ) from error
        yield


class ProgressLine:
    """A bar on standard error: steps, value, samples per second, time left; silent if quiet."""

    def __init__(self, *, unit: str, sample_name: str, quiet: bool) -> None:
        self._unit = unit
        self._sample_name = sample_name
        self.console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=2,  # more would take time from a small machine
            disable=quiet,
        )
        self._task: Any = None

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def begin(self, step: int, max_steps: int) -> None:
        """Show the bar, at ``step`` of ``max_steps``."""
        self._task = self._bar.add_task("training", total=max_steps, completed=step, values="")

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._bar.update(self._task, completed=step)

    def show(self, row: dict[str, float | int | None]) -> None:
        """Show the newest training value, test value and speed that ``row`` holds."""
        parts = [f"{row['train']:.4g} {self._unit}"] if row.get("train") is not None else []
        if row.get("samples_per_second") is not None:
            parts.append(f"{row['samples_per_second']:.4g} {self._sample_name}/s")
        if parts:
            self._bar.update(self._task, values="  ".join(parts))
