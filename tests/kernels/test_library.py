"""The kernel library: found or not and why, one build for each instruction set, whose threads."""

import _ctypes
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from cases.kernels import needs_library, probe
from subquad.cli.info import forms, native_kernels
from subquad.kernels.cpu import library

LANES = {"baseline": 4, "avx2": 8, "avx512": 16}


@pytest.fixture
def anew(monkeypatch):
    """Let the library be loaded again, and forget that at the end."""
    before = library.instruction_set() if library.library() else None
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setattr(library, "_functions", {})
    monkeypatch.delenv("SUBQUAD_ISA", raising=False)
    yield monkeypatch
    monkeypatch.undo()
    if before:
        library.use_instruction_set(before)


def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "_kernels.so")


# Is it there, and if not, why?


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
def test_an_installation_with_a_compiler_has_the_library():
    assert library.why_not() is None
    assert isinstance(library.library(), ctypes.CDLL)


def test_without_the_file_the_reason_names_the_compiler(anew, tmp_path):
    without_library(anew, tmp_path)
    assert library.library() is None
    assert "no C++17 compiler (GCC or Clang), or the build failed" in library.why_not()
    assert library.parallel() in {0, library.openmp()}
    for function in (library.instruction_set, library.instruction_sets, probe):
        with pytest.raises(RuntimeError, match="was not built"):
            function()
    with pytest.raises(RuntimeError, match="was not built"):
        library.use_instruction_set("baseline")


def test_a_file_that_is_no_library_is_a_reason(tmp_path):
    path = tmp_path / "_kernels.so"
    path.write_bytes(b"no library")
    loaded, reason = library._load(path, "")
    assert loaded is None
    assert reason.startswith("the kernel library cannot be loaded: ")


def test_a_foreign_library_is_refused():
    from pathlib import Path

    loaded, reason = library._load(Path(_ctypes.__file__), "")
    assert loaded is None
    assert f"has interface None, and this version of subquad needs {library.ABI_VERSION}" in reason


@needs_library
def test_a_library_of_another_version_is_refused(anew):
    anew.setattr(library, "ABI_VERSION", library.ABI_VERSION + 1)
    assert library.library() is None
    assert "install subquad again" in library.why_not()


def test_it_is_loaded_once_for_all_threads(anew):
    loads, results = [], []
    original = library._load

    def slow(path, isa):
        loads.append(path)
        time.sleep(0.05)
        return original(path, isa)

    anew.setattr(library, "_load", slow)
    threads = [threading.Thread(target=lambda: results.append(library.library())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(results) == 8
    assert all(x is results[0] for x in results)


@needs_library
def test_arguments_of_another_size_are_refused():
    class Short(ctypes.Structure):
        _fields_ = (("nan", ctypes.c_float),)

    library._functions.pop("probe", None)
    with pytest.raises(RuntimeError, match="native kernel probe must take 40 bytes, got 4;"):
        library.call("probe", Short())
    assert probe()[0] > 0


@needs_library
@pytest.mark.parametrize(("code", "error"), [(1, MemoryError), (2, RuntimeError)])
def test_what_a_kernel_returns_becomes_an_error(monkeypatch, code, error):
    monkeypatch.setitem(library._functions, "probe", lambda _: code)
    with pytest.raises(error, match="the native kernel probe f"):
        probe()


# Instruction sets.


@needs_library
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_each_build_is_what_its_name_says(anew, name):
    if name not in library.instruction_sets():
        with pytest.raises(ValueError, match=r"must be one that runs here \(baseline"):
            library.use_instruction_set(name)
        pytest.skip(f"{name} does not run here")
    library.use_instruction_set(name)
    assert library.instruction_set() == name
    lanes, keeps_nan, keeps_order = probe()
    assert lanes == LANES[name]
    assert keeps_nan == 1
    assert keeps_order == 1


@needs_library
def test_the_first_call_loads_the_library_and_chooses_the_widest():
    code = """if True:
        from pathlib import Path
        from subquad.kernels.cpu import library
        maps = Path("/proc/self/maps")
        assert library._loaded is None
        assert not maps.exists() or "_kernels.so" not in maps.read_text(), "loaded by the import"
        print(library.instruction_set(), *library.instruction_sets())
    """
    environment = {name: word for name, word in os.environ.items() if name != "SUBQUAD_ISA"}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert child.stderr == ""
    used, *here = child.stdout.split()
    assert used == here[-1]
    assert here[0] == "baseline"


@needs_library
def test_the_environment_forces_a_narrower_one(anew):
    anew.setenv("SUBQUAD_ISA", "baseline")
    assert library.library() is not None
    assert library.instruction_set() == "baseline"
    assert probe()[0] == 4


@needs_library
@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_the_processor_s_flags_agree(name):
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            flags = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with flags")
    wanted = {"avx2": ["avx2", "fma"]}.get(name, ["avx512f", "avx512bw", "avx512vl", "avx512dq"])
    assert (name in library.instruction_sets()) == all(flag in flags for flag in wanted)


def test_an_unknown_instruction_set_is_refused(anew, tmp_path):
    message = "SUBQUAD_ISA must be one of baseline, avx2, avx512, got 'sse9'"
    anew.setenv("SUBQUAD_ISA", "sse9")
    for function in (library.library, library.why_not):
        with pytest.raises(ValueError, match=message):
            function()
    assert native_kernels() == f"error: {message}"
    assert "native kernels" in forms()
    without_library(anew, tmp_path)
    with pytest.raises(ValueError, match=message):
        library.library()


@needs_library
def test_an_instruction_set_that_does_not_run_here_is_refused(anew):
    anew.setattr(library, "INSTRUCTION_SETS", ("amx",))
    anew.setenv("SUBQUAD_ISA", "amx")
    with pytest.raises(
        ValueError, match=r"SUBQUAD_ISA must be one that runs here \(baseline.*\), got 'amx'"
    ):
        library.library()


# subquad info.


def test_info_says_why_there_are_no_kernels_and_what_is_used(anew, tmp_path):
    without_library(anew, tmp_path)
    words = native_kernels()
    assert words.startswith(
        "none, torch's forms are used instead: the kernel library was not built"
    )
    assert forms()["linear attention"].startswith("torch")


@needs_library
def test_info_names_the_instruction_set(anew):
    library.use_instruction_set("baseline")
    assert native_kernels().startswith("C++ for baseline, on ")
    assert forms()["linear attention"].startswith("C++")
