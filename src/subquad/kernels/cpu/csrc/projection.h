// u = W x of a few tokens: what all random features are made of.
#pragma once

#include "chunk.h"

SUBQUAD_BEGIN

// Tokens done at once: whole tiles of every instruction set, and their features stay in the cache.
constexpr int TOKENS = 48;
// Columns that a product goes through at once. The directions are packed by so many, for rows of a
// few hundred features lie a power of two apart, where they would drive each other from the cache.
constexpr int PANEL = VECTORS * LANES;

// Where a maximum over logarithms starts, as ``lowest`` of ops/performer_bidirectional.py: finite,
// with room for a difference.
constexpr float LOWEST = -8.5e37f;

// The right factor of products: a matrix (depth, width) packed in panels.
class Panels {
  public:
    Panels(float* memory, int width, int depth) : packed_(memory), width_(width), depth_(depth) {}

    // Take the transpose of (count, depth), whose rows are ``stride`` apart; the rest is 0.
    void pack(const float* rows, int64_t count, int64_t stride) {
        for (int p = 0; p < width_; p += PANEL) {
            const int columns = int(smaller(PANEL, width_ - p));
            float* to = packed_ + size_t(p) * depth_;
            for (int l = 0; l < depth_; l++)
                for (int j = 0; j < columns; j++)
                    to[l * columns + j] = p + j < count ? rows[(p + j) * stride + l] : 0;
        }
    }

    // u (rows, width) = x (rows, depth) times the matrix.
    void times(const float* x, int x_stride, int rows, float* u) const {
        for (int p = 0; p < width_; p += PANEL) {
            const int columns = int(smaller(PANEL, width_ - p));
            product<false>(rows, columns, depth_, {x, x_stride, 1}, packed_ + size_t(p) * depth_,
                           columns, u + p, width_);
        }
    }

  private:
    float* packed_;
    const int width_, depth_;
};

// out (rows, columns) = a (rows, depth) b, in parts of a great depth that fit the nearest cache.
inline void deep_product(int rows, int columns, int depth, const float* a, int a_stride,
                         const float* b, float* out) {
    constexpr int PART = 64;
    for (int l = 0; l < depth; l += PART) {
        const int part = int(smaller(PART, depth - l));
        const Left left{a + l, a_stride, 1};
        const float* right = b + int64_t(l) * columns;
        if (l == 0)
            product<false>(rows, columns, part, left, right, columns, out, columns);
        else
            product<true>(rows, columns, part, left, right, columns, out, columns);
    }
}

// Rows of one tensor in float32, and their products with all directions.
class Projection {
  public:
    Projection(const float* directions, int64_t features, int64_t k)
        : width(padded(features)), kw(padded(k)), k_(int(k)),
          scratch_(size_t(width) * k + size_t(TOKENS) * (kw + width) + width),
          packed_(scratch_.take(size_t(width) * k), width, k_), no_padding_(scratch_.take(width)),
          x(scratch_.take(size_t(TOKENS) * kw)), u(scratch_.take(size_t(TOKENS) * width)) {
        if (!ok()) return;
        packed_.pack(directions, features, k);
        for (int j = 0; j < width; j++) no_padding_[j] = j < features ? 0 : -INFINITY;
    }

    bool ok() const { return scratch_.ok(); }

    // 0 for each feature and -inf for the columns that only fill up u, (width).
    const float* no_padding() const { return no_padding_; }

    // Fill ``u`` (rows, width) for tokens t .. t + rows, and half_scale |x|^2 of each into
    // ``sizes``, inf where is_hidden(t), whose u is 0.
    template <class IsHidden>
    void project(const subquad_tensor& from, bool is_bf16, int64_t heads, int64_t head, int64_t t,
                 int rows, float half_scale, float* sizes, IsHidden is_hidden) {
        for (int i = 0; i < rows; i++) {
            float* row = x + i * kw;
            if (is_hidden(t + i)) {
                fill_zero(row, kw);
                sizes[i] = INFINITY;
                continue;
            }
            load_row(from.data, is_bf16, offset(from, heads, head, t + i), k_, kw, row);
            const vf square = dot(row, row, kw);
            float total = 0;
            for (int j = 0; j < LANES; j++) total += square[j];
            sizes[i] = total * half_scale;
        }
        packed_.times(x, kw, rows, u);
    }

    const int width, kw;  // of rows of u, the features padded, and of x

  private:
    const int k_;
    Scratch scratch_;
    Panels packed_;
    float* no_padding_;

  public:
    float *const x, *const u;  // the tokens that were projected last, and their products
};

// Whether a byte is set for token t of a head; ``hidden`` may be not given.
inline bool is_set(const subquad_tensor& hidden, int64_t heads, int64_t head, int64_t t) {
    const auto* bytes = static_cast<const uint8_t*>(hidden.data);
    return bytes && bytes[offset(hidden, heads, head, t)];
}

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

// The larger; NaN once there was one.
inline float higher(float a, float b) { return a != a || a >= b ? a : b; }

// Features of causal FAVOR+, row by row of what is projected. All columns beyond the features are 0.
class CausalFeatures : public Projection {
  public:
    CausalFeatures(const float* directions, int64_t features, int64_t k)
        : Projection(directions, features, k) {}

    // Softmax over features: a query's own factor cancels.
    void query(int i, float* to) {
        float* row = u + i * width;
        const float sum = exp_row(row, no_padding(), width);
        divide(row, sum, width, to);
    }

    // Below the maximum so far, ``top``; returns the maximum with this key.
    float key(int i, float size, float top, float* to) {
        float* row = u + i * width;
        const float largest = maximum_of(row), own = largest - size;
        top = higher(top, own);
        // Not u - (size + top): where size is so large that largest is lost in it, rounding could
        // make that positive.
        const vf below = splat(largest + (top - own));
        for (int j = 0; j < width; j += LANES)
            store(to + j, exp_nonpositive(load(row + j) - below));
        return top;
    }

    // What ``key`` returns, without the features.
    float raise(int i, float size, float top) {
        return higher(top, maximum_of(u + i * width) - size);
    }

  private:
    // Of a row's features, NaN if one is not finite; the padding goes to -inf.
    float maximum_of(float* row) const {
        vf wrong{}, most = splat(-INFINITY);
        for (int j = 0; j < width; j += LANES) {
            vf x = load(row + j);
            wrong += x - x;
            if (j + LANES == width) {
                x += load(no_padding() + j);
                store(row + j, x);
            }
            most = maximum(most, x);
        }
        float none = 0, largest = most[0];
        for (int j = 0; j < LANES; j++) {
            none += wrong[j];
            largest = most[j] > largest ? most[j] : largest;
        }
        return largest + none;
    }
};

SUBQUAD_END
