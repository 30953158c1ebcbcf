"""Peak memory of a call, beyond what was held before it; on a CPU in a process of its own.

A process's peak counts whatever it did before, so each measurement starts in a fresh one
(``measured_apart``), in which glibc is told to give freed blocks back at once. The numbers are the
system's, right to about 1 MB.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Json = dict[str, Any]
STATUS = Path("/proc/self/status")


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return how many bytes ``run`` needed at most, beyond those held when it was called.

    What it returns is counted in, since it is alive when the peak is read.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        _reset_peak()
        before = _resident()
        kept = run()
        peak = _peak()
    del kept
    return max(0, peak - before)


def measured_apart(job: Json) -> Iterator[Json]:
    """Run ``subquad.bench.child`` on a job and yield its findings as they come.

    An end before the job is done (out of memory, for instance) ends the iteration, without error.
    """
    command = [sys.executable, "-m", "subquad.bench.child", json.dumps(job)]
    # Small blocks stay as they are; larger ones are mapped, and unmapped when freed.
    surroundings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=surroundings
    ) as child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                found: Json = json.loads(line)
                yield found
        finally:
            child.kill()


def measured_peak(
    job: Json, device: str, in_this_process: Callable[[Json, Callable[[Json], None]], None]
) -> int | None:
    """Return the one peak of a job; None if its process did not end well.

    On a CPU the job runs in a process of its own, else by ``in_this_process``.
    """
    found: list[Json] = []
    if device == "cpu":
        found.extend(measured_apart(job))
    else:
        in_this_process(job, found.append)
    return int(found[0]["peak_bytes"]) if found else None


def _reset_peak() -> None:
    """Start the peak anew, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident() -> int:
    return _status("VmRSS") or _maximum()


def _peak() -> int:
    # Not ru_maxrss where there is better: a new process inherits its parent's.
    return _status("VmHWM") or _maximum()


def _status(name: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith(f"{name}:")), None)


def _maximum() -> int:
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
