"""Kernels that carry states from span to span, and the gradients of denominators and decays.

A span is what one program walks over: a whole sequence or a segment of one. ``segment_sums`` and
``scan_segments`` give each its incoming state; where no sequence is cut neither runs.
States of spans and sums of them lie as (span, head), spans in the order of time.
"""

from typing import no_type_check

import triton
import triton.language as tl

from subquad.kernels.triton._pieces import (
    VARYING,
    clear_broken,
    exponents_to_end,
    features,
    log_decays,
    product,
    rotate,
    rows,
    seen,
    span_of,
)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def segment_sums(  # noqa: C901 (each branch is chosen at compile time)
    x, y, log_decay, key_mask, cos, sin, denominator, grad_denominator, spans,
    kv_sums, k_sums, exponents,
    xb, xh, xt, xk, yb, yh, yt, yv,
    num_heads, seq_len, num_segments, segment, num_features, value_dim,
    IS_REVERSE: tl.constexpr, IS_ELU: tl.constexpr, IS_NORMALIZED: tl.constexpr,
    HAS_DECAY: tl.constexpr, HAS_MASK: tl.constexpr, HAS_ROTATION: tl.constexpr,
    IS_PACKED: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum a span's Rphi(x) y^T, weighed by the decays up to its end (or from its start).

    Forward x, y are keys and values and k_sums sums phi(k). In reverse they are queries and
    gradients of outputs, and k_sums sums phi(q) times the gradient of the denominator.
    """
    pid = tl.program_id(0).to(tl.int64)
    b, begin, end, _sequence, _is_first, _is_last = span_of(
        spans, pid // num_heads, seq_len, num_segments, segment, IS_PACKED
    )
    h = pid % num_heads
    n = b * num_heads + h
    v_blocks = tl.cdiv(value_dim, BV)
    k0 = (tl.program_id(1) // v_blocks) * BK
    v0 = (tl.program_id(1) % v_blocks) * BV
    kk, vv, order = k0 + tl.arange(0, BK), v0 + tl.arange(0, BV), tl.arange(0, CHUNK)
    pp = k0 // 2 + tl.arange(0, BK // 2)
    x += b * xb + h * xh
    y += b * yb + h * yh
    pairs = num_features // 2
    if HAS_DECAY:
        log_decay += n * seq_len
    if HAS_MASK:
        key_mask += b * seq_len
    if HAS_ROTATION:
        cos += b * seq_len * pairs
        sin += b * seq_len * pairs
    if IS_REVERSE and IS_NORMALIZED:
        denominator += n * seq_len
        grad_denominator += n * seq_len

    kv = tl.zeros((BK, BV), tl.float32)
    k_sum = tl.zeros((BK,), tl.float32)
    exponent = tl.zeros((1,), tl.float32)
    chunks = tl.cdiv(end - begin, CHUNK)
    for index in range(0, chunks):
        start = begin + index * CHUNK
        if IS_REVERSE:
            start = begin + (chunks - 1 - index) * CHUNK
        t = start + order
        inside = t < end
        visible = seen(key_mask, t, end, HAS_MASK)
        width = (kk < num_features)[None, :]
        phi = rows(x, t, kk, xt, xk, end, num_features)
        values = rows(y, t, vv, yt, yv, end, value_dim)
        if IS_REVERSE:
            phi = clear_broken(phi, t, visible, end, HAS_MASK)
            phi = features(phi, inside[:, None] & width, IS_ELU)
        else:
            phi = features(phi, visible[:, None] & width, IS_ELU)
            values = tl.where(visible[:, None], values, 0.0)
        to_sum = phi
        if IS_REVERSE:
            if IS_NORMALIZED:
                d = tl.load(denominator + t, mask=inside, other=0.0)
                values = values * tl.where(d == 0.0, 0.0, 1.0 / tl.where(d == 0.0, 1.0, d))[:, None]
                to_sum = phi * tl.load(grad_denominator + t, mask=inside, other=0.0)[:, None]
            else:
                to_sum = tl.zeros((CHUNK, BK), tl.float32)
        if HAS_ROTATION:
            c = rows(cos, t, pp, pairs, 1, end, pairs)
            r = rows(sin, t, pp, pairs, 1, end, pairs)
            phi = rotate(phi, c, r, False, CHUNK, BK)
        if HAS_DECAY:
            g = log_decays(log_decay, t, visible, HAS_DECAY, CHUNK)
            if IS_REVERSE:
                weight = tl.exp(tl.cumsum(g, axis=0))
            else:
                weight = tl.exp(exponents_to_end(g, CHUNK))
            phi = phi * weight[:, None]
            to_sum = to_sum * weight[:, None]
            whole = tl.sum(g, axis=0)
            exponent += whole
            kv = kv * tl.exp(whole)
            k_sum = k_sum * tl.exp(whole)
        kv += product(tl.trans(phi), values, NARROW, PRECISION)
        k_sum += tl.sum(to_sum, axis=0)

    tile = kk.to(tl.int64)[:, None] * value_dim + vv[None, :]
    fits = (kk < num_features)[:, None] & (vv < value_dim)[None, :]
    tl.store(kv_sums + pid * num_features * value_dim + tile, kv, mask=fits)
    if v0 == 0:
        tl.store(k_sums + pid * num_features + kk, k_sum, mask=kk < num_features)
    if HAS_DECAY:  # noqa: SIM102 (the outer is chosen at compile time)
        if tl.program_id(1) == 0:
            tl.store(exponents + pid, tl.sum(exponent, axis=0))


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def scan_segments(
    sums, exponents, incoming, first_spans, num_heads, num_segments, size,
    IS_REVERSE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_STATE: tl.constexpr,
    IS_PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put in place of each span's sum the state that comes in (from the end, if reverse)."""
    m = tl.program_id(0).to(tl.int64)
    sequence, h = m // num_heads, m % num_heads
    first, count = sequence * num_segments, num_segments
    if IS_PACKED:
        first = tl.load(first_spans + sequence).to(tl.int64)
        count = tl.load(first_spans + sequence + 1) - first.to(tl.int32)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    state = tl.zeros((BLOCK,), tl.float32)
    if HAS_STATE:
        state = tl.load(incoming + m * size + offsets, mask=inside, other=0.0)
    for index in range(0, count):
        span = first + index
        if IS_REVERSE:
            span = first + (count - 1 - index)
        row = span * num_heads + h
        place = sums + row * size + offsets
        added = tl.load(place, mask=inside, other=0.0)
        tl.store(place, state, mask=inside)
        if HAS_DECAY:
            state = state * tl.exp(tl.load(exponents + row))
        state += added


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def denominator_gradients(
    grad_out, out, denominator, grad_denominator,
    gb, gh, gt, gv, ob, oh, ot, ov, num_heads, seq_len, value_dim,
    ROWS: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Store -<grad_out, out> / denominator of each token, 0 where the denominator is 0."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(seq_len, ROWS)
    n, block = pid // blocks, (pid % blocks).to(tl.int32)
    b, h = n // num_heads, n % num_heads
    t, vv = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BV)
    g = rows(grad_out + b * gb + h * gh, t, vv, gt, gv, seq_len, value_dim)
    y = rows(out + b * ob + h * oh, t, vv, ot, ov, seq_len, value_dim)
    d = tl.load(denominator + n * seq_len + t, mask=t < seq_len, other=0.0)
    zero = d == 0.0
    value = tl.where(zero, 0.0, -tl.sum(g * y, axis=1) / tl.where(zero, 1.0, d))
    tl.store(grad_denominator + n * seq_len + t, value, mask=t < seq_len)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def decay_gradients(
    query_dots, key_dots, anchors, log_decay, key_mask, spans, grad,
    num_heads, num_rows, seq_len, num_segments, segment, query_blocks, key_blocks,
    HAS_MASK: tl.constexpr, IS_PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum query_dots - key_dots from the end of each span, where <state, its gradient> is known.

    d g_t = sum over s >= t of (phi(q_s) . grad phi(q_s) - phi(k_s) . grad phi(k_s)) + what the
    state after the last of these tokens and its gradient make together. Starting anew at each
    span keeps the rounding of a long sum out of the early tokens.
    """
    pid = tl.program_id(0).to(tl.int64)
    b, begin, end, _sequence, _is_first, _is_last = span_of(
        spans, pid // num_heads, seq_len, num_segments, segment, IS_PACKED
    )
    n = b * num_heads + pid % num_heads
    later = tl.zeros((1,), tl.float32)
    for block in range(0, query_blocks):
        later += tl.load(anchors + block * tl.num_programs(0) + pid)
    for index in range(0, tl.cdiv(end - begin, BLOCK)):
        # Loaded from the last token back, so that the scan runs forward.
        t = end - 1 - index * BLOCK - tl.arange(0, BLOCK)
        inside = t >= begin
        dots = tl.zeros((BLOCK,), tl.float32)
        for block in range(0, query_blocks):
            place = query_dots + (block * num_rows + n) * seq_len + t
            dots += tl.load(place, mask=inside, other=0.0)
        for block in range(0, key_blocks):
            place = key_dots + (block * num_rows + n) * seq_len + t
            dots -= tl.load(place, mask=inside, other=0.0)
        sums = later + tl.cumsum(dots, axis=0)
        # exp(-inf) = 0 has the slope 0, to the last bit; a hidden token's decay is not read.
        counts = inside & (tl.load(log_decay + n * seq_len + t, mask=inside) != -float("inf"))
        if HAS_MASK:
            counts = counts & (tl.load(key_mask + b * seq_len + t, mask=inside, other=0) != 0)
        tl.store(grad + n * seq_len + t, tl.where(counts, sums, 0.0), mask=inside)
        later += tl.sum(dots, axis=0)
