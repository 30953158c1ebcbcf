"""The kernels that make the gradients: of queries forward in time, of keys and values backward.

Names: N = B H rows of heads, n one of them; ``dy`` is the gradient of the numerator,
``dd`` that of the denominator, ``grad_kv`` that of the state after the tokens done so far.
"""

from typing import no_type_check

import triton
import triton.language as tl

from subquad.kernels.triton._pieces import (
    VARYING,
    causal,
    clear_broken,
    features,
    last_row,
    log_decays,
    pair_exponents,
    product,
    rotate,
    rows,
    seen,
    span_of,
    store_rows,
    through_features,
)


@triton.jit
@no_type_check
def over_denominator(grad_out, denominator, t, end, IS_NORMALIZED: tl.constexpr):
    """Return the numerator's gradient: grad_out / denominator, 0 where that is 0."""
    if IS_NORMALIZED:
        d = tl.load(denominator + t, mask=t < end, other=0.0)
        zero = d == 0.0
        grad_out = grad_out * tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, d))[:, None]
    return grad_out


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def query_walk(  # noqa: C901 (each branch is chosen at compile time)
    q, k, v, grad_out, log_decay, key_mask, cos, sin, denominator, grad_denominator,
    kv_in, k_sum_in, grad_kv_in, grad_k_sum_in, spans, grad_q, query_dots, anchors,
    qb, qh, qt, qk, kb, kh, kt, kk_, vb, vh, vt, vv_, gb, gh, gt, gv,
    num_heads, num_rows, seq_len, num_segments, segment, num_features, value_dim,
    IS_ELU: tl.constexpr, IS_NORMALIZED: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_ROTATION: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_GRAD_STATE: tl.constexpr, IS_PACKED: tl.constexpr,
    CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk forward with the state of BK features and all values; write grad_q.

    With decays also phi(q) . grad phi(q) of each token, and <state, its gradient> at the
    span's end, each for the features of this block (``query_dots``, ``anchors``).
    """
    pid = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    b, begin, end, _sequence, _is_first, _is_last = span_of(
        spans, pid // num_heads, seq_len, num_segments, segment, IS_PACKED
    )
    h = pid % num_heads
    n = b * num_heads + h
    kk, vv, order = block * BK + tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, CHUNK)
    pp, pairs = block * (BK // 2) + tl.arange(0, BK // 2), num_features // 2
    q += b * qb + h * qh
    k += b * kb + h * kh
    v += b * vb + h * vh
    grad_out += b * gb + h * gh
    grad_q += n * seq_len * num_features
    if HAS_DECAY:
        log_decay += n * seq_len
        query_dots += (block * num_rows + n) * seq_len
    if HAS_MASK:
        key_mask += b * seq_len
    if HAS_ROTATION:
        cos += b * seq_len * pairs
        sin += b * seq_len * pairs
    if IS_NORMALIZED:
        denominator += n * seq_len
        grad_denominator += n * seq_len

    width = (kk < num_features)[None, :]
    tile = kk.to(tl.int64)[:, None] * value_dim + vv[None, :]
    fits = (kk < num_features)[:, None] & (vv < value_dim)[None, :]
    kv = tl.zeros((BK, BV), tl.float32)
    k_sum = tl.zeros((BK,), tl.float32)
    if HAS_STATE:
        kv = tl.load(kv_in + pid * num_features * value_dim + tile, mask=fits, other=0.0)
        k_sum = tl.load(k_sum_in + pid * num_features + kk, mask=kk < num_features, other=0.0)
    for start in range(begin, end, CHUNK):
        t = start + order
        inside = t < end
        visible = seen(key_mask, t, end, HAS_MASK)
        x_k = rows(k, t, kk, kt, kk_, end, num_features)
        phi_k = features(x_k, visible[:, None] & width, IS_ELU)
        values = rows(v, t, vv, vt, vv_, end, value_dim)
        values = tl.where(visible[:, None], values, 0.0)
        dy = rows(grad_out, t, vv, gt, gv, end, value_dim)
        dy = over_denominator(dy, denominator, t, end, IS_NORMALIZED)

        grad_weights = product(dy, tl.trans(values), NARROW, PRECISION)
        turned_k = phi_k
        if HAS_ROTATION:
            c = rows(cos, t, pp, pairs, 1, end, pairs)
            r = rows(sin, t, pp, pairs, 1, end, pairs)
            turned_k = rotate(phi_k, c, r, False, CHUNK, BK)
        if IS_NORMALIZED:
            dd = tl.load(grad_denominator + t, mask=inside, other=0.0)
            if not HAS_ROTATION:
                grad_weights += dd[:, None]  # the same weights make the denominator
        grad_weights = causal(grad_weights, CHUNK)
        into = tl.full((CHUNK, 1), 1.0, tl.float32)
        decays = tl.full((CHUNK, CHUNK), 1.0, tl.float32)
        if HAS_DECAY:
            g = log_decays(log_decay, t, visible, HAS_DECAY, CHUNK)
            exponents = pair_exponents(g, CHUNK)
            decays = tl.exp(exponents)
            into = tl.exp(tl.cumsum(g, axis=0))[:, None]
            grad_weights = grad_weights * decays
        grad = product(grad_weights, turned_k, NARROW, PRECISION)
        grad += product(dy * into, tl.trans(kv), NARROW, PRECISION)
        if HAS_ROTATION:
            grad = rotate(grad, c, r, True, CHUNK, BK)
        if IS_NORMALIZED:
            grad += into * dd[:, None] * k_sum[None, :]
            if HAS_ROTATION:
                grad_plain = causal(decays * dd[:, None], CHUNK)
                grad += product(grad_plain, phi_k, NARROW, PRECISION)

        x_q = rows(q, t, kk, qt, qk, end, num_features)
        x_q = clear_broken(x_q, t, visible, end, HAS_MASK)
        if HAS_DECAY:
            phi_q = features(x_q, inside[:, None] & width, IS_ELU)
            tl.store(query_dots + t, tl.sum(phi_q * grad, axis=1), mask=inside)
        grad = through_features(grad, x_q, IS_ELU)
        store_rows(grad_q, grad, t, kk, end, num_features)

        if HAS_DECAY:
            to_end = tl.exp(last_row(exponents, CHUNK))[:, None]
            turned_k = turned_k * to_end
            phi_k = phi_k * to_end
            whole = tl.exp(tl.sum(g, axis=0))
            kv = kv * whole
            k_sum = k_sum * whole
        kv += product(tl.trans(turned_k), values, NARROW, PRECISION)
        k_sum += tl.sum(phi_k, axis=0)

    if HAS_DECAY and HAS_GRAD_STATE:
        grad_kv = tl.load(grad_kv_in + pid * num_features * value_dim + tile, mask=fits, other=0.0)
        grad_k = tl.load(grad_k_sum_in + pid * num_features + kk, mask=kk < num_features, other=0.0)
        anchor = tl.sum(tl.sum(kv * grad_kv, axis=1) + k_sum * grad_k, axis=0)
        tl.store(anchors + block * tl.num_programs(0) + pid, anchor)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def key_walk(  # noqa: C901 (each branch is chosen at compile time)
    q, k, v, grad_out, log_decay, key_mask, cos, sin, denominator, grad_denominator,
    grad_kv_in, grad_k_sum_in, spans, grad_k, grad_v, key_dots, grad_kv_out, grad_k_sum_out,
    qb, qh, qt, qk, kb, kh, kt, kk_, vb, vh, vt, vv_, gb, gh, gt, gv,
    num_heads, num_rows, seq_len, num_segments, segment, num_features, value_dim,
    IS_ELU: tl.constexpr, IS_NORMALIZED: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_ROTATION: tl.constexpr, HAS_GRAD_STATE: tl.constexpr,
    WITH_KEYS: tl.constexpr, WITH_VALUES: tl.constexpr, WITH_STATE: tl.constexpr,
    IS_PACKED: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk backward with the gradient of the state; write grad_k, grad_v or both.

    grad_k needs all values (BV >= V) and may block the features; grad_v the other way round.
    With decays also phi(k) . grad phi(k) of each token (``key_dots``); WITH_STATE the gradient of
    the state that came in.
    """
    pid = tl.program_id(0).to(tl.int64)
    b, begin, end, sequence, is_first, _is_last = span_of(
        spans, pid // num_heads, seq_len, num_segments, segment, IS_PACKED
    )
    h = pid % num_heads
    n = b * num_heads + h
    v_blocks = tl.cdiv(value_dim, BV)
    block = tl.program_id(1) // v_blocks
    v0 = (tl.program_id(1) % v_blocks) * BV
    kk, vv, order = block * BK + tl.arange(0, BK), v0 + tl.arange(0, BV), tl.arange(0, CHUNK)
    pp, pairs = block * (BK // 2) + tl.arange(0, BK // 2), num_features // 2
    q += b * qb + h * qh
    k += b * kb + h * kh
    v += b * vb + h * vh
    grad_out += b * gb + h * gh
    if WITH_KEYS:
        grad_k += n * seq_len * num_features
    if WITH_VALUES:
        grad_v += n * seq_len * value_dim
    if HAS_DECAY:
        log_decay += n * seq_len
        key_dots += (block * num_rows + n) * seq_len
    if HAS_MASK:
        key_mask += b * seq_len
    if HAS_ROTATION:
        cos += b * seq_len * pairs
        sin += b * seq_len * pairs
    if IS_NORMALIZED:
        denominator += n * seq_len
        grad_denominator += n * seq_len

    width = (kk < num_features)[None, :]
    tile = kk.to(tl.int64)[:, None] * value_dim + vv[None, :]
    fits = (kk < num_features)[:, None] & (vv < value_dim)[None, :]
    grad_kv = tl.zeros((BK, BV), tl.float32)
    grad_k_sum = tl.zeros((BK,), tl.float32)
    if HAS_GRAD_STATE:
        grad_kv = tl.load(grad_kv_in + pid * num_features * value_dim + tile, mask=fits, other=0.0)
        place = grad_k_sum_in + pid * num_features + kk
        grad_k_sum = tl.load(place, mask=kk < num_features, other=0.0)
    chunks = tl.cdiv(end - begin, CHUNK)
    for index in range(0, chunks):
        t = begin + (chunks - 1 - index) * CHUNK + order
        inside = t < end
        visible = seen(key_mask, t, end, HAS_MASK)
        x_q = rows(q, t, kk, qt, qk, end, num_features)
        x_q = clear_broken(x_q, t, visible, end, HAS_MASK)
        phi_q = features(x_q, inside[:, None] & width, IS_ELU)
        x_k = rows(k, t, kk, kt, kk_, end, num_features)
        phi_k = features(x_k, visible[:, None] & width, IS_ELU)
        dy = rows(grad_out, t, vv, gt, gv, end, value_dim)
        dy = over_denominator(dy, denominator, t, end, IS_NORMALIZED)
        turned_q, turned_k = phi_q, phi_k
        if HAS_ROTATION:
            c = rows(cos, t, pp, pairs, 1, end, pairs)
            r = rows(sin, t, pp, pairs, 1, end, pairs)
            turned_q = rotate(phi_q, c, r, False, CHUNK, BK)
            turned_k = rotate(phi_k, c, r, False, CHUNK, BK)
        to_end = tl.full((CHUNK, 1), 1.0, tl.float32)
        into = tl.full((CHUNK, 1), 1.0, tl.float32)
        decays = tl.full((CHUNK, CHUNK), 1.0, tl.float32)
        if HAS_DECAY:
            g = log_decays(log_decay, t, visible, HAS_DECAY, CHUNK)
            exponents = pair_exponents(g, CHUNK)
            decays = tl.exp(exponents)
            to_end = tl.exp(last_row(exponents, CHUNK))[:, None]
            into = tl.exp(tl.cumsum(g, axis=0))[:, None]

        if WITH_VALUES:
            weights = causal(product(turned_q, tl.trans(turned_k), NARROW, PRECISION), CHUNK)
            if HAS_DECAY:
                weights = weights * decays
            grad = product(tl.trans(weights), dy, NARROW, PRECISION)
            grad += product(turned_k * to_end, grad_kv, NARROW, PRECISION)
            grad = tl.where(visible[:, None], grad, 0.0)
            store_rows(grad_v, grad, t, vv, end, value_dim)

        if IS_NORMALIZED:
            dd = tl.load(grad_denominator + t, mask=inside, other=0.0)[:, None]
        if WITH_KEYS:
            values = rows(v, t, vv, vt, vv_, end, value_dim)
            values = tl.where(visible[:, None], values, 0.0)
            grad_weights = product(dy, tl.trans(values), NARROW, PRECISION)
            if IS_NORMALIZED and not HAS_ROTATION:
                grad_weights += dd  # the same weights make the denominator
            grad_weights = causal(grad_weights, CHUNK)
            if HAS_DECAY:
                grad_weights = grad_weights * decays
            grad_phi = product(tl.trans(grad_weights), turned_q, NARROW, PRECISION)
            grad_phi += product(values * to_end, tl.trans(grad_kv), NARROW, PRECISION)
            if HAS_ROTATION:
                grad_phi = rotate(grad_phi, c, r, True, CHUNK, BK)
            grad_phi += to_end * grad_k_sum[None, :]
            if IS_NORMALIZED and HAS_ROTATION:
                grad_plain = causal(decays * dd, CHUNK)
                grad_phi += product(tl.trans(grad_plain), phi_q, NARROW, PRECISION)
            if HAS_DECAY:
                tl.store(key_dots + t, tl.sum(phi_k * grad_phi, axis=1), mask=inside)
            grad_x = tl.where(visible[:, None], through_features(grad_phi, x_k, IS_ELU), 0.0)
            store_rows(grad_k, grad_x, t, kk, end, num_features)

        if HAS_DECAY:
            whole = tl.exp(tl.sum(g, axis=0))
            grad_kv = grad_kv * whole
            grad_k_sum = grad_k_sum * whole
        grad_kv += product(tl.trans(turned_q * into), dy, NARROW, PRECISION)
        if IS_NORMALIZED:
            grad_k_sum += tl.sum(phi_q * into * dd, axis=0)

    if WITH_STATE:  # noqa: SIM102 (the outer is chosen at compile time)
        if is_first:
            m = sequence * num_heads + h
            tl.store(grad_kv_out + m * num_features * value_dim + tile, grad_kv, mask=fits)
            tl.store(grad_k_sum_out + m * num_features + kk, grad_k_sum, mask=kk < num_features)
