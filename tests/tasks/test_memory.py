import platform
import subprocess
import sys

import pytest

from subquad.tasks import memory

CODE = """
import resource, torch
from subquad.tasks.memory import keep_freed_memory
assert {keep} is None or keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(8 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
raise SystemExit(0 if (faults() > 1000) == ({keep} is None) else 1)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
@pytest.mark.parametrize("keep", [True, None])
def test_freed_tensors_stay_in_the_process(keep):
    subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], check=True)


@pytest.mark.parametrize(("system", "libc"), [("Darwin", "glibc"), ("Linux", ""), ("Windows", "")])
def test_elsewhere_nothing_is_done(monkeypatch, system, libc):
    monkeypatch.setattr(memory.platform, "system", lambda: system)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert memory.keep_freed_memory() is False
