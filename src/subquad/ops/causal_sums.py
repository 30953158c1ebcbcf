"""The one recurrence of the house, over chunks, with its backward written by hand.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T      Z_t = exp(g_t) Z_{t-1} + k_t
    numerator_t = q_t S_t                   denominator_t = q_t . Z_t

q and k are feature-mapped already. Axes: N batch x heads, T time, K features, V value size,
C chunk, G the decay's own axis: 1 (one decay a token) or K (one a feature).

Inside a chunk the pair (i, j), j <= i, is weighed by exp(g_{j+1} + ... + g_i). These exponents are
summed directly, never taken as differences of running sums: a decay of -1e30 or of -inf (a reset)
then costs no other pair its digits. Nothing is divided by a decay and no state is rebuilt by
subtraction.

The backward keeps the state at each chunk's start, N (T / C) K V numbers, and runs over the chunks
once, from the last to the first.
Source: Katharopoulos et al. 2020, equations 9 to 15 (without decay).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from subquad.ops.feature_maps import no_autocast
from subquad.ops.once_differentiable import once_differentiable


class Sums(NamedTuple):
    """What ``causal_sums`` gives: both sums for every token, and the state after the last."""

    numerator: Float[Tensor, "N T V"]
    denominator: Float[Tensor, "N T"]
    kv: Float[Tensor, "N K V"]
    k_sum: Float[Tensor, "N K"]


class _Decay(NamedTuple):
    """The weights that one chunk's log-decays g (N, C, G) imply."""

    pairs: Tensor  # (N, C, C, G): exp(g_{j+1} + ... + g_i) for j <= i, else 0
    into: Tensor  # (N, C, G): of the incoming state at i, exp(g_1 + ... + g_i)
    out: Tensor  # (N, C, G): of key j in the outgoing state, exp(g_{j+1} + ... + g_C)


def causal_sums(
    q: Float[Tensor, "N T K"],
    k: Float[Tensor, "N T K"],
    v: Float[Tensor, "N T V"],
    log_decay: Float[Tensor, "N T G"] | None,
    kv: Float[Tensor, "N K V"],
    k_sum: Float[Tensor, "N K"],
    chunk_size: int,
) -> Sums:
    """Return the sums for all t, going on from the state (``kv``, ``k_sum``).

    Time O(T (C (K + V) + K V)), memory O(T (K + V + K V / C)), backward included; with a decay a
    feature O(T C K) time and O(C^2 K) memory more. All tensors share one dtype, float32 or float64.
    """
    sums = _CausalSums.apply(q, k, v, log_decay, kv, k_sum, chunk_size)  # type: ignore[no-untyped-call]
    return Sums(*sums)


def _decay(g: Tensor) -> _Decay:
    size = g.shape[1]
    later = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1)
    # g_i at (i, j) for j < i; summed over i that gives the exponent of each pair.
    # Filled, not multiplied: 0 * -inf would be NaN.
    exponent = g.unsqueeze(2).masked_fill(~later.unsqueeze(-1), 0).cumsum(1)
    lower = torch.ones_like(later).tril()
    # The exponent is masked, not the product: exp of a future pair might overflow.
    pairs = exponent.masked_fill(~lower.unsqueeze(-1), -torch.inf).exp()
    return _Decay(pairs, g.cumsum(1).exp(), pairs[:, -1])


def _decay_backward(pairs: Tensor, into: Tensor, out: Tensor, total: Tensor) -> Tensor:
    """Turn the gradients of the exponents behind ``_Decay``, and of the chunk's sum, into g's."""
    pairs = pairs.clone()
    pairs[:, -1] += out
    later = torch.ones(pairs.shape[1:3], dtype=torch.bool, device=pairs.device).tril(-1)
    steps = _suffix_sum(pairs) * later.unsqueeze(-1)
    return steps.sum(2) + _suffix_sum(into) + total.unsqueeze(1)


def _suffix_sum(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1).flip(1)


def _scores(q: Tensor, k: Tensor, decay: _Decay | None) -> Tensor:
    """Return the causal weights of one chunk, (N, C, C)."""
    if decay is None:
        return torch.bmm(q, k.mT).tril_()
    if decay.pairs.shape[-1] == 1:
        return torch.bmm(q, k.mT).mul_(decay.pairs[..., 0]).tril_()
    return torch.einsum("nik,njk,nijk->nij", q, k, decay.pairs).tril_()


def _scores_backward(
    grad: Tensor, q: Tensor, k: Tensor, decay: _Decay | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, of k, and of the pairs' exponents (N, C, C, G)."""
    grad = grad.tril()
    if decay is None:
        return torch.bmm(grad, k), torch.bmm(grad.mT, q), None
    if decay.pairs.shape[-1] == 1:
        products = torch.bmm(q, k.mT)
        grad = grad * decay.pairs[..., 0]
        return torch.bmm(grad, k), torch.bmm(grad.mT, q), (grad * products.tril_()).unsqueeze(-1)
    weighted = grad.unsqueeze(-1) * decay.pairs
    grad_q = torch.einsum("nijk,njk->nik", weighted, k)
    grad_k = torch.einsum("nijk,nik->njk", weighted, q)
    return grad_q, grad_k, weighted * q.unsqueeze(2) * k.unsqueeze(1)


def _times(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight


class _CausalSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        kv: Tensor,
        k_sum: Tensor,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        numerator, denominator = torch.empty_like(v), torch.empty_like(q[..., 0])
        starts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, q.shape[1], chunk_size):
            c = slice(start, start + chunk_size)
            q_c, k_c, v_c = q[:, c], k[:, c], v[:, c]
            decay = None if log_decay is None else _decay(log_decay[:, c])
            starts.append((kv, k_sum))
            scores = _scores(q_c, k_c, decay)
            q_in = _times(q_c, decay.into if decay else None)
            k_out = _times(k_c, decay.out if decay else None)
            numerator[:, c] = torch.baddbmm(torch.bmm(scores, v_c), q_in, kv)
            denominator[:, c] = scores.sum(2) + torch.bmm(q_in, k_sum.unsqueeze(2)).squeeze(2)
            if decay is None:
                kv, k_sum = torch.baddbmm(kv, k_c.mT, v_c), k_sum + k_c.sum(1)
            else:
                total = decay.into[:, -1]
                kv = torch.baddbmm(kv * total.unsqueeze(2), k_out.mT, v_c)
                k_sum = k_sum * total + k_out.sum(1)
        ctx.save_for_backward(q, k, v, log_decay, *[x for pair in starts for x in pair])
        ctx.chunk_size = chunk_size
        return numerator, denominator, kv, k_sum

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_n: Tensor, grad_d: Tensor, grad_kv: Tensor, grad_k_sum: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, *starts = ctx.saved_tensors
        size = ctx.chunk_size
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_g = None if log_decay is None else torch.empty_like(log_decay)
        for n in reversed(range(len(starts) // 2)):
            c = slice(n * size, (n + 1) * size)
            chunk = _Chunk(
                q[:, c], k[:, c], v[:, c], None if log_decay is None else log_decay[:, c],
                *starts[2 * n : 2 * n + 2],
            )  # fmt: skip
            # A backward called under autocast would narrow these products.
            with no_autocast(q):
                grads = _chunk_backward(chunk, grad_n[:, c], grad_d[:, c], grad_kv, grad_k_sum)
            grad_q[:, c], grad_k[:, c], grad_v[:, c], grad_g_c, grad_kv, grad_k_sum = grads
            if grad_g is not None and grad_g_c is not None:
                grad_g[:, c] = grad_g_c
        return grad_q, grad_k, grad_v, grad_g, grad_kv, grad_k_sum, None


class _Chunk(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    kv: Tensor  # the state at the chunk's start
    k_sum: Tensor


def _chunk_backward(
    chunk: _Chunk, grad_n: Tensor, grad_d: Tensor, grad_kv: Tensor, grad_k_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Go back over one chunk: equations 13 to 15, with the suffix sum of all later chunks in
    ``grad_kv`` (N, K, V) and ``grad_k_sum`` (N, K).

    Returns the gradients of q, k, v, g (None without), and of the state at the chunk's start.
    """
    q, k, v, log_decay, kv, k_sum = chunk
    decay = None if log_decay is None else _decay(log_decay)
    scores = _scores(q, k, decay)
    grad_scores = torch.baddbmm(grad_d.unsqueeze(2), grad_n, v.mT)
    grad_q, grad_k, grad_pairs = _scores_backward(grad_scores, q, k, decay)
    grad_q_in = torch.baddbmm(grad_d.unsqueeze(2) * k_sum.unsqueeze(1), grad_n, kv.mT)
    grad_k_out = torch.baddbmm(grad_k_sum.unsqueeze(1), v, grad_kv.mT)
    if decay is None or grad_pairs is None:
        grad_v = torch.baddbmm(torch.bmm(scores.mT, grad_n), k, grad_kv)
        grad_kv = torch.baddbmm(grad_kv, q.mT, grad_n)
        grad_k_sum = grad_k_sum + torch.bmm(grad_d.unsqueeze(1), q).squeeze(1)
        return grad_q + grad_q_in, grad_k + grad_k_out, grad_v, None, grad_kv, grad_k_sum
    q_in, k_out, total = q * decay.into, k * decay.out, decay.into[:, -1]
    grad_v = torch.baddbmm(torch.bmm(scores.mT, grad_n), k_out, grad_kv)
    grad_total = ((grad_kv * kv).sum(2) + grad_k_sum * k_sum) * total
    grad_g = _decay_backward(
        grad_pairs,
        _to_axis(grad_q_in * q_in, decay.into),
        _to_axis(grad_k_out * k_out, decay.out),
        _to_axis(grad_total, total),
    )
    grad_kv = torch.baddbmm(grad_kv * total.unsqueeze(2), q_in.mT, grad_n)
    grad_k_sum = grad_k_sum * total + torch.bmm(grad_d.unsqueeze(1), q_in).squeeze(1)
    grad_q, grad_k = grad_q + grad_q_in * decay.into, grad_k + grad_k_out * decay.out
    return grad_q, grad_k, grad_v, grad_g, grad_kv, grad_k_sum


def _to_axis(x: Tensor, like: Tensor) -> Tensor:
    """Sum the last axis if the decay is one a token (last axis of ``like`` is 1)."""
    return x.sum(-1, keepdim=True) if like.shape[-1] == 1 else x
