"""Whose threads the kernel library uses, before and after a fork."""

import ctypes
import os
import sys
import threading
import time
import warnings

import pytest
import torch

from cases.kernels import needs_library, probe
from subquad.cli.info import native_kernels
from subquad.kernels.cpu import library

WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PARALLEL = ctypes.CFUNCTYPE(None, WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def threads_of(address, count):
    """Run a function by the parallel at this address; return the threads it ran on."""
    seen = []
    together = threading.Barrier(count)  # none goes before all are there

    @WORK
    def work(argument):
        assert argument == 123
        together.wait(timeout=20)
        seen.append(threading.get_native_id())

    PARALLEL(address)(work, 123, count, 0)
    return seen


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_threads_are_those_of_torch_s_own_openmp():
    def runtimes():
        with open("/proc/self/maps") as file:  # noqa: PTH123
            names = {line.split()[-1] for line in file}
        return {x for x in names if any(part in x for part in ("gomp", "iomp5", "libomp"))}

    assert "OpenMP" in torch.__config__.parallel_info()
    before = runtimes()
    library.openmp.cache_clear()
    address = library.openmp()
    assert address
    assert runtimes() == before
    with open("/proc/self/maps") as file:  # noqa: PTH123
        for line in file:
            begin, end = (int(x, 16) for x in line.split()[0].split("-"))
            if begin <= address < end:
                assert line.split()[-1] in before
                break
        else:
            pytest.fail("the address lies in no library")


@needs_library
def test_the_library_brings_no_openmp_runtime():
    content = library.library_path().read_bytes()
    assert not any(name in content for name in (b"libgomp", b"libiomp", b"libomp"))


@pytest.mark.skipif(not library.openmp(), reason="torch has no OpenMP runtime here")
def test_torch_s_threads_run_a_function_together():
    assert library.parallel() == library.openmp()
    seen = threads_of(library.parallel(), 3)
    assert len(set(seen)) == len(seen) == 3
    assert threading.get_native_id() in seen


@needs_library
@pytest.mark.parametrize("count", [1, 3])
def test_without_openmp_the_library_starts_threads_itself(monkeypatch, count):
    monkeypatch.setattr(library, "openmp", lambda: 0)
    assert library.parallel() not in {0, None}
    seen = threads_of(library.parallel(), count)
    assert len(set(seen)) == len(seen) == count
    assert threading.get_native_id() in seen
    assert "threads of their own" in native_kernels()


def test_as_many_threads_as_torch_uses(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert library.usable_threads() == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_uses_one_thread_and_can_load_the_library(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(library, "_loaded", None)
    if library.openmp():
        threads_of(library.openmp(), 2)  # a team, which the child will not have
    with warnings.catch_warnings(), library._lock:  # a lock that none of the child's threads holds
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of fork beside threads
        child = os.fork()
        if child == 0:
            try:
                is_right = library.usable_threads() == 1
                if library.library() is not None:
                    is_right = is_right and probe()[0] > 0
                os._exit(0 if is_right else 1)
            finally:
                os._exit(2)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert library.usable_threads() == 7
