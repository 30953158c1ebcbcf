"""The shared library that holds the C++ kernels: where it is, whether it is, and its threads.

It is built when the package is installed, if a compiler is there, and loaded at the first call.
One library holds a build for each instruction set (``baseline``, ``avx2``, ``avx512``); the widest
that processor and system support is used, or the one that the environment variable ``SUBQUAD_ISA``
names. It brings no OpenMP runtime: kernels run on the threads of the one that torch has loaded.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ABI_VERSION = 3  # of csrc/library.cpp; the two change together
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # those that some machine has, narrowest first
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

# What kernels return, see csrc/isa.h.
_DONE, _OUT_OF_MEMORY = 0, 1


class _Loaded(NamedTuple):
    """The library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str | None


_lock = threading.Lock()
_loaded: _Loaded | None = None
_is_forked = False
_functions: dict[str, Callable[..., int]] = {}  # those called before, by name


def library_path() -> Path:
    """Return where the library stands if this installation has it."""
    return Path(__file__).with_name("_kernels" + SUFFIX)


def library() -> ctypes.CDLL | None:
    """Return the library, loaded once and for all threads; None where there is none.

    Raises:
        ValueError: if ``SUBQUAD_ISA`` names no instruction set, or one that is not to be had here.
    """
    return _load_once().library


def why_not() -> str | None:
    """Return one sentence on why there is no library; None where there is one."""
    return _load_once().reason


def instruction_set() -> str:
    """Return the instruction set whose build is in use: baseline, avx2 or avx512.

    Raises:
        RuntimeError: if there is no library.
    """
    return _text("subquad_instruction_set")


def instruction_sets() -> tuple[str, ...]:
    """Return those that the library holds and this machine runs, narrowest first.

    Raises:
        RuntimeError: if there is no library.
    """
    return tuple(_text("subquad_instruction_sets").split())


def use_instruction_set(name: str) -> None:
    """Use the build for another instruction set from now on, in every thread.

    For tests and measurements: results differ by rounding.

    Raises:
        ValueError: if ``name`` is no instruction set, or one that is not to be had here.
        RuntimeError: if there is no library.
    """
    _use(_required(), name, "the instruction set")


def call(function: str, arguments: ctypes.Structure) -> None:
    """Call ``subquad_<function>`` of csrc/functions.h, with the interpreter's lock given up.

    Raises:
        MemoryError: if the kernel could not get its scratch memory.
        RuntimeError: if there is no library, if it declares the structure otherwise, or if the
            kernel failed in another way.
    """
    if function not in _functions:
        _functions[function] = _find(function, ctypes.sizeof(arguments))
    code = _functions[function](ctypes.byref(arguments))
    if code == _OUT_OF_MEMORY:
        raise MemoryError(f"the native kernel {function} found no memory to work in")
    if code != _DONE:
        raise RuntimeError(f"the native kernel {function} failed with code {code}")


def parallel() -> int:
    """Return the address of a C function that runs another on a team of threads.

    ``void run(void (*fn)(void*), void* argument, unsigned threads, unsigned flags)``: GOMP_parallel
    of the OpenMP runtime that torch has loaded, so kernels and torch share one team. Where torch
    has none, it is the library's own, which starts threads for the time of the call. Either may run
    ``fn`` on fewer threads than asked for, so ``fn`` shares out its work by a counter. 0 where
    there is neither.
    """
    if (address := openmp()) != 0:
        return address
    return 0 if (loaded := library()) is None else _address(loaded.subquad_parallel)


@functools.cache
def openmp() -> int:
    """Return the address of GOMP_parallel that torch itself would call; 0 where there is none.

    A search that begins at torch's library finds what that library is linked with, also where the
    process holds another runtime besides. libgomp, libiomp5 and libomp all have this function.
    """
    if sys.platform == "win32":  # without RTLD_NOLOAD, and its libiomp5md has no such function
        return 0
    name = "libtorch_cpu" + SUFFIX
    beside = str(Path(torch.__file__).with_name("lib") / name)
    for path in (beside, name, f"@rpath/{name}"):
        try:
            # NOLOAD: what torch has not loaded is not loaded now.
            loaded = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return _address(loaded.GOMP_parallel)
        except (OSError, AttributeError):
            continue
    return 0


def usable_threads() -> int:
    """Return how many threads a kernel may use: ``torch.get_num_threads()``, but 1 after a fork.

    A forked process has only the thread that forked. libgomp does not notice: it waits for ever for
    the team that the parent had. torch's own operators hang in this way too; ours do not. A process
    counts as forked if this module was imported before.
    """
    return 1 if _is_forked else torch.get_num_threads()


def threads_for(work: int) -> int:
    """Return how many threads a kernel may use for so many multiply-adds, roughly counted.

    A tiny call is done before a second thread is awake.
    """
    return usable_threads() if work > 2_000_000 else 1


def _load_once() -> _Loaded:
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load(library_path(), os.environ.get("SUBQUAD_ISA", ""))
    return _loaded


def _load(path: Path, isa: str) -> _Loaded:
    if isa:
        _check_known(isa, "SUBQUAD_ISA")
    if not path.exists():
        return _Loaded(
            None,
            "the kernel library was not built when subquad was installed: there was no C++17 "
            "compiler (GCC or Clang), or the build failed, which pip install -v shows",
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return _Loaded(None, f"the kernel library cannot be loaded: {error}")
    if (version := _abi_version(loaded)) != ABI_VERSION:
        return _Loaded(
            None,
            f"the kernel library has interface {version}, and this version of subquad needs "
            f"{ABI_VERSION}: install subquad again, which builds it anew",
        )
    for function in ("subquad_instruction_set", "subquad_instruction_sets"):
        getattr(loaded, function).restype = ctypes.c_char_p
    if isa:
        _use(loaded, isa, "SUBQUAD_ISA")
    return _Loaded(loaded, None)


def _abi_version(loaded: ctypes.CDLL) -> int | None:
    try:
        return int(loaded.subquad_abi_version())
    except AttributeError:
        return None


def _check_known(name: str, what: str) -> None:
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"{what} must be one of {', '.join(INSTRUCTION_SETS)}, got {name!r}")


def _use(loaded: ctypes.CDLL, name: str, what: str) -> None:
    _check_known(name, what)
    if not loaded.subquad_use(name.encode()):
        here = loaded.subquad_instruction_sets().decode().replace(" ", ", ")
        raise ValueError(f"{what} must be one that runs here ({here}), got {name!r}")


def _find(function: str, size: int) -> Callable[..., int]:
    loaded = _required()
    found: Callable[..., int] = getattr(loaded, f"subquad_{function}")
    if (theirs := getattr(loaded, f"subquad_{function}_bytes")()) != size:
        raise RuntimeError(
            f"the arguments of the native kernel {function} must take {theirs} bytes, got {size}; "
            "the library is older or newer than the Python beside it: install subquad again"
        )
    return found


def _required() -> ctypes.CDLL:
    loaded, reason = _load_once()
    if loaded is None:
        raise RuntimeError(reason)
    return loaded


def _text(function: str) -> str:
    text: bytes = getattr(_required(), function)()
    return text.decode()


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _after_fork() -> None:
    # The lock may have been held by a thread that the child does not have.
    global _is_forked, _lock
    _is_forked = True
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
