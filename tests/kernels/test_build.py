"""The wheel, built with a compiler and without: what is in it, and what pip says.

These need PyPI for the build requirements, as every installation does.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from subquad.kernels.cpu import library

ROOT = Path(__file__).parents[2]
COMPILER = re.compile(
    r"(.*-)?(c\+\+|g\+\+|cc|gcc|clang|clang\+\+|icpx|icx|c89|c99)(-[\d.]+)?|cl|CC"
)
PACKAGE = "subquad/kernels/cpu/"

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what an installation reads."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    leave_out = shutil.ignore_patterns("__pycache__", "_kernels.*", "CMakeFiles", "CMakeCache.txt")
    shutil.copytree(ROOT / "src", copy / "src", ignore=leave_out)
    return copy


def build_wheel(checkout, environment, *options):
    """Return the wheel, and all that pip printed."""
    wheels = checkout / "dist"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", wheels, *options, checkout],
        env=environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (wheel,) = wheels.glob("*.whl")
    return wheel, done.stdout


def environment_without(*names):
    return {name: word for name, word in os.environ.items() if name not in names}


def environment_without_compiler(folder):
    """Return one whose PATH holds every program but compilers, where CMake looks nowhere else."""
    folder.mkdir()
    searched = [Path(x) for x in os.environ["PATH"].split(os.pathsep) if Path(x).is_dir()]
    for program in (p for path in searched for p in path.iterdir()):
        link = folder / program.name
        if not COMPILER.fullmatch(program.name) and not link.is_symlink():
            link.symlink_to(program)
    ignored = ";".join(str(x) for x in {*searched, Path("/usr/bin"), Path("/bin")})
    return {
        **environment_without("CC", "CXX", "CMAKE_GENERATOR"),
        "PATH": str(folder),
        "CMAKE_ARGS": f"-DCMAKE_SYSTEM_IGNORE_PATH={ignored}",
    }


def has_compiler():
    return any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.mark.skipif(not has_compiler(), reason="no compiler")
def test_with_a_compiler_the_wheel_holds_the_library_and_fits_every_python(checkout, tmp_path):
    build = tmp_path / "build"
    wheel, _ = build_wheel(checkout, dict(os.environ), "-C", f"build-dir={build}")
    assert re.fullmatch(r"subquad-[^-]+-py3-none-(?!any)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        inside = [name for name in file.namelist() if name.startswith(PACKAGE)]
        file.extractall(tmp_path / "installed")
    assert PACKAGE + "_kernels" + library.SUFFIX in inside
    assert {Path(name).suffix for name in inside} == {".py", library.SUFFIX}
    path = tmp_path / "installed" / PACKAGE / ("_kernels" + library.SUFFIX)
    loaded, reason = library._load(path, "")
    assert reason is None
    assert loaded.subquad_abi_version() == library.ABI_VERSION
    if shutil.which("nm"):
        assert_nothing_is_shared(build)


def assert_nothing_is_shared(build):
    """Assert that no function of one instruction set can be taken for that of another."""
    objects = sorted(build.glob("CMakeFiles/kernels_*.dir/kernels.cpp.o"))
    assert objects
    for file in objects:
        isa = file.parent.name.removeprefix("kernels_").removesuffix(".dir")
        assert f"subquad_probe_{isa}" in symbols(file, "T")
        assert mergeable(file, isa) == []


def symbols(file, kinds):
    lines = subprocess.run(
        ["nm", "-C", "--defined-only", file], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = (re.fullmatch(r"\S+ (\S) (.+)", line).groups() for line in lines)
    return [name for kind, name in found if kind in kinds]


def mergeable(file, isa):
    """Return the symbols that the linker merges by name with those of another build.

    Not those in the namespace of the instruction set, and not pointers to the runtime (DW.ref.).
    """
    return [
        name
        for name in symbols(file, "WVu")
        if f"subquad::{isa}::" not in name and not name.startswith("DW.ref.")
    ]


@pytest.mark.skipif(not (has_compiler() and shutil.which("nm")), reason="no compiler, or no nm")
def test_a_container_in_a_kernel_would_be_noticed(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text(
        "#include <vector>\n"
        "int leak(std::vector<int>& x) { x.push_back(1); x.insert(x.begin(), 2); return x[0]; }"
    )
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    subprocess.run([compiler, "-O2", "-c", source, "-o", tmp_path / "leak.o"], check=True)
    assert any("std::vector" in name for name in mergeable(tmp_path / "leak.o", "avx512"))


def test_without_a_compiler_the_same_command_gives_a_wheel_in_pure_python(checkout, tmp_path):
    wheel, said = build_wheel(checkout, environment_without_compiler(tmp_path / "bin"))
    assert "No CMAKE_CXX_COMPILER could be found" in said
    assert "the native kernels could not be built (see above); torch's forms are used" in said
    assert re.fullmatch(r"subquad-[^-]+-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        inside = [name for name in file.namelist() if name.startswith(PACKAGE)]
    assert PACKAGE + "library.py" in inside
    assert {Path(name).suffix for name in inside} == {".py"}


def test_sources_that_do_not_compile_give_a_wheel_in_pure_python(checkout):
    with (checkout / "src" / PACKAGE / "csrc/library.cpp").open("a") as file:
        file.write("#error broken\n")
    wheel, said = build_wheel(checkout, dict(os.environ))
    assert "retrying due to override" in said
    assert wheel.name.endswith("-py3-none-any.whl")
