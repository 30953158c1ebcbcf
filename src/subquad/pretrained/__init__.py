"""Weights of other codes: Vision Transformers', and models of transformers with attention swapped.

The latter need pip install 'subquad[hf]'.
Names are imported when first used, so that ``import subquad.pretrained`` costs nothing.
"""

import importlib
from typing import Any

_SOURCES = {
    "AttentionInputs": "recording",
    "StateCache": "state_cache",
    "attention_inputs": "recording",
    "detect_vit_layout": "vit_weights",
    "fetch_antiberty": "weights",
    "fetch_minilm": "weights",
    "load_antiberty": "weights",
    "load_converted": "saving",
    "load_minilm": "weights",
    "load_tokenizer": "weights",
    "load_vit_weights": "vit_weights",
    "save_converted": "saving",
    "save_vit_weights": "vit_weights",
    "swap": "swapping",
    "vit_from_weights": "vit_weights",
    "vit_options": "vit_weights",
    "vit_state_dict": "vit_weights",
}

__all__ = [
    "AttentionInputs",
    "StateCache",
    "attention_inputs",
    "detect_vit_layout",
    "fetch_antiberty",
    "fetch_minilm",
    "load_antiberty",
    "load_converted",
    "load_minilm",
    "load_tokenizer",
    "load_vit_weights",
    "save_converted",
    "save_vit_weights",
    "swap",
    "vit_from_weights",
    "vit_options",
    "vit_state_dict",
]


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module 'subquad.pretrained' has no attribute {name!r}")
    return getattr(importlib.import_module(f"subquad.pretrained.{_SOURCES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_SOURCES])
