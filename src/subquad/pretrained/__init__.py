"""Pretrained models of transformers with their attention swapped. Needs pip install 'subquad[hf]'.

Names are imported when first used, so that ``import subquad.pretrained`` costs nothing.
"""

import importlib
from typing import Any

_SOURCES = {
    "AttentionInputs": "recording",
    "StateCache": "state_cache",
    "attention_inputs": "recording",
    "fetch_antiberty": "weights",
    "fetch_minilm": "weights",
    "load_antiberty": "weights",
    "load_converted": "saving",
    "load_minilm": "weights",
    "load_tokenizer": "weights",
    "save_converted": "saving",
    "swap": "swapping",
}

__all__ = [
    "AttentionInputs",
    "StateCache",
    "attention_inputs",
    "fetch_antiberty",
    "fetch_minilm",
    "load_antiberty",
    "load_converted",
    "load_minilm",
    "load_tokenizer",
    "save_converted",
    "swap",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'subquad.pretrained' has no attribute {name!r}")
    return getattr(importlib.import_module(f"subquad.pretrained.{_SOURCES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_SOURCES])
