"""Imports go one way. The arrows are read from the source, inside functions too, so nothing runs.

kernels <- ops <- layers <- models <- {pretrained, tasks} <- experiments <- cli; data stands beside
models, testing beside layers, bench imports up to models, plots imports nothing of the package.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "subquad"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

LEAVES = {"files", "environment"}  # small modules that stand below everything
UP_TO_LAYERS = LEAVES | {"kernels", "ops", "layers"}
UP_TO_MODELS = UP_TO_LAYERS | {"models"}

# Which top-level modules of the package each top-level module may import, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "environment": set(),
    "kernels": LEAVES,
    "ops": LEAVES | {"kernels"},
    "layers": UP_TO_LAYERS,
    "testing": UP_TO_LAYERS,
    "data": LEAVES,
    "models": UP_TO_MODELS,
    "pretrained": UP_TO_MODELS | {"data"},
    "compat": UP_TO_MODELS,
    "kernel_features": LEAVES | {"kernels", "ops"},
    "bench": UP_TO_MODELS,
    "tasks": UP_TO_MODELS | {"data"},
    "plots": set(),
    "experiments": UP_TO_MODELS | {"data", "pretrained", "tasks", "plots", "bench"},
    "cli": UP_TO_MODELS
    | {"data", "pretrained", "tasks", "plots", "experiments", "bench", "testing"},
    "__main__": {"cli"},
    "__init__": UP_TO_MODELS,
}


def imported_names(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of each import in a module that lies in ``package``.

    ``from a import b`` gives ``a.b``, which serves for modules and for other names alike.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                yield node.lineno, str(target.value)


def backward_arrows(source: Path) -> list[str]:
    """Return one line for each import that the table does not allow."""
    faults = []
    for path in sorted(source.rglob("*.py")):
        where = path.relative_to(source)
        top = where.parts[0].removesuffix(".py")
        if top not in MAY_IMPORT:
            faults.append(f"{where}: {top} has no row in MAY_IMPORT; give it its place")
            continue
        package = [PACKAGE, *where.parts[:-1]]
        for line, name in imported_names(ast.parse(path.read_text(encoding="utf-8")), package):
            parts = name.split(".")
            if parts[0] != PACKAGE or parts[1:] == ["__version__"]:
                continue
            target = parts[1] if len(parts) > 1 else "__init__"
            if target != top and target not in MAY_IMPORT[top]:
                faults.append(f"{where}:{line}: {top} must not import {name}")
    return faults


def test_no_arrow_points_backwards():
    assert (SOURCE / "ops").is_dir(), "the package is not where this test looks for it"
    assert backward_arrows(SOURCE) == []


def test_the_rows_of_the_table_are_acyclic():
    def reach(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {path}"
        for other in MAY_IMPORT[name] - {name}:
            reach(other, (*path, name))

    for name in MAY_IMPORT:
        reach(name, ())


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("ops/bad.py", "import subquad.layers"),
        ("ops/bad.py", "from subquad import layers"),
        ("ops/bad.py", "from subquad.layers.mixer import Mixer"),
        ("ops/bad.py", "from ..layers import mixer"),
        ("ops/deep/bad.py", "from ...models import decoder"),
        ("ops/bad.py", "def f():\n    from subquad.layers import mixer"),
        ("ops/bad.py", "if TYPE_CHECKING:\n    from subquad.layers import mixer"),
        ("ops/bad.py", "import importlib\nimportlib.import_module('subquad.layers')"),
        ("ops/bad.py", "import subquad"),
        ("ops/bad.py", "from subquad import linear_attention"),
        ("kernels/bad.py", "import subquad.ops.linear_attention"),
        ("layers/bad.py", "import subquad.models"),
        ("models/bad.py", "import subquad.data"),
        ("models/bad.py", "import subquad.tasks"),
        ("data/bad.py", "import subquad.ops"),
        ("tasks/bad.py", "import subquad.experiments"),
        ("experiments/bad.py", "import subquad.cli"),
        ("plots/bad.py", "import subquad.files"),
        ("bench/bad.py", "import subquad.tasks"),
        ("newcomer.py", "import os"),
    ],
)
def test_a_bad_module_is_caught(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    faults = backward_arrows(tmp_path)
    assert len(faults) == 1
    assert file in faults[0]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("ops/good.py", "import subquad.kernels.dispatch"),
        ("ops/good.py", "from subquad.ops import checks"),
        ("ops/good.py", "from . import checks"),
        ("ops/good.py", "from subquad import __version__"),
        ("tasks/good.py", "from subquad.data import images"),
        ("plots/good.py", "import json\nfrom subquad.plots.style import COLOURS"),
        ("cli/good.py", "from subquad.experiments import registry"),
        ("kernels/good.py", "import torch\nfrom subquadratic import other"),
    ],
)
def test_a_good_module_passes(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert backward_arrows(tmp_path) == []
