"""``import subquad`` and ``subquad --help`` are quick because they load nothing heavy."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning_fabric", "matplotlib", "numpy")

# The child reports on its own sys.modules: this process has loaded torch long ago.
IMPORT = "import subquad"
HELP = """
import subquad.cli
sys.argv = ["subquad", {arguments}]
try:
    subquad.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def heavy_modules_after(code: str) -> list[str]:
    report = f"\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    child = subprocess.run(
        [sys.executable, "-c", "import json, sys\n" + code + report],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_the_probe_sees_what_is_loaded():
    assert heavy_modules_after("import numpy") == ["numpy"]


def test_importing_the_package_loads_nothing_heavy():
    assert heavy_modules_after(IMPORT) == []


@pytest.mark.parametrize("arguments", ["'--help'", "'run', '--help'"])
def test_help_loads_neither_torch_nor_lightning(arguments):
    loaded = heavy_modules_after(HELP.format(arguments=arguments))
    assert not {"torch", "lightning_fabric"} & set(loaded)
