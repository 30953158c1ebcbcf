"""A user's text or FASTA file as rows of tokens, by the tokenizer of a pretrained model."""

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
    """Return the file's rows: a row for each sequence of a FASTA file, blocks of a text.

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
        ValueError: if it holds too little, or the tokenizer has no mask for a masked model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data must be a text or FASTA file, found none at {path}")
    text = path.read_text(encoding="utf-8")
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id) if masked else (None, None)
    frame = [end for end in ends if end is not None]
    if path.suffix.lower() in FASTA:
        rows = [
            _encode(tokenizer, " ".join(sequence))[: seq_len - len(frame)]
            for sequence in _sequences(text, path)
        ]
    else:
        size = seq_len - len(frame) if masked else seq_len + 1
        ids = _encode(tokenizer, text)
        rows = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
    if len(frame) == 2:
        rows = [[frame[0], *row, frame[1]] for row in rows]
    rows = [row for row in rows if len(row) > 2]
    if not masked:
        longest = min(map(len, rows), default=0)
        rows = [row[:longest] for row in rows]  # a causal row needs no padding
    return _corpus(rows, _vocabulary(tokenizer, vocab_size, masked), f"{path.name}")


def _corpus(rows: list[list[int]], words: tuple[Vocabulary, Tensor], name: str) -> Corpus:
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
        "the last ones of the file",
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
    found = ["".join(record.split("\n")[1:]) for record in text.split(">")[1:]]
    found = ["".join(sequence.split()).upper() for sequence in found]
    if not text.lstrip().startswith(">") or not all(found):
        raise ValueError(f"{path} must be a FASTA file with a sequence under each header")
    return found
