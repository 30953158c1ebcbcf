"""Checks of key_mask and cu_seqlens: padding and packing must be as if each sequence were alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from subquad.testing.probe import Probe

# A short batch, and one longer than any likely chunk; rows of length 1 and all-valid rows in it.
BATCHES = ((7, 1, 12, 5), (131, 40))


class Sequences(NamedTuple):
    """Sequences of their own lengths, and a weight for each output number, which makes a loss."""

    tokens: list[Tensor]  # each (T_i, D)
    weights: list[Tensor]


def draw_sequences(probe: Probe, lengths: tuple[int, ...]) -> Sequences:
    """Draw sequences of these lengths."""
    return Sequences(
        [probe.draw(n, probe.d_model) for n in lengths],
        [probe.draw(n, probe.d_model) for n in lengths],
    )


def pad(rows: list[Tensor], seq_len: int, fill: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
    """Lay rows (T_i, D) into ``fill`` (B, seq_len, D); return that and its key_mask."""
    x = fill.clone()
    mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    for i, row in enumerate(rows):
        start = seq_len - len(row) if left else 0
        x[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = True
    return x, mask


def one_by_one(probe: Probe, sequences: Sequences) -> dict[str, Tensor]:
    """Return outputs and gradients of the sequences, each run alone."""
    leaves = [x.clone().requires_grad_() for x in sequences.tokens]
    outputs = [probe.mixer(x.unsqueeze(0))[0] for x in leaves]
    loss = sum((y * w).sum() for y, w in zip(outputs, sequences.weights, strict=True))
    assert isinstance(loss, Tensor)
    grads = probe.gradients(loss, {f"row {i}": x for i, x in enumerate(leaves)})
    return {**_outputs(outputs), **grads}


def padded(probe: Probe, sequences: Sequences, fill: Tensor, *, left: bool) -> dict[str, Tensor]:
    """Return the same of the sequences padded with ``fill``, and judge the padded positions."""
    x, mask = pad(sequences.tokens, fill.shape[1], fill, left=left)
    weights, _ = pad(sequences.weights, fill.shape[1], torch.zeros_like(fill), left=left)
    x.requires_grad_()
    y = probe.mixer(x, key_mask=mask)
    probe.finite({"an output at a padded position": y[~mask]}, "")
    grads = probe.gradients((y * weights)[mask].sum(), {"x": x})
    grad = grads.pop("the gradient of x")
    probe.require(bool((grad[~mask] == 0).all()), "a gradient reaches padded tokens")
    rows = {f"the gradient of row {i}": grad[i][mask[i]] for i in range(len(x))}
    return {**_outputs([y[i][mask[i]] for i in range(len(x))]), **rows, **grads}


def packed(probe: Probe, sequences: Sequences) -> dict[str, Tensor]:
    """Return the same of the sequences packed, with an empty sequence among them."""
    lengths = [len(x) for x in sequences.tokens]
    x = torch.cat(sequences.tokens).unsqueeze(0).requires_grad_()
    y = probe.mixer(x, cu_seqlens=_borders(probe, [lengths[0], 0, *lengths[1:]]))
    grads = probe.gradients((y[0] * torch.cat(sequences.weights)).sum(), {"x": x})
    rows = torch.split(grads.pop("the gradient of x")[0], lengths)
    named = {f"the gradient of row {i}": row for i, row in enumerate(rows)}
    return {**_outputs(list(torch.split(y[0], lengths))), **named, **grads}


def garbage_and_padding(probe: Probe) -> None:
    """Compare every padding, with everything in it, and packing, with each sequence alone."""
    for lengths in BATCHES:
        sequences = draw_sequences(probe, lengths)
        expected = one_by_one(probe, sequences)
        shape = (len(lengths), max(lengths) + 2, probe.d_model)
        fills = {"0": 0.0, f"{probe.large:.0e}": probe.large, "NaN": torch.nan}
        contents = {name: probe.draw(*shape).fill_(value) for name, value in fills.items()}
        for name, fill in {"garbage": probe.draw(*shape), **contents}.items():
            for side in ("right", "left"):
                actual = padded(probe, sequences, fill, left=side == "left")
                probe.close(actual, expected, f"under {side} padding with {name} in it")
        probe.close(packed(probe, sequences), expected, "when packed by cu_seqlens")
    holes(probe)


def holes(probe: Probe) -> None:
    """Hide tokens between valid ones: what stands there must not matter."""
    x = probe.draw(2, 9, probe.d_model)
    mask = probe.mask([[n % 3 != 1 for n in range(9)], [n in (2, 3, 7) for n in range(9)]])
    expected = {"the output": probe.mixer(x, key_mask=mask)[mask]}
    x = x.masked_fill(~mask.unsqueeze(-1), torch.nan)
    actual = {"the output": probe.mixer(x, key_mask=mask)[mask]}
    probe.close(actual, expected, "with NaN between valid tokens, hidden by key_mask")


def packed_apart(probe: Probe) -> None:
    """Plant a large number in one packed sequence and look at the others."""
    lengths = [6, 9, 5]
    x = probe.draw(1, sum(lengths), probe.d_model)
    borders = _borders(probe, lengths)
    expected = probe.mixer(x, cu_seqlens=borders)[0].split(lengths)
    for changed, part in enumerate(torch.split(torch.arange(sum(lengths)), lengths)):
        other = x.clone()
        other[0, part] = probe.large
        actual = probe.mixer(other, cu_seqlens=borders)[0].split(lengths)
        for i in {0, 1, 2} - {changed}:
            probe.same(actual[i], expected[i], f"sequence {i} sees sequence {changed} of a pack")


def empty_row(probe: Probe) -> None:
    """Hide all of a row, beside another and alone, with 0 and with NaN in it."""
    (row,), (weight,) = draw_sequences(probe, (7,))
    expected = {"the output of the other row": probe.mixer(row.unsqueeze(0))[0]}
    for value in (0.0, torch.nan):
        x = torch.full((2, 7, probe.d_model), value, dtype=row.dtype, device=row.device)
        x[0] = row
        mask = probe.mask([[True] * 7, [False] * 7])
        for rows in (slice(0, 2), slice(1, 2)):
            leaf = x[rows].clone().requires_grad_()
            y = probe.mixer(leaf, key_mask=mask[rows])
            when = f"where key_mask hides a whole row with {value} in it"
            probe.finite({"the output": y}, when)
            probe.finite(probe.gradients((y * weight).sum(), {"x": leaf}), when)
            if len(y) == 2:
                probe.close({"the output of the other row": y[0]}, expected, when)


def refusals(probe: Probe) -> None:
    """Give both masks at once."""
    x = probe.draw(1, 4, probe.d_model)
    both = {"key_mask": probe.mask([[True] * 4]), "cu_seqlens": _borders(probe, [2, 2])}
    try:
        probe.mixer(x, **both)
    except ValueError:
        return
    probe.fail("key_mask and cu_seqlens given together raise no ValueError")


def _outputs(rows: list[Tensor]) -> dict[str, Tensor]:
    return {f"the output of row {i}": y for i, y in enumerate(rows)}


def _borders(probe: Probe, lengths: list[int]) -> Tensor:
    ends = torch.tensor(lengths, device=probe.device).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends])
