// Forward and backward of a whole call: heads over threads, and time too where heads are few.
#pragma once

#include "backward.h"
#include "favor_reader.h"
#include "segments.h"
#include "team.h"

SUBQUAD_BEGIN

// States at the borders of stretches: slot s of a head stands before stretch s, and one more behind
// the last. Each with the decay since the slot before.
class Borders {
  public:
    Borders(int64_t heads, int64_t slots, int64_t kv, int64_t k)
        : slots_(slots), kv_(kv), size_(kv + k + LANES),
          memory_(static_cast<float*>(std::calloc(size_t(heads * slots * size_), sizeof(float)))) {}
    ~Borders() { std::free(memory_); }
    Borders(const Borders&) = delete;
    Borders& operator=(const Borders&) = delete;

    bool ok() const { return memory_ != nullptr; }
    State at(int64_t head, int64_t s) const {
        float* kv = memory_ + (head * slots_ + s) * size_;
        return {kv, kv + kv_};
    }
    float& decay(int64_t head, int64_t s) const {
        return memory_[(head * slots_ + s + 1) * size_ - LANES];
    }
    // Add the slot ``from``, decayed by what lies between, to slot ``to``.
    void carry(int64_t head, int64_t from, int64_t to) const {
        const State a = at(head, from), b = at(head, to);
        for (int64_t j = 0; j < size_ - LANES; j++) b.kv[j] += decay(head, to) * a.kv[j];
    }

  private:
    int64_t slots_, kv_, size_;
    float* memory_;
};

// Between contiguous (rows, columns) and rows of ``width`` floats, transposed on request.
inline void unpack(const float* from, int64_t rows, int64_t columns, int64_t width, float* to,
                   bool is_turned = false) {
    if (!from) return;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[is_turned ? j * width + i : i * width + j] = from[i * columns + j];
}

inline void pack(const float* from, int64_t rows, int64_t columns, int64_t width, float* to) {
    if (!to) return;
    for (int64_t i = 0; i < rows; i++)
        std::memcpy(to + i * columns, from + i * width, size_t(columns) * sizeof(float));
}

inline const float* of_head(const float* x, int64_t head, int64_t size) {
    return x ? x + head * size : nullptr;
}
inline float* of_head(float* x, int64_t head, int64_t size) { return x ? x + head * size : nullptr; }

// The maximum before each stretch of a head's keys, where they go on from one: FAVOR+.
inline bool find_tops(const subquad_linear& c, const Segments& parts, float* tops) {
    const int64_t heads = c.batch * c.heads, n = parts.count;
    for (int64_t unit = 0; unit < heads * n; unit++)
        tops[unit] = c.directions ? c.log_max_in[unit / n] : 0;
    if (!c.directions || n == 1) return true;
    const bool done = share_out<FavorReader>(c, heads * (n - 1), [&](FavorReader& r, int64_t unit) {
        const int64_t head = unit / (n - 1), s = unit % (n - 1);
        r.start(c.log_max_in[head]);
        tops[head * n + s + 1] = r.highest(head, parts.begin(s), parts.end(s));
    });
    for (int64_t head = 0; head < heads; head++)
        for (int64_t s = 1; s < n; s++)
            tops[head * n + s] = higher(tops[head * n + s - 1], tops[head * n + s]);
    return done;
}

template <class Worker>
inline int drive_forward(const subquad_linear& c) {
    const int64_t heads = c.batch * c.heads, kw = padded(c.k), vw = padded(c.v);
    const Segments keys(c.key_time, stretches(c)), queries(c.time, stretches(c));
    const int64_t n = keys.count, last = c.is_causal ? n - 1 : n;
    Borders states(heads, n + 1, c.k * vw, kw);
    Scratch memory(size_t(heads * n));
    if (!states.ok() || !memory.ok()) return SUBQUAD_OUT_OF_MEMORY;
    float* tops = memory.take(0);
    bool done = find_tops(c, keys, tops);
    done = done && share_out<Worker>(c, heads * last, [&](Worker& forward, int64_t unit) {
        const int64_t head = unit / last, s = unit % last;
        forward.source().start(tops[head * n + s]);
        states.decay(head, s + 1) =
            forward.sums(head, keys.begin(s), keys.end(s), states.at(head, s + 1));
    });
    for (int64_t head = 0; head < heads; head++) {
        const State start = states.at(head, 0);
        unpack(of_head(c.kv_in, head, c.k * c.v), c.k, c.v, vw, start.kv);
        unpack(of_head(c.k_sum_in, head, c.k), 1, c.k, kw, start.k_sum);
        for (int64_t s = 0; s < last; s++) states.carry(head, s, s + 1);
    }
    done = done &&
           share_out<Worker>(c, heads * queries.count, [&](Worker& forward, int64_t unit) {
               const int64_t head = unit / queries.count, s = unit % queries.count;
               if (c.is_causal) forward.source().start(tops[head * n + s]);
               forward.outputs(head, queries.begin(s), queries.end(s),
                               states.at(head, c.is_causal ? s : n));
               if (c.log_max_out && s == n - 1) c.log_max_out[head] = forward.source().top();
           });
    for (int64_t head = 0; head < heads; head++) {
        const State end = states.at(head, last);
        pack(end.kv, c.k, c.v, vw, of_head(c.kv_out, head, c.k * c.v));
        pack(end.k_sum, 1, c.k, kw, of_head(c.k_sum_out, head, c.k));
    }
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

// From its terms per token to the decay's gradient: the sum over later tokens, and what flows out
// through the state behind the last one.
inline void finish_grad_decay(const subquad_linear& c, int64_t head, State end) {
    const float* grad_kv = of_head(c.grad_kv_out, head, c.k * c.v);
    const float* grad_k_sum = of_head(c.grad_k_sum_out, head, c.k);
    double flow = 0;
    for (int64_t i = 0; i < c.k; i++) {
        if (grad_kv)
            for (int64_t j = 0; j < c.v; j++)
                flow += double(grad_kv[i * c.v + j]) * end.kv[j * padded(c.k) + i];
        if (grad_k_sum) flow += double(grad_k_sum[i]) * end.k_sum[i];
    }
    const Reader reader(c);
    const float* g = static_cast<const float*>(c.log_decay.data);
    float* terms = c.grad_log_decay + head * c.time;
    for (int64_t t = c.time - 1; t >= 0; t--) {
        flow += terms[t];
        const bool is_hidden = reader.is_hidden(head, t);
        // Nothing flows past a reset: what is left of the sum is rounding.
        if (!is_hidden && g[offset(c.log_decay, c.heads, head, t)] == -INFINITY) flow = 0;
        terms[t] = is_hidden ? 0 : float(flow);
    }
}

inline int drive_backward(const subquad_linear& c) {
    const int64_t heads = c.batch * c.heads, kw = padded(c.k), vw = padded(c.v);
    const Segments keys(c.key_time, stretches(c)), queries(c.time, stretches(c));
    const int64_t n = keys.count, m = queries.count, skip = c.is_causal ? 1 : 0;
    // Slot s of ``later`` stands behind query stretch m - 1 - s: both run the way of their sums.
    Borders states(heads, n + 1, c.v * kw, kw), later(heads, m + 1, kw * vw, kw);
    if (!states.ok() || !later.ok()) return SUBQUAD_OUT_OF_MEMORY;
    const int64_t key_units = heads * (n - skip), query_units = heads * (m - skip);
    bool done = share_out<Backward>(
        c, key_units + query_units, [&](Backward& backward, int64_t unit) {
            if (unit < key_units) {
                const int64_t head = unit / (n - skip), s = unit % (n - skip);
                states.decay(head, s + 1) =
                    backward.key_sums(head, keys.begin(s), keys.end(s), states.at(head, s + 1));
            } else {
                unit -= key_units;
                const int64_t head = unit / (m - skip), s = unit % (m - skip), from = m - 1 - s;
                later.decay(head, s + 1) = backward.query_sums(
                    head, queries.begin(from), queries.end(from), later.at(head, s + 1));
            }
        });
    for (int64_t head = 0; head < heads; head++) {
        const State start = states.at(head, 0), end = later.at(head, 0);
        unpack(of_head(c.kv_in, head, c.k * c.v), c.k, c.v, kw, start.kv, true);
        unpack(of_head(c.k_sum_in, head, c.k), 1, c.k, kw, start.k_sum);
        unpack(of_head(c.grad_kv_out, head, c.k * c.v), c.k, c.v, vw, end.kv);
        unpack(of_head(c.grad_k_sum_out, head, c.k), 1, c.k, kw, end.k_sum);
        for (int64_t s = 0; s < n - skip; s++) states.carry(head, s, s + 1);
        for (int64_t s = 0; s < m - skip; s++) later.carry(head, s, s + 1);
    }
    auto do_queries = [&](Backward& backward, int64_t unit) {
        const int64_t head = unit / m, s = unit % m;
        backward.queries(head, queries.begin(s), queries.end(s),
                         states.at(head, c.is_causal ? s : n));
    };
    auto do_keys = [&](Backward& backward, int64_t unit) {
        const int64_t head = unit / n, s = unit % n;
        backward.keys(head, keys.begin(s), keys.end(s),
                      later.at(head, c.is_causal ? n - 1 - s : m));
    };
    // Queries before keys: both write to the decay's gradient, in this order.
    if (n == 1 && m == 1) {
        done = done && share_out<Backward>(c, heads, [&](Backward& backward, int64_t head) {
            do_queries(backward, head);
            do_keys(backward, head);  // what they share may still be in the cache
        });
    } else {
        done = done && share_out<Backward>(c, heads * m, do_queries) &&
               share_out<Backward>(c, heads * n, do_keys);
    }
    for (int64_t head = 0; head < heads; head++) {
        const State start = later.at(head, c.is_causal ? m - 1 : m);
        pack(start.kv, c.k, c.v, vw, of_head(c.grad_kv_in, head, c.k * c.v));
        pack(start.k_sum, 1, c.k, kw, of_head(c.grad_k_sum_in, head, c.k));
        if (c.grad_log_decay) finish_grad_decay(c, head, states.at(head, n - 1));
    }
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

SUBQUAD_END
