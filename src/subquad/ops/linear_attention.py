"""Linear attention: sums over feature-mapped keys in place of a softmax over scores.

    y_i = phi(q_i) . sum_j w_ij phi(k_j) v_j^T / (phi(q_i) . sum_j w_ij phi(k_j))

over all valid j, or over j <= i (causal). w_ij = 1, or with a ``log_decay`` g <= 0 (causal only)
w_ij = exp(g_{j+1} + ... + g_i); the whole decay g_1 + ... + g_i applies to an incoming state.
Where the denominator is exactly 0 the output is 0 and carries no gradient. Features that are never
negative sum to 0 in every form alike; of others (a polynomial's) rounding may leave a tiny number.

Axes: B batch, H heads, T time (Tq queries, Tk keys), K features, V value size.
Names: ``phi_q``, ``phi_k`` are mapped already; ``q``, ``k`` are not.
Source: Katharopoulos et al. 2020, "Transformers are RNNs", equations 4, 5, 9 to 12, 16 to 20.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.kernels.dispatch import Impl
from subquad.ops.causal_sums import causal_sums
from subquad.ops.checks import check_cu_seqlens, check_key_mask, check_log_decay, check_qkv
from subquad.ops.feature_maps import (
    EluPlusOne,
    FeatureMap,
    check_normalize,
    elu_plus_one,
    no_autocast,
)
from subquad.ops.linear_inputs import (
    check_chunked,
    clear_broken_queries,
    features_shape,
    map_queries,
    prepare,
    show_broken_queries,
)
from subquad.ops.linear_state import LinearState, empty_past
from subquad.ops.native_linear_attention import (
    Request,
    native_operator,
    run_native,
    takes_packed,
)
from subquad.ops.packing import run_packed

Features = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
KeyMask = Bool[Tensor, "B T"]
LogDecay = Float[Tensor, "B H T"] | Float[Tensor, "B H T K"]


def linear_attention(
    q: Float[Tensor, "B H Tq D"],
    k: Float[Tensor, "B H Tk D"],
    v: Float[Tensor, "B H Tk V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    feature_map: FeatureMap = elu_plus_one,
    log_decay: LogDecay | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend in O(T): map queries and keys, then sum. The layout and words are SDPA's.

    Args:
        q: queries (B, H, Tq, D); no 1/sqrt(D) is applied.
        k: keys (B, H, Tk, D).
        v: values (B, H, Tk, V); the output has their dtype.
        is_causal: query i sees keys j <= i only; needs Tq = Tk.
        key_mask: (B, Tk) bool, True = keep. What stands in the other positions, NaN included,
            changes no output and no gradient; a query that sees no key gives 0. Then also a query
            whose features are not finite gives NaN in its own row and no gradient.
        cu_seqlens: borders 0, ..., T of sequences packed into a batch of 1 (Tq = Tk).
        feature_map: phi.
        log_decay: (B, H, T) or (B, H, T, K), at most 0; causal only.
        normalize: divide by the sum of the weights.
        impl: where it is computed; see ``Impl``.

    Returns:
        (B, H, Tq, V) in the dtype of v.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device, mask or option does not fit, or ``impl`` cannot do this.
    """
    check_qkv(q, k, v, is_causal=is_causal or cu_seqlens is not None)
    check_key_mask(key_mask, k, k.shape[0], k.shape[2])
    check_cu_seqlens(cu_seqlens, key_mask, k.shape[0], k.shape[2])
    check_normalize(feature_map, normalize)
    check_log_decay(log_decay, features_shape(k, feature_map), key_mask, is_causal=is_causal)
    with no_autocast(q):
        operator = None
        if key_mask is not None:
            k = k.masked_fill(~key_mask[:, None, :, None], 0)
        if type(feature_map) is EluPlusOne:
            request = Request(
                q, k, v, log_decay=log_decay, is_causal=is_causal, feature_map=feature_map
            )
            operator = native_operator(request, impl)
            if cu_seqlens is not None and not takes_packed(operator):
                operator = None  # by groups of like length, below
        if operator is not None:
            q, broken = clear_broken_queries(q, key_mask)
            y, _ = run_native(
                operator, q, k, v, key_mask=key_mask, log_decay=log_decay, maps_by_elu=True,
                normalize=normalize, is_causal=is_causal, cu_seqlens=cu_seqlens,
            )  # fmt: skip
        else:
            phi_q, broken = map_queries(q, feature_map, key_mask)
            if is_causal:
                y = linear_attention_causal(
                    phi_q, feature_map(k), v, key_mask=key_mask, cu_seqlens=cu_seqlens,
                    log_decay=log_decay, normalize=normalize, impl=impl,
                )  # fmt: skip
            else:
                y = linear_attention_bidirectional(
                    phi_q, feature_map(k), v, key_mask=key_mask, cu_seqlens=cu_seqlens,
                    normalize=normalize, impl=impl,
                )  # fmt: skip
    return show_broken_queries(y, broken, key_mask, is_causal=is_causal)


def linear_attention_quadratic(
    phi_q: Float[Tensor, "B H Tq K"],
    phi_k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    is_causal: bool = False,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    log_decay: LogDecay | None = None,
    normalize: bool = True,
    state: LinearState | None = None,
) -> Float[Tensor, "B H Tq V"]:
    """Compute the definition in O(T^2 K); every other form is tested against it."""
    phi_q, phi_k, wide_v, g = prepare(phi_q, phi_k, v, key_mask, log_decay, is_causal)
    products = phi_q.unsqueeze(3) * phi_k.unsqueeze(2)  # (B, H, Tq, Tk, K)
    into = torch.ones_like(phi_q[..., :1])
    if is_causal:
        seen = torch.ones(products.shape[2:4], dtype=torch.bool, device=phi_q.device).tril()
        products = products.masked_fill(~seen[..., None], 0)
    if g is not None:
        steps = g.unsqueeze(3).masked_fill(~seen.tril(-1)[..., None], 0)  # g_i for j < i
        products = products * steps.cumsum(2).masked_fill(~seen[..., None], 0).exp()
        into = g.cumsum(2).exp()
    weights = products.sum(-1)
    numerator, denominator = weights @ wide_v, weights.sum(-1)
    if state is not None:
        numerator = numerator + (phi_q * into) @ state.kv
        denominator = denominator + (phi_q * into * state.k_sum.unsqueeze(2)).sum(-1)
    return finish(numerator, denominator, normalize, v.dtype)


def linear_attention_bidirectional(
    phi_q: Float[Tensor, "B H Tq K"],
    phi_k: Float[Tensor, "B H Tk K"],
    v: Float[Tensor, "B H Tk V"],
    *,
    key_mask: Bool[Tensor, "B Tk"] | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    normalize: bool = True,
    impl: Impl = Impl.AUTO,
) -> Float[Tensor, "B H Tq V"]:
    """Attend to all keys in O((Tq + Tk) K V); Tq need not be Tk (cross-attention)."""
    if cu_seqlens is not None:
        check_qkv(phi_q, phi_k, v, is_causal=True)
        check_cu_seqlens(cu_seqlens, key_mask, phi_k.shape[0], phi_k.shape[2])

        def attend(phi_q: Tensor, phi_k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return linear_attention_bidirectional(
                phi_q, phi_k, v, key_mask=mask, normalize=normalize, impl=impl
            )

        return run_packed(attend, cu_seqlens, phi_q, phi_k, v)
    check_qkv(phi_q, phi_k, v, is_causal=False)
    check_key_mask(key_mask, phi_k, phi_k.shape[0], phi_k.shape[2])
    operator = native_operator(Request(phi_q, phi_k, v, is_causal=False), impl)
    if operator is not None:
        return run_native(
            operator, phi_q, phi_k, v, key_mask=key_mask, maps_by_elu=False, normalize=normalize,
            is_causal=False,
        )[0]  # fmt: skip
    with no_autocast(v):
        phi_q, phi_k, wide_v, _ = prepare(phi_q, phi_k, v, key_mask, None, False)
        numerator = phi_q @ (phi_k.mT @ wide_v)
        denominator = (phi_q @ phi_k.sum(2).unsqueeze(-1)).squeeze(-1)
        return finish(numerator, denominator, normalize, v.dtype)


def linear_attention_causal(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    *,
    key_mask: KeyMask | None = None,
    cu_seqlens: Int[Tensor, " S_plus_1"] | None = None,
    log_decay: LogDecay | None = None,
    normalize: bool = True,
    chunk_size: int | None = None,
    impl: Impl = Impl.AUTO,
) -> Values:
    """Attend to keys j <= i from an empty past; as ``linear_attention_chunked`` without state."""
    check_qkv(phi_q, phi_k, v, is_causal=True)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, key_mask, phi_k.shape[0], phi_k.shape[2])
        check_log_decay(log_decay, phi_k.shape, None, is_causal=True)
        request = Request(phi_q, phi_k, v, log_decay=log_decay, chunk_size=chunk_size)
        operator = native_operator(request, impl)
        if takes_packed(operator):
            return run_native(
                operator, phi_q, phi_k, v, log_decay=log_decay, cu_seqlens=cu_seqlens,
                maps_by_elu=False, normalize=normalize,
            )[0]  # fmt: skip

        def attend(phi_q: Tensor, phi_k: Tensor, v: Tensor, *decay_and_mask: Tensor) -> Tensor:
            *decay, mask = decay_and_mask
            return linear_attention_causal(
                phi_q, phi_k, v, key_mask=mask, log_decay=decay[0] if decay else None,
                normalize=normalize, chunk_size=chunk_size, impl=impl,
            )  # fmt: skip

        decay = [] if log_decay is None else [log_decay]
        return run_packed(attend, cu_seqlens, phi_q, phi_k, v, *decay)
    return linear_attention_chunked(
        phi_q, phi_k, v, empty_past(phi_k, v), key_mask=key_mask, log_decay=log_decay,
        normalize=normalize, chunk_size=chunk_size, impl=impl,
    )[0]  # fmt: skip


def linear_attention_chunked(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    state: LinearState,
    *,
    key_mask: KeyMask | None = None,
    log_decay: LogDecay | None = None,
    normalize: bool = True,
    chunk_size: int | None = None,
    impl: Impl = Impl.AUTO,
) -> tuple[Values, LinearState]:
    """Go on from ``state`` over any T >= 1 in O(T (C (K + V) + K V)), memory O(T (K + V)).

    Gradients flow through everything, the state included. Masked positions neither add to the
    state nor let it decay.

    Args:
        phi_q: mapped queries (B, H, T, K), finite also where ``key_mask`` hides: a gradient of 0
            would reach keys as 0 * NaN. ``linear_attention`` sees to that before it maps.
        phi_k: mapped keys (B, H, T, K).
        v: values (B, H, T, V).
        state: the past; ``linear_state`` makes the empty one.
        key_mask: (B, T) bool, True = keep.
        log_decay: (B, H, T) or (B, H, T, K), at most 0.
        normalize: divide by the sum of the weights.
        chunk_size: tokens done at once, by default 2 K kept within 32 to 128
            (16 with a decay a feature, whose memory grows with its square). Of the torch form
            alone, which AUTO takes if a size is given.
        impl: where it is computed; see ``Impl``.

    Returns:
        The outputs (B, H, T, V) in the dtype of v, and the state after the last token.

    Raises:
        TypeError: if ``state`` is narrower than float32 or than the other tensors.
        ValueError: if ``chunk_size`` is below 1, a shape does not fit or ``impl`` cannot do this.
    """
    check_chunked(phi_q, phi_k, v, state, key_mask, log_decay, chunk_size)
    request = Request(phi_q, phi_k, v, state, log_decay, chunk_size=chunk_size)
    operator = native_operator(request, impl)
    if operator is not None:
        return run_native(
            operator, phi_q, phi_k, v, state, key_mask=key_mask, log_decay=log_decay,
            maps_by_elu=False, normalize=normalize,
        )  # fmt: skip
    numerator, denominator, state = linear_attention_sums(
        phi_q, phi_k, v, state, key_mask=key_mask, log_decay=log_decay, chunk_size=chunk_size
    )
    return finish(numerator, denominator, normalize, v.dtype), state


def linear_attention_sums(
    phi_q: Features,
    phi_k: Features,
    v: Values,
    state: LinearState,
    *,
    key_mask: KeyMask | None = None,
    log_decay: LogDecay | None = None,
    chunk_size: int | None = None,
) -> tuple[Values, Float[Tensor, "B H T"], LinearState]:
    """Return numerator and denominator apart, for layers that make them of different features."""
    check_chunked(phi_q, phi_k, v, state, key_mask, log_decay, chunk_size)
    if chunk_size is None:
        decays_by_feature = log_decay is not None and log_decay.dim() == 4
        chunk_size = 16 if decays_by_feature else min(max(32, 2 * phi_k.shape[3]), 128)
    with no_autocast(v):
        q, k, wide_v, g = prepare(phi_q, phi_k, v, key_mask, log_decay, True)
        flat = [x.to(state.kv.dtype).flatten(0, 1) for x in (q, k, wide_v, *state)]
        decay = None if g is None else g.to(state.kv.dtype).flatten(0, 1)
        sums = causal_sums(flat[0], flat[1], flat[2], decay, flat[3], flat[4], chunk_size)
    numerator, denominator, kv, k_sum = (x.view(*k.shape[:2], *x.shape[1:]) for x in sums)
    return numerator, denominator, LinearState(kv, k_sum)


def quotient(numerator: Float[Tensor, "... V"], denominator: Float[Tensor, "..."]) -> Tensor:
    """Divide; where the denominator is exactly 0 the result is 0 and carries no gradient."""
    zero = (denominator == 0).unsqueeze(-1)
    return (numerator / denominator.unsqueeze(-1).masked_fill(zero, 1)).masked_fill(zero, 0)


def finish(numerator: Tensor, denominator: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Divide if asked to, and round to ``dtype`` last."""
    return (quotient(numerator, denominator) if normalize else numerator).to(dtype)
