"""The kernel that makes the outputs. Names: N = B H rows of heads, n one of them."""

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
)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def forward_walk(  # noqa: C901 (each branch is chosen at compile time)
    q, k, v, log_decay, key_mask, cos, sin, kv_in, k_sum_in, spans,
    out, denominator, kv_out, k_sum_out,
    qb, qh, qt, qk, kb, kh, kt, kk_, vb, vh, vt, vv_,
    num_heads, seq_len, num_segments, segment, num_features, value_dim,
    IS_ELU: tl.constexpr, IS_NORMALIZED: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_ROTATION: tl.constexpr, HAS_STATE: tl.constexpr,
    IS_PACKED: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk over one span with the state of all features and BV values."""
    pid = tl.program_id(0).to(tl.int64)
    b, begin, end, sequence, _is_first, is_last = span_of(
        spans, pid // num_heads, seq_len, num_segments, segment, IS_PACKED
    )
    h = pid % num_heads
    n = b * num_heads + h
    v0 = tl.program_id(1) * BV
    kk, vv, order = tl.arange(0, BK), v0 + tl.arange(0, BV), tl.arange(0, CHUNK)
    pp, pairs = tl.arange(0, BK // 2), num_features // 2
    q += b * qb + h * qh
    k += b * kb + h * kh
    v += b * vb + h * vh
    out += n * seq_len * value_dim
    if HAS_DECAY:
        log_decay += n * seq_len
    if HAS_MASK:
        key_mask += b * seq_len
    if HAS_ROTATION:
        cos += b * seq_len * pairs
        sin += b * seq_len * pairs

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
        x_q = rows(q, t, kk, qt, qk, end, num_features)
        x_q = clear_broken(x_q, t, visible, end, HAS_MASK)
        phi_q = features(x_q, inside[:, None] & width, IS_ELU)
        x_k = rows(k, t, kk, kt, kk_, end, num_features)
        phi_k = features(x_k, visible[:, None] & width, IS_ELU)
        values = rows(v, t, vv, vt, vv_, end, value_dim)
        values = tl.where(visible[:, None], values, 0.0)

        turned_q, turned_k = phi_q, phi_k
        if HAS_ROTATION:
            c = rows(cos, t, pp, pairs, 1, end, pairs)
            r = rows(sin, t, pp, pairs, 1, end, pairs)
            turned_q = rotate(phi_q, c, r, False, CHUNK, BK)
            turned_k = rotate(phi_k, c, r, False, CHUNK, BK)
        weights = causal(product(turned_q, tl.trans(turned_k), NARROW, PRECISION), CHUNK)
        plain = weights
        if HAS_ROTATION and IS_NORMALIZED:
            plain = causal(product(phi_q, tl.trans(phi_k), NARROW, PRECISION), CHUNK)
        from_state = turned_q
        sums_from_state = phi_q
        if HAS_DECAY:
            g = log_decays(log_decay, t, visible, HAS_DECAY, CHUNK)
            exponents = pair_exponents(g, CHUNK)
            decays = tl.exp(exponents)
            weights = weights * decays
            plain = plain * decays
            into = tl.exp(tl.cumsum(g, axis=0))[:, None]
            from_state = turned_q * into
            sums_from_state = phi_q * into
        y = product(weights, values, NARROW, PRECISION)
        y += product(from_state, kv, NARROW, PRECISION)
        if IS_NORMALIZED:
            d = tl.sum(plain, axis=1) + tl.sum(sums_from_state * k_sum[None, :], axis=1)
            zero = d == 0.0
            y = tl.where(zero[:, None], 0.0, y / tl.where(zero, 1.0, d)[:, None])
            if v0 == 0:
                tl.store(denominator + n * seq_len + t, d, mask=inside)
        store_rows(out, y, t, vv, end, value_dim)

        if HAS_DECAY:
            to_end = tl.exp(last_row(exponents, CHUNK))[:, None]
            turned_k = turned_k * to_end
            phi_k = phi_k * to_end
            whole = tl.exp(tl.sum(g, axis=0))
            kv = kv * whole
            k_sum = k_sum * whole
        kv += product(tl.trans(turned_k), values, NARROW, PRECISION)
        k_sum += tl.sum(phi_k, axis=0)

    if is_last:
        m = sequence * num_heads + h
        tl.store(kv_out + m * num_features * value_dim + tile, kv, mask=fits)
        if v0 == 0:
            tl.store(k_sum_out + m * num_features + kk, k_sum, mask=kk < num_features)
