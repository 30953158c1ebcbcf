// u = W x of a few tokens: what all random features are made of.
#pragma once

#include "chunk.h"

SUBQUAD_BEGIN

// Tokens done at once: whole tiles of every instruction set, and their features stay in the cache.
constexpr int TOKENS = 48;
// Columns that a product goes through at once. The directions are packed by so many, for rows of a
// few hundred features lie a power of two apart, where they would drive each other from the cache.
constexpr int PANEL = VECTORS * LANES;

// Rows of one tensor in float32, and their products with all directions.
class Projection {
  public:
    Projection(const float* directions, int64_t features, int64_t k)
        : width(padded(features)), kw_(padded(k)), k_(int(k)),
          scratch_(size_t(width) * k + size_t(TOKENS) * (kw_ + width) + width),
          packed_(scratch_.take(size_t(width) * k)), x_(scratch_.take(size_t(TOKENS) * kw_)),
          no_padding_(scratch_.take(width)), u(scratch_.take(size_t(TOKENS) * width)) {
        if (!ok()) return;
        for (int p = 0; p < width; p += PANEL) {
            const int columns = int(smaller(PANEL, width - p));
            for (int l = 0; l < k_; l++)
                for (int j = 0; j < columns; j++)
                    packed_[size_t(p) * k_ + l * columns + j] =
                        p + j < features ? directions[(p + j) * k + l] : 0;
        }
        for (int j = 0; j < width; j++) no_padding_[j] = j < features ? 0 : -INFINITY;
    }

    bool ok() const { return scratch_.ok(); }

    // 0 for each feature and -inf for the columns that only fill up u, (width).
    const float* no_padding() const { return no_padding_; }

    // Fill ``u`` (rows, width) for tokens t .. t + rows, and |x|^2 of each into ``squares``, inf
    // for a hidden one, whose u is 0.
    void project(const subquad_tensor& x, bool is_bf16, const subquad_tensor& hidden, int64_t heads,
                 int64_t head, int64_t t, int rows, float* squares) {
        for (int i = 0; i < rows; i++) {
            float* row = x_ + i * kw_;
            if (is_hidden(hidden, heads, head, t + i)) {
                fill_zero(row, kw_);
                squares[i] = INFINITY;
                continue;
            }
            load_row(x.data, is_bf16, offset(x, heads, head, t + i), k_, kw_, row);
            const vf square = dot(row, row, kw_);
            float total = 0;
            for (int j = 0; j < LANES; j++) total += square[j];
            squares[i] = total;
        }
        for (int p = 0; p < width; p += PANEL) {
            const int columns = int(smaller(PANEL, width - p));
            product<false>(rows, columns, k_, {x_, kw_, 1}, packed_ + size_t(p) * k_, columns,
                           u + p, width);
        }
    }

    static bool is_hidden(const subquad_tensor& hidden, int64_t heads, int64_t head, int64_t t) {
        const auto* bytes = static_cast<const uint8_t*>(hidden.data);
        return bytes && bytes[offset(hidden, heads, head, t)];
    }

    const int width;  // of rows of u: the features, padded

  private:
    const int kw_, k_;
    Scratch scratch_;
    float *packed_, *x_, *no_padding_;

  public:
    float* const u;
};

// The largest number of a row; NaN numbers may be passed over.
inline float row_maximum(const float* x, int width) {
    vf most = load(x);
    for (int j = LANES; j < width; j += LANES) most = maximum(most, load(x + j));
    float result = most[0];
    for (int j = 1; j < LANES; j++) result = most[j] > result ? most[j] : result;
    return result;
}

// Add ``level`` to a row; put exp of what it then is below its maximum in its place. Returns the
// sum, NaN if a number was.
inline float exp_row(float* x, const float* level, int width) {
    for (int j = 0; j < width; j += LANES) store(x + j, load(x + j) + load(level + j));
    const vf most = splat(row_maximum(x, width));
    vf total{};
    for (int j = 0; j < width; j += LANES) {
        const vf y = exp_nonpositive(load(x + j) - most);
        store(x + j, y);
        total += y;
    }
    float sum = 0;
    for (int j = 0; j < LANES; j++) sum += total[j];
    return sum;
}

SUBQUAD_END
