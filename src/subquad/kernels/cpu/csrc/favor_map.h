// The features of causal FAVOR+, keys below a running maximum: ops/causal_features.py.
#pragma once

#include "projection.h"
#include "segments.h"
#include "team.h"

SUBQUAD_BEGIN

class FavorMap {
  public:
    explicit FavorMap(const subquad_favor_map& call)
        : c_(call), map_(call.directions, call.features, call.k) {}

    bool ok() const { return map_.ok(); }

    void queries(int64_t head, int64_t begin, int64_t end) {
        each(head, begin, end, [&](int i, int64_t t) {
            float* to = target(i, head, t);
            map_.query(i, to);
            write(to, head, t);
        });
    }

    void keys(int64_t head, int64_t begin, int64_t end, float top) {
        each(head, begin, end, [&](int i, int64_t t) {
            float* to = target(i, head, t);
            top = map_.key(i, sizes_[i], top, to);
            c_.log_max[head * c_.time + t] = top;
            write(to, head, t);
        });
    }

    // The maximum behind keys [begin, end).
    float highest(int64_t head, int64_t begin, int64_t end, float top) {
        each(head, begin, end, [&](int i, int64_t) { top = map_.raise(i, sizes_[i], top); });
        return top;
    }

  private:
    template <class Row>
    void each(int64_t head, int64_t begin, int64_t end, Row row) {
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = int(smaller(TOKENS, end - t));
            map_.project(c_.x, c_.is_bf16, c_.heads, head, t, rows, c_.half_scale, sizes_,
                         [&](int64_t i) { return is_set(c_.hidden, c_.heads, head, i); });
            for (int i = 0; i < rows; i++) row(i, t + i);
        }
    }

    // Where a row of features is made: in its place, if it needs no padding.
    float* target(int i, int64_t head, int64_t t) const {
        return map_.width == c_.features ? row_of(head, t) : map_.u + i * map_.width;
    }

    void write(const float* from, int64_t head, int64_t t) const {
        if (map_.width != c_.features)
            std::memcpy(row_of(head, t), from, size_t(c_.features) * sizeof(float));
    }

    float* row_of(int64_t head, int64_t t) const {
        return c_.phi + (head * c_.time + t) * c_.features;
    }

    const subquad_favor_map& c_;
    CausalFeatures map_;
    float sizes_[TOKENS];
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
                    map.highest(head, parts.begin(s), parts.end(s), LOWEST);
            });
        for (int64_t head = 0; head < heads; head++)
            for (int64_t s = 1; s < n; s++)
                top[head * n + s] = higher(top[head * n + s - 1], top[head * n + s]);
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
