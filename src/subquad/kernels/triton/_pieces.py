"""What the kernels share: loading rows, the feature map, rotations and the decays of a chunk.

A chunk is ``CHUNK`` tokens done at once; names in capitals are known when a kernel is compiled.
Sums are float32. Exponents of decays are sums of the decays themselves, never differences of
running sums: where a decay is -inf a difference would be inf - inf.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Sizes of a call that no address's alignment hangs on: a kernel is not compiled anew for each.
VARYING = ["num_heads", "num_rows", "seq_len", "num_segments", "segment"]


@triton.jit
@no_type_check
def span_of(spans, index, seq_len, num_segments, segment, IS_PACKED: tl.constexpr):
    """Return batch row, first token, token behind the last, sequence, is first, is last.

    A span is the stretch of one sequence that one program walks over. Packed ones are read from a
    table of 5 columns: sequence, begin, end, the sequence's begin and its end. They may be empty.
    """
    if IS_PACKED:
        place = spans + index * 5
        sequence = tl.load(place).to(tl.int64)
        begin = tl.load(place + 1)
        end = tl.load(place + 2)
        is_first = begin == tl.load(place + 3)
        is_last = end == tl.load(place + 4)
        b = sequence * 0
    else:
        s = (index % num_segments).to(tl.int32)
        sequence = index // num_segments
        begin = s * segment
        end = tl.minimum(begin + segment, seq_len)
        is_first = s == 0
        is_last = s == num_segments - 1
        b = sequence
    return b, begin, end, sequence, is_first, is_last


@triton.jit
@no_type_check
def rows(base, t, columns, stride_t, stride_c, end, width):
    """Load base[t, columns] in float32; 0 outside."""
    inside = (t < end)[:, None] & (columns < width)[None, :]
    offsets = t.to(tl.int64)[:, None] * stride_t + columns.to(tl.int64)[None, :] * stride_c
    return tl.load(base + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def store_rows(base, x, t, columns, end, width):
    """Store a tile into the contiguous rows base[t, columns], whose rows are ``width`` long."""
    inside = (t < end)[:, None] & (columns < width)[None, :]
    offsets = t.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(base + offsets, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def seen(key_mask, t, end, HAS_MASK: tl.constexpr):
    """Say which tokens of the chunk exist and are not hidden."""
    inside = t < end
    if HAS_MASK:
        inside = inside & (tl.load(key_mask + t, mask=inside, other=0) != 0)
    return inside


@triton.jit
@no_type_check
def log_decays(log_decay, t, visible, HAS_DECAY: tl.constexpr, CHUNK: tl.constexpr):
    """Load the decays of the chunk, 0 at hidden tokens; all 0 without decays."""
    g = tl.zeros((CHUNK,), tl.float32)
    if HAS_DECAY:
        g = tl.load(log_decay + t, mask=visible, other=0.0).to(tl.float32)
    return g


@triton.jit
@no_type_check
def clear_broken(x, t, visible, end, HAS_MASK: tl.constexpr):
    """Return queries with 0 for what is not finite at hidden tokens: 0 * NaN would reach keys."""
    if HAS_MASK:
        hidden = ((t < end) & (visible == 0))[:, None]
        finite = tl.abs(x) < float("inf")  # False of NaN too
        x = tl.where(hidden & (finite == 0), 0.0, x)
    return x


@triton.jit
@no_type_check
def features(x, keep, IS_ELU: tl.constexpr):
    """Return phi(x), 0 where not ``keep``: elu(x) + 1, or x if it is mapped already."""
    if IS_ELU:
        # No exp of a large x: it would be inf, though it is not chosen.
        x = tl.where(x > 0.0, x + 1.0, tl.exp(tl.where(x > 0.0, 0.0, x)))
    return tl.where(keep, x, 0.0)


@triton.jit
@no_type_check
def through_features(grad, x, IS_ELU: tl.constexpr):
    """Return the gradient of x, given that of phi(x)."""
    if IS_ELU:
        grad = grad * tl.where(x > 0.0, 1.0, tl.exp(tl.where(x > 0.0, 0.0, x)))
    return grad


@triton.jit
@no_type_check
def rotate(x, cos, sin, BACK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rotate the pairs (2i, 2i + 1) of x (ROWS, COLUMNS) by angles (ROWS, COLUMNS / 2)."""
    even, odd = tl.split(tl.reshape(x, (ROWS, COLUMNS // 2, 2)))
    if BACK:
        pairs = tl.join(even * cos + odd * sin, odd * cos - even * sin)
    else:
        pairs = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(pairs, (ROWS, COLUMNS))


@triton.jit
@no_type_check
def causal(x, CHUNK: tl.constexpr):
    """Return x (CHUNK, CHUNK) with 0 for keys later than the query.

    It chooses and does not multiply: a score with a later key may be inf, and inf * 0 is NaN.
    """
    order = tl.arange(0, CHUNK)
    return tl.where(order[:, None] >= order[None, :], x, 0.0)


@triton.jit
@no_type_check
def pair_exponents(g, CHUNK: tl.constexpr):
    """Return g_{j+1} + ... + g_i at [i, j], 0 for j >= i."""
    order = tl.arange(0, CHUNK)
    return tl.cumsum(tl.where(order[:, None] > order[None, :], g[:, None], 0.0), axis=0)


@triton.jit
@no_type_check
def last_row(x, CHUNK: tl.constexpr):
    """Return x[CHUNK - 1]."""
    last = (tl.arange(0, CHUNK) == CHUNK - 1)[:, None]
    return tl.sum(tl.where(last, x, 0.0), axis=0)


@triton.jit
@no_type_check
def exponents_to_end(g, CHUNK: tl.constexpr):
    """Return g_{j+1} + ... + g_{CHUNK-1} at [j].

    A sum for each j and no scan from the end: ``reverse=True`` was wrong in releases of Triton.
    """
    order = tl.arange(0, CHUNK)
    return tl.sum(tl.where(order[:, None] > order[None, :], g[:, None], 0.0), axis=0)


@triton.jit
@no_type_check
def to_tf32(x):
    """Round to the 10 bits of mantissa that TF32 keeps; the hardware would cut them off."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), rounded, x)


@triton.jit
@no_type_check
def product(a, b, NARROW: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply two float32 tiles: in bfloat16 if NARROW, else as PRECISION says."""
    if NARROW:
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if PRECISION == "widened":  # the interpreter would multiply the bits of bfloat16
            return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        return tl.dot(a, b)
    if PRECISION == "tf32":
        return tl.dot(to_tf32(a), to_tf32(b), input_precision="tf32")
    return tl.dot(a, b, input_precision=PRECISION)
