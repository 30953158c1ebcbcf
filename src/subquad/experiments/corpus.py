"""A user's text or FASTA file as rows of tokens, by the tokenizer of a pretrained model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subquad.data.token_rows import TokenRows, Vocabulary

VALIDATION, TEST = 0.05, 0.1  # shares of the rows, taken from the end of the file
FASTA = (".fasta", ".fa", ".faa", ".fas")


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Rows in three parts, their vocabulary, and the model's id of each of its tokens."""

    train: TokenRows
    validation: TokenRows
    test: TokenRows
    vocabulary: Vocabulary
    ids: Tensor
    source: str


def read_corpus(
    path: Path, tokenizer: Any, *, vocab_size: int, masked: bool, seq_len: int
) -> Corpus:
    """Return the file's rows: blocks of a text, or a row for each sequence of a FASTA file.

    For a causal model the sequences, an end token behind each, are joined and cut in blocks. How
    many were cut or left out for a masked one ``source`` says.

    The last rows of the file are held out. What they have in common with the others, no one looks
    for: a text that repeats itself, or sequences of one family, make the held-out part easy.

    Args:
        path: a text in UTF-8, or a FASTA file by its suffix (.fasta, .fa, .faa, .fas).
        tokenizer: the model's, of transformers.
        vocab_size: the model's.
        masked: whether rows are for a masked model (between the tokenizer's ends) or a causal one.
        seq_len: tokens of a row.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no UTF-8, holds too little or nothing that the tokenizer knows, or the
            tokenizer lacks a token (mask, padding, end) or has more of them than the model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data must be a text or FASTA file, found none at {path}")
    text, said = read_text(path), ""
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id) if masked else (None, None)
    frame = [end for end in ends if end is not None]
    size = seq_len - len(frame) if masked else seq_len + 1
    if path.suffix.lower() in FASTA:
        whole = [_encode(tokenizer, " ".join(one)) for one in _sequences(text, path)]
        if masked:
            rows = [ids[:size] for ids in whole]
            cut = sum(len(ids) > size for ids in whole)
            said = f"; {cut:,} sequences cut to their first {size} tokens" if cut else ""
        else:
            end = _end(tokenizer)
            rows = _blocks([token for ids in whole for token in (*ids, end)], size)
    else:
        rows = _blocks(_encode(tokenizer, text), size)
    named = [*ends, tokenizer.mask_token_id, tokenizer.pad_token_id] if masked else []
    _check_ids(rows, named, tokenizer, vocab_size, path)
    if len(frame) == 2:
        rows = [[frame[0], *row, frame[1]] for row in rows]
    kept = [row for row in rows if len(row) > 2]
    if len(kept) < len(rows):
        said += f"; {len(rows) - len(kept):,} rows of less than 3 tokens left out"
    return _corpus(kept, _vocabulary(tokenizer, vocab_size, masked), path.name, said)


def read_text(path: Path) -> str:
    """Return what a file of text holds.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be a text in UTF-8, got {path}: {error}") from error


def _blocks(ids: list[int], size: int) -> list[list[int]]:
    return [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def _end(tokenizer: Any) -> int:
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer must have an end token for sequences of a causal model")


def _check_ids(
    rows: list[list[int]], named: list[int | None], tokenizer: Any, vocab_size: int, path: Path
) -> None:
    found = {token for row in rows for token in row}
    highest = max([*found, *(token for token in named if token is not None)], default=0)
    if highest >= vocab_size:
        raise ValueError(
            f"the tokenizer's ids must be below the model's vocab_size = {vocab_size}, "
            f"got {highest}"
        )
    if found and found <= set(tokenizer.all_special_ids):
        raise ValueError(
            f"data must hold tokens that the tokenizer knows, got special ones alone in {path}"
        )


def _corpus(
    rows: list[list[int]], words: tuple[Vocabulary, Tensor], name: str, said: str
) -> Corpus:
    validation, test = (max(1, round(share * len(rows))) for share in (VALIDATION, TEST))
    train = len(rows) - validation - test
    if train < 1:
        raise ValueError(f"{name} must hold at least 3 rows of tokens, got {len(rows)}")
    vocabulary, ids = words
    ours = torch.empty(int(ids.max()) + 1, dtype=torch.long)
    ours[ids] = torch.arange(len(ids))
    parts = (rows[:train], rows[train : train + validation], rows[train + validation :])
    made = [_rows([ours[torch.tensor(row)].numpy() for row in part]) for part in parts]
    return Corpus(
        train=made[0],
        validation=made[1],
        test=made[2],
        vocabulary=vocabulary,
        ids=ids,
        source=f"{name}: {train:,} rows to train on, {validation:,} to validate, {test:,} to test, "
        f"the last ones of the file{said}",
    )


def _rows(rows: list[Any]) -> TokenRows:
    lengths = np.array([len(row) for row in rows], np.int64)
    tokens: Any = np.concatenate(rows).astype(np.int32)
    return TokenRows(tokens, np.cumsum(lengths) - lengths, lengths)


def _vocabulary(tokenizer: Any, vocab_size: int, masked: bool) -> tuple[Vocabulary, Tensor]:
    """Put the special tokens last: the others are what may be guessed."""
    if not masked:
        return Vocabulary(letters=vocab_size, size=vocab_size), torch.arange(vocab_size)
    mask, padding = tokenizer.mask_token_id, tokenizer.pad_token_id
    if mask is None or padding is None:
        missing = "mask" if mask is None else "padding"
        raise ValueError(f"the tokenizer must have a {missing} token for a masked model")
    special = sorted({i for i in tokenizer.all_special_ids if i < vocab_size})
    letters = [i for i in range(vocab_size) if i not in set(special)]
    ids = [*letters, *special]
    vocabulary = Vocabulary(
        letters=len(letters), size=vocab_size, mask=ids.index(mask), padding=ids.index(padding)
    )
    return vocabulary, torch.tensor(ids)


def _encode(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _sequences(text: str, path: Path) -> list[str]:
    found = ["".join(record.split("\n")[1:]) for record in re.split(r"(?m)^\s*>", text)[1:]]
    found = ["".join(sequence.split()).upper() for sequence in found]
    if not text.lstrip().startswith(">") or not all(found):
        raise ValueError(f"{path} must be a FASTA file with a sequence under each header")
    return found
