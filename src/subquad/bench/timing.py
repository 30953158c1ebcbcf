"""Time several things in turn, round after round, so that a busy moment hits all of them alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

Run = Callable[[], object]

SHORTEST = 0.01  # seconds; quicker calls are repeated within one sample
# What a call may raise for want of memory, or of a form for this size.
FAILURES = (RuntimeError, MemoryError, ValueError, AssertionError)
FEWEST_ROUNDS = 3  # without three samples there is no spread


class Progress:
    """Work done, of work planned, in units of roughly equal time; ``show`` draws it.

    ``show`` is called with (done, total, label).
    """

    def __init__(self, show: Callable[[float | int, float | int, str], None] | None = None) -> None:
        self._show = show
        self.done: float | int = 0.0
        self.total: float | int = 0.0

    def plan(self, work: float | int) -> None:
        """Expect this much more work."""
        self.total += work
        self._tell("")

    def advance(self, work: float | int, label: str) -> None:
        """Count work as done."""
        self.done += work
        self._tell(label)

    def drop(self, work: float | int) -> None:
        """Expect this much less: something is left out or was finished early."""
        self.total = max(self.done, self.total - work)
        self._tell("")

    def _tell(self, label: str) -> None:
        if self._show is not None:
            self._show(self.done, self.total, label)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(run: Run, device: str, *, calls: int = 1) -> float:
    """Time one call, as the mean of ``calls`` in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - start) / calls


def warm_up(run: Run, device: str) -> float:
    """Call once or twice and return the last time, that of a call with warm caches if quick."""
    seconds = seconds_of(run, device)
    return seconds if seconds > 1.0 else seconds_of(run, device)


def interleave(
    runs: Mapping[str, Run],
    samples: dict[str, list[float]],
    *,
    device: str,
    repetitions: int,
    seconds: float,
    on_sample: Callable[[str], None] = lambda name: None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> None:
    """Time all ``runs`` in turn, ``repetitions`` times or until the budget of ``seconds`` is spent.

    Each round starts with another one. At least three rounds are made (fewer if ``repetitions``
    is less). Times go to ``samples`` as they come, so an interrupt loses none. A run that fails
    when it is warmed up is told to ``on_failure`` and left out; without one the error is raised.
    """
    calls: dict[str, int] = {}
    for name, run in runs.items():
        try:
            calls[name] = max(1, round(SHORTEST / max(warm_up(run, device), 1e-7)))
        except FAILURES as error:
            if on_failure is None:
                raise
            on_failure(name, error)
    names, start = list(calls), time.perf_counter()
    for i in range(repetitions):
        if i >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            return
        first = i % max(1, len(names))
        for name in names[first:] + names[:first]:
            took = seconds_of(runs[name], device, calls=calls[name])
            samples.setdefault(name, []).append(took)
            on_sample(name)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads within the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
