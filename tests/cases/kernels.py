"""The smallest call of the kernel library."""

import ctypes

import pytest

from subquad.kernels.cpu import library

needs_library = pytest.mark.skipif(
    not library.library_path().exists(), reason="this installation has no kernel library"
)


class Probe(ctypes.Structure):
    """``subquad_probe`` of csrc/probe.h."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("nan", "one", "tiny")),
        *((name, ctypes.POINTER(ctypes.c_int32)) for name in ("lanes", "keeps_nan", "keeps_order")),
    )


def probe():
    found = [ctypes.c_int32(-1) for _ in range(3)]
    library.call("probe", Probe(float("nan"), 1.0, 2.0**-24, *map(ctypes.pointer, found)))
    return [x.value for x in found]
