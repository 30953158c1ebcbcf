// Vectors of the widest kind that the compiler's target has, and what the kernels do with them.
// Written with the vector extensions of GCC and Clang, so one source serves every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "isa.h"

#if defined(__AVX512F__)
#define SUBQUAD_LANES 16
#elif defined(__AVX2__)
#define SUBQUAD_LANES 8
#else
#define SUBQUAD_LANES 4
#endif

SUBQUAD_BEGIN

constexpr int LANES = SUBQUAD_LANES;
typedef float vf __attribute__((vector_size(4 * SUBQUAD_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * SUBQUAD_LANES)));

#define SUBQUAD_INLINE inline __attribute__((always_inline))

SUBQUAD_INLINE vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);  // any alignment; compiles to one unaligned load
    return x;
}

SUBQUAD_INLINE void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

SUBQUAD_INLINE vf splat(float x) { return x - vf{}; }

SUBQUAD_INLINE vf select(vi mask, vf yes, vf no) {
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

// 0, 1, 2, ...
SUBQUAD_INLINE vi lane_numbers() {
    vi lane{};
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane;
}

SUBQUAD_INLINE vf minimum(vf a, vf b) { return select(a < b, a, b); }
SUBQUAD_INLINE vf maximum(vf a, vf b) { return select(a > b, a, b); }

// exp(r) for |r| <= ln(2) / 2.
SUBQUAD_INLINE vf exp_polynomial(vf r) {
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}

#if defined(__AVX512F__)
// As below, with the instruction that scales by a power of two and rounds once, below the smallest
// normal number too.
SUBQUAD_INLINE vf exp_nonpositive(vf x) {
    const __m512 low = _mm512_set1_ps(-104.0f);
    const vf bounded = (vf)_mm512_max_ps(low, (__m512)x);  // in this order NaN stays NaN
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    const vf power = (bounded * 1.44269504088896341f + magic) - magic;
    vf r = bounded - power * 0.693359375f;
    r = r - power * -2.12194440e-4f;
    return (vf)_mm512_scalef_ps((__m512)exp_polynomial(r), (__m512)power);
}

// elu(x) + 1; of two numbers the instructions return the second if either is NaN, so NaN stays NaN.
SUBQUAD_INLINE vf elu_plus_one(vf x) {
    const __m512 zero = _mm512_setzero_ps();
    return exp_nonpositive((vf)_mm512_min_ps(zero, (__m512)x)) +
           (vf)_mm512_max_ps(zero, (__m512)x);
}
#else
// exp(x) for x <= 0, to 1 unit in the last place or so; below -104 it is 0, NaN stays NaN.
SUBQUAD_INLINE vf exp_nonpositive(vf x) {
    const vf low = splat(-104.0f);
    vi nan = x != x;
    vf bounded = maximum(x, low);
    vf scaled = bounded * 1.44269504088896341f;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    vf rounded = (scaled + magic) - magic;
    vf r = bounded - rounded * 0.693359375f;
    r = r - rounded * -2.12194440e-4f;
    const vf p = exp_polynomial(r);
    // 2^n in two factors, for n goes below the smallest exponent of a normal number.
    vi n = __builtin_convertvector(rounded, vi);
    vi half = n >> 1;
    vf first = (vf)((half + 127) << 23), second = (vf)((n - half + 127) << 23);
    vf y = p * first * second;
    return select(nan, x, select(x < low, vf{}, y));
}

// elu(x) + 1; the comparisons are turned so that NaN stays NaN.
SUBQUAD_INLINE vf elu_plus_one(vf x) {
    const vf zero{};
    return exp_nonpositive(select(x > zero, zero, x)) + select(x < zero, zero, x);
}
#endif

// Turn LANES rows of LANES floats into columns: out[j * out_stride + i] = in[i * in_stride + j].
SUBQUAD_INLINE void transpose_block(const float* in, int64_t in_stride, float* out,
                                    int64_t out_stride) {
#if defined(__GNUC__) && !defined(__clang__)
    vf row[LANES];
    const vi lane = lane_numbers();
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) row[i] = load(in + i * in_stride);
    // Swap the off-diagonal halves of blocks of 2, 4, ... rows: log2(LANES) stages.
#pragma GCC unroll 4
    for (int s = 1; s < LANES; s *= 2) {
        // Lanes with bit s clear keep their own row's value in the first row of a pair.
        const vi own = (lane & s) == 0;
        const vi to_first = (vi)(((lane)&own) | ((lane - s + LANES) & ~own));
        const vi to_second = (vi)(((lane + s) & own) | ((lane + LANES) & ~own));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & s) continue;
            const vf a = row[i], b = row[i + s];
            row[i] = __builtin_shuffle(a, b, to_first);
            row[i + s] = __builtin_shuffle(a, b, to_second);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(out + i * out_stride, row[i]);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) out[j * out_stride + i] = in[i * in_stride + j];
#endif
}

// Transpose rows x columns, both multiples of LANES.
inline void transpose(const float* in, int64_t in_stride, int rows, int columns, float* out,
                      int64_t out_stride) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < columns; j += LANES)
            transpose_block(in + i * in_stride + j, in_stride, out + j * out_stride + i,
                            out_stride);
}

// Sum each of rows x LANES numbers over its lanes; ``rows`` is a multiple of LANES. Transposing
// first adds whole vectors where a sum within one would add lane after lane.
inline void sum_lanes(const float* in, int rows, float* out) {
    alignas(64) float turned[LANES * LANES];
    for (int i = 0; i < rows; i += LANES) {
        transpose_block(in + i * LANES, LANES, turned, LANES);
        vf total{};
        for (int j = 0; j < LANES; j++) total += load(turned + j * LANES);
        store(out + i, total);
    }
}

SUBQUAD_END
