"""Reformer's attention by locality-sensitive hashing (LSH), in O(T log T), queries shared as keys.

Keys are the normalised queries, k_j = q_j / |q_j|. In each round a random rotation hashes every
token, tokens are sorted by bucket, and the sorted sequence is cut into chunks; a token sees those
of its own chunk and of the one before (``chunks_before``, ``chunks_after``). Several rounds make it
likelier that two tokens of like direction meet. The rounds r are combined in one of two ways:

    mean       y_i = 1/R sum_r softmax over the tokens seen in round r
    logsumexp  y_i = softmax over the tokens seen in any round, each counted once

A token sees itself only where there is nothing else to see. The definition, with naive loops, is
in ``subquad.ops.lsh_definition``.

Axes: B batch, H heads, R rounds of hashing, T time, K width of queries and keys, V of values,
M = buckets / 2, N chunks, C tokens in a chunk, W tokens in a chunk's window.
Source: Kitaev et al. 2020, "Reformer", section 2 (logsumexp); the baseline of Katharopoulos et al.
2020 (mean).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.checks import (
    check_choice,
    check_cu_seqlens,
    check_fraction,
    check_key_mask,
    check_positive,
    check_qkv,
    check_same_device,
)
from subquad.ops.feature_maps import no_autocast, widen
from subquad.ops.lsh_grouping import (
    Chunks,
    gather_chunks,
    hash_buckets,
    seen_pairs,
    sort_into_chunks,
    times_seen,
    ungather_chunks,
    unit_keys,
    windows,
)
from subquad.ops.packing import run_packed

Combine = Literal["mean", "logsumexp"]
COMBINES = ("mean", "logsumexp")


def lsh_attention(
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
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "B H T V"]:
    """Attend within chunks of tokens that hash alike.

    With ``is_causal`` the mask is exact: token i takes values of tokens j < i only (of its own, if
    there is none), and no gradient flows to a later token. But all tokens are sorted together, so
    *which* earlier tokens share a chunk with i may depend on later tokens: changing one can change
    earlier outputs. Once T <= ``chunk_size`` this is gone. It follows that there is no state to
    decode from, and that a likelihood under this attention is not one of a strictly
    autoregressive model (docs/decisions/0009-lsh-causality.md).

    The hash jumps: rounding can put a token that lies on a border into another bucket, so results
    of two machines or dtypes agree to rounding only where no token does.

    Args:
        qk: queries (B, H, T, K), which are the keys' directions too.
        v: values (B, H, T, V).
        rotations: normal draws (R, K, M), one matrix a round, for 2 M buckets; no gradient.
        chunk_size: tokens C in a chunk; T need not be a multiple of it.
        chunks_before: how many chunks, sorted before its own, a token sees besides.
        chunks_after: the same of those sorted behind.
        combine: how the rounds become one; see above.
        is_causal: token i sees j < i only.
        key_mask: (B, T) bool, True = keep. Other positions take no part at all: what stands there,
            NaN included, changes no output and no gradient; their own outputs are 0.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1.
        scale: factor on the scores q_i . k_j, by default 1 / sqrt(K).
        dropout_p: share of the weights dropped; the caller sets 0 in evaluation.

    Returns:
        (B, H, T, V) in the dtype of ``v``; sums run in float32 or wider.

    Raises:
        TypeError: if a dtype, or the type of a number, does not fit.
        ValueError: if a shape, device, mask, number or name does not fit.
    """
    check_lsh(qk, v, rotations, chunk_size, chunks_before, chunks_after, combine)
    check_key_mask(key_mask, qk, qk.shape[0], qk.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, qk.shape[0], qk.shape[2])
    check_fraction("dropout_p", dropout_p)
    scale = 1 / math.sqrt(qk.shape[-1]) if scale is None else scale

    def attend(qk: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        if key_mask is not None:
            hidden = ~key_mask[:, None, :, None]
            qk, v = qk.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
        with no_autocast(qk):
            q, dtype = widen(qk), v.dtype
            k = unit_keys(q)
            buckets = hash_buckets(k.detach(), rotations)
            chunks = sort_into_chunks(buckets, key_mask, chunk_size=chunk_size)
            return _attend(
                q * scale, k, widen(v), chunks, chunks_before, chunks_after,
                combine=combine, is_causal=is_causal, dropout_p=dropout_p,
            ).to(dtype)  # fmt: skip

    if cu_seqlens is not None:
        return run_packed(attend, cu_seqlens, qk, v)
    return attend(qk, v, key_mask)


def check_lsh(
    qk: Tensor,
    v: Tensor,
    rotations: Tensor,
    chunk_size: int,
    chunks_before: int,
    chunks_after: int,
    combine: str,
) -> None:
    """Check what ``lsh_attention`` and its definition are given.

    Raises:
        TypeError: if a dtype, or the type of a number, does not fit.
        ValueError: if a shape, device, number or name does not fit.
    """
    check_qkv(qk, qk, v, is_causal=True)
    if not rotations.is_floating_point():
        raise TypeError(f"rotations must be of a floating dtype, got {rotations.dtype}")
    if rotations.dim() != 3 or rotations.shape[1] != qk.shape[3] or 0 in rotations.shape:
        raise ValueError(
            f"rotations must have shape (rounds, {qk.shape[3]}, buckets / 2), not empty, "
            f"got {tuple(rotations.shape)}"
        )
    check_same_device("rotations", rotations, qk)
    check_positive("chunk_size", chunk_size)
    check_reach("chunks_before", chunks_before)
    check_reach("chunks_after", chunks_after)
    check_choice("combine", combine, COMBINES)


def check_reach(name: str, value: int) -> None:
    """Require an integer of at least 0.

    Raises:
        TypeError: if ``value`` is not an int.
        ValueError: if it is below 0.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def _attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    chunks: Chunks,
    before: int,
    after: int,
    *,
    combine: Combine,
    is_causal: bool,
    dropout_p: float,
) -> Float[Tensor, "B H T V"]:
    """Attend within the windows of all rounds at once, and combine the rounds."""
    key_windows = windows(gather_chunks(k, chunks), before, after)
    value_windows = windows(gather_chunks(v, chunks), before, after)
    seen, has_other = seen_pairs(chunks, before=before, after=after, is_causal=is_causal)
    scores = gather_chunks(q, chunks) @ key_windows.mT
    if combine == "logsumexp":
        # A pair seen in n rounds gets 1 / n of its weight in each, so that their sum has it once.
        count = times_seen(chunks, before=before, after=after).clamp(min=1)
        scores = scores - count.to(scores.dtype).log()
    weights, log_total = masked_softmax(scores, seen)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    y = ungather_chunks(weights @ value_windows, chunks)
    if combine == "mean":
        return y.mean(2)
    # Rounds that show a token only itself count where all do; there, all alike.
    counts = ungather_chunks(has_other, chunks)
    log_total = ungather_chunks(log_total, chunks)
    lonely = ~counts.any(2, keepdim=True)
    log_total = log_total.masked_fill(lonely, 0)
    shares, _ = masked_softmax(log_total.movedim(2, -1), (counts | lonely).movedim(2, -1))
    return torch.einsum("bhtr,bhrtv->bhtv", shares, y)


def masked_softmax(
    scores: Float[Tensor, "*N W"], allowed: Bool[Tensor, "*N W"]
) -> tuple[Float[Tensor, "*N W"], Float[Tensor, "*N"]]:
    """Return softmax over the allowed ones, and the logarithm of its denominator.

    Where nothing is allowed the weights are 0 and the logarithm is finite, very negative.
    """
    scores = scores.masked_fill(~allowed, -torch.inf)
    highest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - highest).exp()
    total = weights.sum(-1, keepdim=True)
    total = total.masked_fill(total == 0, 1)
    return weights / total, (highest + total.log()).squeeze(-1)
