// One chunk of one head in padded float32 buffers, and how tensors get in and out of them.
#pragma once

#include <cmath>
#include <cstdlib>

#include "gemm.h"
#include "linear_attention.h"

SUBQUAD_BEGIN

// Tokens done at once, a multiple of LANES. Half as many take as long: fewer products, more passes.
constexpr int CHUNK = 32;

SUBQUAD_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int padded(int64_t n) { return int((n + LANES - 1) / LANES * LANES); }

// Float buffers of one thread out of one allocation; `ok` is false where there was no memory.
class Scratch {
  public:
    explicit Scratch(size_t floats)
        : memory_(static_cast<float*>(std::malloc(floats * sizeof(float) + 64))),
          next_(reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_) + 63) & ~63ull)) {}
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    bool ok() const { return memory_ != nullptr; }

    float* take(size_t floats) {
        float* p = next_;
        next_ += floats;
        return p;
    }

  private:
    float *memory_, *next_;
};

SUBQUAD_INLINE float widen(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

// To the nearest bf16, ties to even.
SUBQUAD_INLINE uint16_t narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const uint32_t nan = (bits | 0x400000) & 0xffff0000;
    return uint16_t(((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded) >> 16);
}

// Where the row of token t of a head (counted over the batch too) begins.
inline int64_t offset(const subquad_tensor& x, int64_t heads, int64_t head, int64_t t) {
    return head / heads * x.batch + head % heads * x.head + t * x.time;
}

inline void fill_zero(float* x, int64_t count) { std::memset(x, 0, size_t(count) * sizeof(float)); }

// Copy one row of ``columns`` into ``width`` floats, the rest of them 0.
inline void load_row(const void* data, bool is_bf16, int64_t at, int columns, int width,
                     float* to) {
    if (is_bf16) {
        const uint16_t* row = static_cast<const uint16_t*>(data) + at;
        for (int j = 0; j < columns; j++) to[j] = widen(row[j]);
    } else {
        const float* row = static_cast<const float*>(data) + at;
        int j = 0;
        for (; j + LANES <= columns; j += LANES) store(to + j, load(row + j));
        for (; j < columns; j++) to[j] = row[j];
    }
    for (int j = columns; j < width; j++) to[j] = 0;
}

inline void store_row(void* data, bool is_bf16, int64_t at, int columns, const float* from) {
    if (is_bf16) {
        uint16_t* row = static_cast<uint16_t*>(data) + at;
        for (int j = 0; j < columns; j++) row[j] = narrow(from[j]);
    } else {
        float* row = static_cast<float*>(data) + at;
        int j = 0;
        for (; j + LANES <= columns; j += LANES) store(row + j, load(from + j));
        for (; j < columns; j++) row[j] = from[j];
    }
}

// elu + 1 of a row, maybe in place; the padding is 0, though the map of 0 is 1.
inline void map_row(const float* from, int columns, int width, float* to) {
    int j = 0;
    for (; j + LANES <= columns; j += LANES) store(to + j, elu_plus_one(load(from + j)));
    if (j == width) return;
    alignas(64) float last[LANES] = {};
    for (int i = j; i < columns; i++) last[i - j] = from[i];
    store(to + j, elu_plus_one(load(last)));
    for (int i = columns; i < width; i++) to[i] = 0;
}

// The products of two rows, summed down to one vector; sum_lanes does the rest.
SUBQUAD_INLINE vf dot(const float* a, const float* b, int width) {
    vf total{};
    for (int j = 0; j < width; j += LANES) total += load(a + j) * load(b + j);
    return total;
}

SUBQUAD_INLINE void add_scaled(float* to, const float* from, float factor, int width) {
    const vf x = splat(factor);
    for (int j = 0; j < width; j += LANES) store(to + j, load(to + j) + x * load(from + j));
}

SUBQUAD_INLINE void scale(float* x, float factor, int64_t count) {
    const vf f = splat(factor);
    for (int64_t j = 0; j < count; j += LANES) store(x + j, load(x + j) * f);
}

// The sum of rows; with ``step``, what is summed so far is multiplied by step[i] before row i.
inline void sum_rows(const float* x, int rows, int width, const float* step, float* to) {
    for (int j = 0; j < width; j += LANES) {
        vf total{};
        for (int i = 0; i < rows; i++)
            total = (step ? total * step[i] : total) + load(x + i * width + j);
        store(to + j, total);
    }
}

// Divide a row. By a factor, for a division of each number would take a sixth of the time; but where
// that factor overflows, as for a denominator below 3e-39, the quotient may still be a number.
SUBQUAD_INLINE void divide(const float* x, float d, int64_t count, float* to) {
    const float factor = 1 / d;
    if (std::fabs(factor) <= 3.4e38f || d != d)
        for (int64_t j = 0; j < count; j += LANES) store(to + j, load(x + j) * splat(factor));
    else
        for (int64_t j = 0; j < count; j += LANES) store(to + j, load(x + j) / splat(d));
}

// Rotate each pair (2p, 2p + 1) of a row by its angle, or back (``sign`` -1).
inline void rotate_row(const float* from, const float* cos, const float* sin, float sign, int k,
                       int width, float* to) {
    for (int p = 0; p < k / 2; p++) {
        const float even = from[2 * p], odd = from[2 * p + 1], s = sign * sin[p];
        to[2 * p] = even * cos[p] - odd * s;
        to[2 * p + 1] = even * s + odd * cos[p];
    }
    for (int j = k; j < width; j++) to[j] = 0;
}

// The weights that one chunk's log-decays imply, as factors and never as differences of sums: a
// decay of -inf then costs no other pair its digits.
struct Decay {
    float step[CHUNK];           // exp(g_i)
    float pairs[CHUNK * CHUNK];  // (i, j): of key j at query i, 0 for j > i
    float into[CHUNK];           // of the incoming state at i

    // Of key j in the outgoing state of a chunk of ``rows``.
    float out(int rows, int j) const { return pairs[(rows - 1) * CHUNK + j]; }
    float total(int rows) const { return into[rows - 1]; }

    void fill(int rows) {
        float so_far = 1;
        for (int i = 0; i < rows; i++) {
            float* row = pairs + i * CHUNK;
            for (int j = 0; j < i; j++) row[j] = row[j - CHUNK] * step[i];
            row[i] = 1;
            fill_zero(row + i + 1, CHUNK - i - 1);
            into[i] = so_far *= step[i];
        }
    }
};

// Reads a call's tensors, one chunk of one head at a time.
class Reader {
  public:
    explicit Reader(const subquad_linear& call)
        : c(call), kw(padded(call.k)), vw(padded(call.v)) {}

    bool ok() const { return true; }
    bool rotates() const { return c.cos.data != nullptr; }
    bool decays() const { return c.log_decay.data != nullptr; }

    bool is_hidden(int64_t head, int64_t t) const {
        const auto* mask = static_cast<const uint8_t*>(c.key_mask.data);
        return mask && !mask[offset(c.key_mask, c.heads, head, t)];
    }

    // Features of ``rows`` queries or keys, and the same rotated (``turned`` is ``plain`` if none
    // are). Hidden keys, and rows up to the next multiple of LANES, are 0.
    void features(const subquad_tensor& x, bool is_key, int64_t head, int64_t t, int rows,
                  float* plain, float* turned) const {
        const int k = int(c.k), all = padded(rows);
        for (int i = 0; i < rows; i++) {
            float* row = plain + i * kw;
            if (is_key && is_hidden(head, t + i)) {
                fill_zero(row, kw);
            } else {
                const int64_t at = offset(x, c.heads, head, t + i);
                const bool is_read_mapped = c.is_elu && !c.is_qk_bf16;
                if (is_read_mapped)
                    map_row(static_cast<const float*>(x.data) + at, k, kw, row);
                else
                    load_row(x.data, c.is_qk_bf16, at, k, kw, row);
                if (c.is_elu && !is_read_mapped) map_row(row, k, kw, row);
            }
            if (rotates()) rotate(head, t + i, 1, row, turned + i * kw);
        }
        fill_zero(plain + rows * kw, int64_t(all - rows) * kw);
        if (rotates()) fill_zero(turned + rows * kw, int64_t(all - rows) * kw);
    }

    // Rows of a tensor of values' width and dtype.
    void values(const subquad_tensor& x, bool is_key, int64_t head, int64_t t, int rows,
                float* to) const {
        for (int i = 0; i < rows; i++) {
            if (is_key && is_hidden(head, t + i)) {
                fill_zero(to + i * vw, vw);
            } else {
                load_row(x.data, c.is_v_bf16, offset(x, c.heads, head, t + i), int(c.v), vw,
                         to + i * vw);
            }
        }
        fill_zero(to + rows * vw, int64_t(padded(rows) - rows) * vw);
    }

    // Let ``ahead`` ask for rows t .. t + CHUNK of a tensor of keys' or values' width.
    void expect(const subquad_tensor& x, bool is_qk, int64_t head, int64_t t, Ahead& ahead) const {
        const int64_t size = (is_qk ? c.is_qk_bf16 : c.is_v_bf16) ? 2 : 4;
        ahead.add(reinterpret_cast<uintptr_t>(x.data) + uintptr_t(offset(x, c.heads, head, t) * size),
                  x.time * size, CHUNK, (is_qk ? c.k : c.v) * size);
    }

    void decay(int64_t head, int64_t t, int rows, Decay& decay) const {
        const float* g = static_cast<const float*>(c.log_decay.data);
        for (int i = 0; i < rows; i++)
            decay.step[i] = is_hidden(head, t + i)
                                ? 1
                                : std::exp(g[offset(c.log_decay, c.heads, head, t + i)]);
        decay.fill(rows);
    }

    // Keys with their rotation, values and decays of one chunk.
    void keys(int64_t head, int64_t t, int rows, float* k, float* turned, float* v,
              Decay& of_chunk) const {
        features(c.key, true, head, t, rows, k, turned);
        values(c.value, true, head, t, rows, v);
        if (decays()) decay(head, t, rows, of_chunk);
    }

    void rotate(int64_t head, int64_t t, float sign, const float* from, float* to) const {
        const float* cos = static_cast<const float*>(c.cos.data);
        const float* sin = static_cast<const float*>(c.sin.data);
        rotate_row(from, cos + offset(c.cos, c.heads, head, t),
                   sin + offset(c.sin, c.heads, head, t), sign, int(c.k), kw, to);
    }

    // For sources that go on from a maximum; see FavorReader.
    void start(float) {}
    float top() const { return 0; }

    const subquad_linear& c;
    const int kw, vw;  // widths of padded rows
};

// Put 0 above the diagonal of (rows, columns), and weigh every pair by its decay, if any. Whole
// vectors, for a memset of a few floats takes longer than the products of its row.
inline void keep_past(float* scores, int rows, int columns, const Decay* decay) {
    const vi lane = lane_numbers();
    for (int i = 0; i < rows; i++) {
        float* row = scores + i * CHUNK;
        if (decay)
            for (int j = 0; j <= i; j += LANES)
                store(row + j, load(row + j) * load(decay->pairs + i * CHUNK + j));
        const int border = i / LANES * LANES;
        store(row + border, select(lane <= i - border, load(row + border), vf{}));
        for (int j = border + LANES; j < columns; j += LANES) store(row + j, vf{});
    }
}

SUBQUAD_END
