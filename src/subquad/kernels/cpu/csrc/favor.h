// FAVOR+ over all keys: a softmax over keys for each feature, then one over features for each query.
// The features never leave the cache. The mathematics: ops/performer_bidirectional.py.
#pragma once

#include "projection.h"
#include "segments.h"
#include "team.h"

SUBQUAD_BEGIN

// Of each feature m over some keys: the largest l_jm, the sum of exp(l_jm - top), and the values
// weighed by these, in rows of the padded width of V.
struct KeySums {
    float *top, *total, *values;
};

// A row of values, 0 where hidden.
inline void load_value(const subquad_favor& c, int64_t head, int64_t t, float* to) {
    if (is_set(c.hidden, c.heads, head, t))
        fill_zero(to, padded(c.v));
    else
        load_row(c.value.data, c.is_v_bf16, offset(c.value, c.heads, head, t), int(c.v),
                 padded(c.v), to);
}

class Favor {
  public:
    explicit Favor(const subquad_favor& call)
        : c_(call), vw_(padded(call.v)), projection_(call.directions, call.features, call.k),
          width_(projection_.width),
          scratch_(size_t(TOKENS) * vw_ * 2 + size_t(width_) * 3 + size_t(call.features) * vw_),
          v_(scratch_.take(TOKENS * vw_)), out_(scratch_.take(TOKENS * vw_)),
          level_(scratch_.take(width_)),
          own{scratch_.take(width_), scratch_.take(width_),
              scratch_.take(size_t(call.features) * vw_)} {}

    bool ok() const { return projection_.ok() && scratch_.ok(); }

    void clear(KeySums s) const {
        for (int j = 0; j < width_; j++) s.top[j] = LOWEST;
        fill_zero(s.total, width_);
        fill_zero(s.values, c_.features * vw_);
    }

    void add_keys(int64_t head, int64_t begin, int64_t end, KeySums s) {
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = int(smaller(TOKENS, end - t));
            projection_.project(c_.key, c_.is_qk_bf16, c_.heads, head, t, rows, c_.half_scale,
                                size_, [&](int64_t i) { return is_set(c_.hidden, c_.heads, head, i); });
            for (int i = 0; i < rows; i++) load_value(c_, head, t + i, v_ + i * vw_);
            for (int j = 0; j < width_; j += LANES) weigh(rows, j, s);
            product<true>(int(c_.features), vw_, rows, {projection_.u, 1, width_}, v_, vw_,
                          s.values, vw_);
        }
    }

    // Add ``from`` to ``to``, both below the larger of their tops.
    void merge(KeySums from, KeySums to) const {
        for (int64_t m = 0; m < c_.features; m++) {
            const float top = from.top[m] > to.top[m] ? from.top[m] : to.top[m];
            const float old = std::exp(to.top[m] - top), add = std::exp(from.top[m] - top);
            to.top[m] = top;
            to.total[m] = to.total[m] * old + from.total[m] * add;
            scale(to.values + m * vw_, old, vw_);
            add_scaled(to.values + m * vw_, from.values + m * vw_, add, vw_);
        }
    }

    // Turn sums into what queries need, s in place of the values and b in place of top.
    void finish(KeySums s) const {
        for (int64_t m = 0; m < c_.features; m++) {
            if (s.total[m] == 0) s.total[m] = 1;  // no valid key: the values are 0 already
            s.top[m] += std::log(s.total[m]);
            divide(s.values + m * vw_, s.total[m], vw_, s.values + m * vw_);
        }
    }

    void answer(int64_t head, int64_t begin, int64_t end, KeySums s) {
        // Relative to the largest: small numbers keep more digits.
        float most = s.top[0];
        for (int64_t m = 1; m < c_.features; m++) most = s.top[m] > most ? s.top[m] : most;
        std::memcpy(level_, projection_.no_padding(), size_t(width_) * sizeof(float));
        for (int64_t m = 0; m < c_.features; m++) level_[m] = s.top[m] - most;
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = int(smaller(TOKENS, end - t));
            projection_.project(c_.q, c_.is_qk_bf16, c_.heads, head, t, rows, 0, size_,
                                [](int64_t) { return false; });
            for (int i = 0; i < rows; i++)
                sum_[i] = exp_row(projection_.u + i * width_, level_, width_);
            deep_product(rows, vw_, int(c_.features), projection_.u, width_, s.values, out_);
            float* to = static_cast<float*>(c_.out.data);
            for (int i = 0; i < rows; i++) {
                divide(out_ + i * vw_, sum_[i], vw_, out_ + i * vw_);
                store_row(to, false, offset(c_.out, c_.heads, head, t + i), int(c_.v),
                          out_ + i * vw_);
            }
        }
    }

    // Write what the backward pass needs.
    void save(int64_t head, KeySums s) const {
        std::memcpy(c_.log_sums + head * c_.features, s.top, size_t(c_.features) * sizeof(float));
        for (int64_t m = 0; m < c_.features; m++)
            std::memcpy(c_.means + (head * c_.features + m) * c_.v, s.values + m * vw_,
                        size_t(c_.v) * sizeof(float));
    }

  private:
    // Of LANES features from j on: put the weights of ``rows`` keys in place of u, raise the top,
    // and bring the sums so far below the new one.
    void weigh(int rows, int j, KeySums s) {
        float* u = projection_.u + j;
        const vf before = load(s.top + j);
        vf top = before;
        for (int i = 0; i < rows; i++) {
            const vf l = load(u + i * width_) - size_[i];
            store(u + i * width_, l);
            top = maximum(top, l);
        }
        vf total{};
        for (int i = 0; i < rows; i++) {
            const vf weight = exp_nonpositive(load(u + i * width_) - top);
            store(u + i * width_, weight);
            total += weight;
        }
        alignas(64) float fade[LANES];
        store(fade, exp_nonpositive(before - top));
        store(s.top + j, top);
        store(s.total + j, load(s.total + j) * load(fade) + total);
        const int count = int(smaller(LANES, c_.features - j));
        for (int n = 0; n < count; n++)
            if (fade[n] != 1) scale(s.values + int64_t(j + n) * vw_, fade[n], vw_);
    }

    const subquad_favor& c_;
    const int vw_;
    Projection projection_;
    const int width_;
    Scratch scratch_;
    float *v_, *out_, *level_;
    float size_[TOKENS], sum_[TOKENS];

  public:
    const KeySums own;  // for a head that one thread does alone
};

inline int drive_favor(const subquad_favor& c) {
    const int64_t heads = c.batch * c.heads;
    const Segments keys(c.key_time, stretches(c)), queries(c.time, stretches(c));
    if (keys.count == 1 && queries.count == 1) {
        const bool done = share_out<Favor>(c, heads, [&](Favor& favor, int64_t head) {
            favor.clear(favor.own);
            favor.add_keys(head, 0, c.key_time, favor.own);
            favor.finish(favor.own);
            favor.save(head, favor.own);
            favor.answer(head, 0, c.time, favor.own);
        });
        return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
    }
    const int64_t n = keys.count, m = queries.count, width = padded(c.features);
    const int64_t values = c.features * padded(c.v), size = (2 * width + values + 15) / 16 * 16;
    Scratch memory(size_t(heads * n * size));
    if (!memory.ok()) return SUBQUAD_OUT_OF_MEMORY;
    float* start = memory.take(0);
    auto part = [&](int64_t unit) {
        float* top = start + unit * size;
        return KeySums{top, top + width, top + 2 * width};
    };
    bool done = share_out<Favor>(c, heads * n, [&](Favor& favor, int64_t unit) {
        const int64_t head = unit / n, s = unit % n;
        favor.clear(part(unit));
        favor.add_keys(head, keys.begin(s), keys.end(s), part(unit));
    });
    done = done && share_out<Favor>(c, heads, [&](Favor& favor, int64_t head) {
        const KeySums all = part(head * n);
        for (int64_t s = 1; s < n; s++) favor.merge(part(head * n + s), all);
        favor.finish(all);
        favor.save(head, all);
    });
    done = done && share_out<Favor>(c, heads * m, [&](Favor& favor, int64_t unit) {
        const int64_t head = unit / m, s = unit % m;
        favor.answer(head, queries.begin(s), queries.end(s), part(head * n));
    });
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

SUBQUAD_END
