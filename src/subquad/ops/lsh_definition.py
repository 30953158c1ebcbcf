"""The definition of LSH attention, as naive as it can be, and the exact attention it approximates.

Exact shared-QK attention: a softmax of q_i . k_j * scale, k_j = q_j / |q_j|, over all j but i
itself (over j < i if causal), and over i alone where no other token is left. LSH attention is the
same with fewer j: those that a round of hashing, or any round, puts into a chunk near i's.

Axes: B batch, H heads, R rounds of hashing, T time, K width of queries and keys, V of values.
Source: Kitaev et al. 2020, "Reformer", section 2.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subquad.ops.checks import check_key_mask
from subquad.ops.lsh_attention import Combine, check_lsh


def shared_qk_attention_quadratic(
    qk: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute exact shared-QK attention: what LSH attention tends to with ever more rounds."""
    everything = torch.ones(*qk.shape[:3], qk.shape[2], dtype=torch.bool, device=qk.device)
    weights = _weights(qk, everything, is_causal=is_causal, key_mask=key_mask, scale=scale)
    return weights @ _cleared(v, key_mask)


def lsh_attention_quadratic(
    qk: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    rotations: Float[Tensor, "R K M"],
    *,
    chunk_size: int = 32,
    chunks_before: int = 1,
    chunks_after: int = 0,
    combine: Combine = "mean",
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T V"]:
    """Compute LSH attention in O(R T^2), a token at a time; ``lsh_attention`` is tested against it.

    Args and errors: as ``lsh_attention``.
    """
    check_lsh(qk, v, rotations, chunk_size, chunks_before, chunks_after, combine)
    check_key_mask(key_mask, qk, qk.shape[0], qk.shape[2])
    meeting = lsh_meeting(
        _cleared(qk, key_mask), rotations, key_mask=key_mask,
        chunk_size=chunk_size, chunks_before=chunks_before, chunks_after=chunks_after,
    )  # fmt: skip
    seen = [meeting.any(2)] if combine == "logsumexp" else list(meeting.unbind(2))
    weights = [
        _weights(qk, pairs, is_causal=is_causal, key_mask=key_mask, scale=scale) for pairs in seen
    ]
    return torch.stack(weights).mean(0) @ _cleared(v, key_mask)


def lsh_meeting(
    qk: Float[Tensor, "B H T K"],
    rotations: Float[Tensor, "R K M"],
    *,
    key_mask: Bool[Tensor, "B T"] | None,
    chunk_size: int,
    chunks_before: int,
    chunks_after: int,
) -> Bool[Tensor, "B H R T T"]:
    """Return whether token i finds token j in its window, round by round, causal or not."""
    batch, heads, seq_len, _ = qk.shape
    rounds = len(rotations)
    meeting = torch.zeros(batch, heads, rounds, seq_len, seq_len, dtype=torch.bool)
    projected = torch.einsum("bhtk,rkm->bhrtm", qk.detach(), rotations.to(qk.dtype))
    for b in range(batch):
        tokens = [t for t in range(seq_len) if key_mask is None or key_mask[b, t]]
        for h in range(heads):
            for r in range(rounds):
                bucket = {}
                for t in tokens:
                    p = projected[b, h, r, t].tolist()
                    both = p + [-x for x in p]
                    bucket[t] = both.index(max(both))
                order = sorted(tokens, key=lambda t, of=bucket: (of[t], t))  # type: ignore[misc]
                chunk = {t: place // chunk_size for place, t in enumerate(order)}
                for i in tokens:
                    for j in tokens:
                        near = -chunks_before <= chunk[j] - chunk[i] <= chunks_after
                        meeting[b, h, r, i, j] = near
    return meeting.to(qk.device)


def _weights(
    qk: Tensor,
    pairs: Bool[Tensor, "B H T T"],
    *,
    is_causal: bool,
    key_mask: Bool[Tensor, "B T"] | None,
    scale: float | None,
) -> Float[Tensor, "B H T T"]:
    """Return the softmax weights over ``pairs``, less those that a mask forbids."""
    q = _cleared(qk, key_mask)
    scores = (q @ (q / _norm(q)).mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    itself = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    valid = torch.ones_like(pairs)
    if key_mask is not None:
        valid = valid & key_mask[:, None, None, :] & key_mask[:, None, :, None]
    others = pairs & valid & ~itself
    if is_causal:
        others = others.tril()
    alone = ~others.any(-1, keepdim=True)
    allowed = others | (alone & valid & itself)
    highest = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    weights = (scores - highest.detach()).masked_fill(~allowed, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _norm(q: Tensor) -> Tensor:
    """Return |q|, 1 for the zeros that stand in padding; the root of 0 has no slope."""
    squares = q.square().sum(-1, keepdim=True)
    return squares.masked_fill(squares == 0, 1).sqrt()


def _cleared(x: Tensor, key_mask: Tensor | None) -> Tensor:
    return x if key_mask is None else x.masked_fill(~key_mask[:, None, :, None], 0)
