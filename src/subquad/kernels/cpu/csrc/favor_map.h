// The features of causal FAVOR+, keys below a running maximum: ops/causal_features.py.
#pragma once

#include "projection.h"
#include "segments.h"
#include "team.h"

SUBQUAD_BEGIN

class FavorMap {
  public:
    explicit FavorMap(const subquad_favor_map& call)
        : c_(call), projection_(call.directions, call.features, call.k),
          width_(projection_.width) {}

    bool ok() const { return projection_.ok(); }

    // Softmax over features: a query's own factor cancels.
    void queries(int64_t head, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = project(head, t, end);
            for (int i = 0; i < rows; i++) {
                float* u = projection_.u + i * width_;
                const float sum = exp_row(u, projection_.no_padding(), width_);
                float* to = target(u, head, t + i);
                divide(u, sum, width_, to);
                write(to, head, t + i);
            }
        }
    }

    void keys(int64_t head, int64_t begin, int64_t end, float top) {
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = project(head, t, end);
            for (int i = 0; i < rows; i++) {
                float* u = projection_.u + i * width_;
                const float largest = maximum_of(u);
                const float own = largest - size_[i] * c_.half_scale;
                top = higher(top, own);
                // Not u - (size + top): where size is so large that largest is lost in it, rounding
                // could make that positive.
                const vf below = splat(largest + (top - own));
                float* to = target(u, head, t + i);
                for (int j = 0; j < width_; j += LANES)
                    store(to + j, exp_nonpositive(load(u + j) - below));
                c_.log_max[head * c_.time + t + i] = top;
                write(to, head, t + i);
            }
        }
    }

    // The maximum behind keys [begin, end).
    float highest(int64_t head, int64_t begin, int64_t end, float top) {
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = project(head, t, end);
            for (int i = 0; i < rows; i++)
                top = higher(top, maximum_of(projection_.u + i * width_) -
                                      size_[i] * c_.half_scale);
        }
        return top;
    }

    // The larger; NaN once there was one.
    static float higher(float a, float b) { return a != a || a >= b ? a : b; }

  private:
    int project(int64_t head, int64_t t, int64_t end) {
        const int rows = int(smaller(TOKENS, end - t));
        projection_.project(c_.x, c_.is_bf16, c_.hidden, c_.heads, head, t, rows, size_);
        return rows;
    }

    // Of a row's features, NaN if one is not finite; the padding goes to -inf.
    float maximum_of(float* u) const {
        vf wrong{}, most = splat(-INFINITY);
        for (int j = 0; j < width_; j += LANES) {
            vf x = load(u + j);
            wrong += x - x;
            if (j + LANES == width_) {
                x += load(projection_.no_padding() + j);
                store(u + j, x);
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

    // Where a row of features is made: in its place, if it needs no padding.
    float* target(float* u, int64_t head, int64_t t) const {
        return width_ == c_.features ? row_of(head, t) : u;
    }

    void write(const float* from, int64_t head, int64_t t) const {
        if (width_ != c_.features)
            std::memcpy(row_of(head, t), from, size_t(c_.features) * sizeof(float));
    }

    float* row_of(int64_t head, int64_t t) const {
        return c_.phi + (head * c_.time + t) * c_.features;
    }

    const subquad_favor_map& c_;
    Projection projection_;
    const int width_;
    float size_[TOKENS];
};

inline int drive_favor_map(const subquad_favor_map& c) {
    const int64_t heads = c.batch * c.heads;
    const Segments parts(c.time, stretches(c));
    const int64_t n = parts.count;
    // Before each stretch of keys; NaN is a value too, so none stands for "not known".
    Scratch memory(size_t(heads * n));
    if (!memory.ok()) return SUBQUAD_OUT_OF_MEMORY;
    float* top = memory.take(size_t(heads * n));
    bool done = true;
    if (c.is_key) {
        for (int64_t head = 0; head < heads; head++) top[head * n] = c.start[head];
        if (n > 1)
            done = share_out<FavorMap>(c, heads * (n - 1), [&](FavorMap& map, int64_t unit) {
                const int64_t head = unit / (n - 1), s = unit % (n - 1);
                top[head * n + s + 1] =
                    map.highest(head, parts.begin(s), parts.end(s), -8.5e37f);
            });
        for (int64_t head = 0; head < heads; head++)
            for (int64_t s = 1; s < n; s++)
                top[head * n + s] = FavorMap::higher(top[head * n + s - 1], top[head * n + s]);
    }
    done = done && share_out<FavorMap>(c, heads * n, [&](FavorMap& map, int64_t unit) {
        const int64_t head = unit / n, s = unit % n;
        if (c.is_key)
            map.keys(head, parts.begin(s), parts.end(s), top[unit]);
        else
            map.queries(head, parts.begin(s), parts.end(s));
    });
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

SUBQUAD_END
