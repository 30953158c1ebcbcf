"""Where a result was measured: versions, machine, commit, date and command.

Every result file carries this stamp, and such files are committed and shared, so it names no host,
no user and no absolute path. torch is imported only when the stamp is taken.
"""

import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from subquad import __version__

PACKAGES = ("torch", "numpy", "safetensors", "lightning-fabric", "matplotlib", "triton")

Json = dict[str, Any]


def environment(command: Sequence[str] | None = None) -> Json:
    """Return the stamp that goes beside every measured number, ready for JSON.

    ``command`` is the command line to record (default: this process's own). ``memory_gb`` and
    ``gpu_memory_gb`` are in units of 1e9 bytes; what cannot be found out is None.
    """
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "command": command_line(sys.argv if command is None else command),
        "commit": source_commit(),
        "subquad": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        **_gpu(),
    }


def command_line(argv: Sequence[str]) -> str:
    """Return ``argv`` as one line in which every absolute path is cut to its last part."""
    program, *arguments = argv or ["subquad"]
    name = Path(program).name
    if name in {"__main__.py", "__init__.py", "-c", "-m"}:
        name = "subquad"
    return " ".join([name, *(without_folders(token) for token in arguments)])


def source_commit() -> str | None:
    """Return the commit of the checkout this package runs from, with "-dirty" where files differ.

    None where the package was installed from a wheel, or where git is missing.
    """
    root = Path(__file__).resolve().parents[2]
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("-dirty" if _git(root, "status", "--porcelain", "--", "src") else "")


def processor_name() -> str | None:
    """Return the processor's model name, as the system states it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else (platform.processor() or platform.machine())


def available_cores() -> int:
    """Return how many cores this process may use, which containers often limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def without_folders(token: str) -> str:
    """Return a word of a command line with an absolute path in it cut to the path's last part."""
    prefix, equals, value = token.partition("=") if token.startswith("-") else ("", "", token)
    if value.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", value):
        value = re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return f"{prefix}{equals}{value}"


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu() -> Json:
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_count": torch.cuda.device_count(),
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
    }
