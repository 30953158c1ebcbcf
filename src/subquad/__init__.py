"""Transformers whose cost does not grow with the square of the input.

Names are imported when first used, so that ``import subquad`` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_SOURCES = {
    "attention_rows": "subquad.layers.attention_rows",
    "linear_attention": "subquad.ops.linear_attention",
    "performer_attention": "subquad.ops.performer_attention",
    "softmax_attention": "subquad.ops.softmax_attention",
}
_SUBMODULES = (
    "compat",
    "data",
    "experiments",
    "layers",
    "models",
    "ops",
    "pretrained",
    "tasks",
    "testing",
)

__all__ = ["attention_rows", "linear_attention", "performer_attention", "softmax_attention"]


def __getattr__(name: str) -> Any:
    if name in _SOURCES:
        return getattr(importlib.import_module(_SOURCES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"subquad.{name}")
    raise AttributeError(f"module 'subquad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SOURCES, *_SUBMODULES])
