"""The kernel that takes one more token, for all heads of a layer, and overwrites the state."""

from typing import no_type_check

import triton
import triton.language as tl

from subquad.kernels.triton._pieces import VARYING, features


@triton.jit
@no_type_check
def turn(x, cos, sin, COLUMNS: tl.constexpr):
    """Rotate the pairs (2i, 2i + 1) of a vector."""
    even, odd = tl.split(tl.reshape(x, (COLUMNS // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (COLUMNS,))


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def step(
    q, k, v, kv, k_sum, log_decay, cos, sin, out,
    qb, qh, qk, kb, kh, kk_, vb, vh, vv_, sb, sh, sk, sv, zb, zh, zk,
    num_heads, num_features, value_dim,
    IS_ELU: tl.constexpr, IS_NORMALIZED: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_ROTATION: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Do one head: one program, as its blocks of values share the k_sum that it overwrites."""
    n = tl.program_id(0).to(tl.int64)
    b, h = n // num_heads, n % num_heads
    kk = tl.arange(0, BK).to(tl.int64)  # a state may be a view of any strides
    keep = kk < num_features
    x_q = tl.load(q + b * qb + h * qh + kk * qk, mask=keep, other=0.0).to(tl.float32)
    x_k = tl.load(k + b * kb + h * kh + kk * kk_, mask=keep, other=0.0).to(tl.float32)
    phi_q, phi_k = features(x_q, keep, IS_ELU), features(x_k, keep, IS_ELU)
    sums = k_sum + b * zb + h * zh + kk * zk
    decay = 1.0
    if HAS_DECAY:
        decay = tl.exp(tl.load(log_decay + n))
    total = tl.load(sums, mask=keep, other=0.0) * decay + phi_k
    tl.store(sums, total, mask=keep)
    denominator = tl.sum(phi_q * total, axis=0)
    if HAS_ROTATION:
        pairs = num_features // 2
        pp = tl.arange(0, BK // 2)
        c = tl.load(cos + b * pairs + pp, mask=pp < pairs, other=1.0)
        r = tl.load(sin + b * pairs + pp, mask=pp < pairs, other=0.0)
        phi_q, phi_k = turn(phi_q, c, r, BK), turn(phi_k, c, r, BK)
    for v0 in range(0, value_dim, BV):
        vv = v0 + tl.arange(0, BV).to(tl.int64)
        value = tl.load(v + b * vb + h * vh + vv * vv_, mask=vv < value_dim, other=0.0)
        place = kv + b * sb + h * sh + kk[:, None] * sk + vv[None, :] * sv
        fits = keep[:, None] & (vv < value_dim)[None, :]
        state = tl.load(place, mask=fits, other=0.0) * decay
        state += phi_k[:, None] * value.to(tl.float32)[None, :]
        tl.store(place, state, mask=fits)
        y = tl.sum(phi_q[:, None] * state, axis=0)
        if IS_NORMALIZED:
            zero = denominator == 0.0
            y = tl.where(zero, 0.0, y / tl.where(zero, 1.0, denominator))
        tl.store(out + n * value_dim + vv, y.to(out.dtype.element_ty), mask=vv < value_dim)
