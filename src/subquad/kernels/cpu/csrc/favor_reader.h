// What the causal recurrence reads where it is FAVOR+: raw queries and keys become features on the
// way, keys below a running maximum, and its rises are the decay.
#pragma once

#include "projection.h"

SUBQUAD_BEGIN

class FavorReader : public Reader {
  public:
    explicit FavorReader(const subquad_linear& call)
        : Reader(call), map_(call.directions, call.k, call.width) {}

    bool ok() const { return map_.ok(); }
    bool rotates() const { return false; }
    bool decays() const { return true; }
    void start(float top) { top_ = top; }  // the maximum before the next key
    float top() const { return top_; }

    void features(const subquad_tensor& x, bool, int64_t head, int64_t t, int rows, float* plain,
                  float*) {
        map_.project(x, c.is_qk_bf16, c.heads, head, t, rows, 0, sizes_,
                     [](int64_t) { return false; });
        for (int i = 0; i < rows; i++) map_.query(i, plain + i * kw);
        fill_zero(plain + rows * kw, int64_t(padded(rows) - rows) * kw);
    }

    void keys(int64_t head, int64_t t, int rows, float* k, float*, float* v, Decay& decay) {
        project_keys(head, t, rows);
        for (int i = 0; i < rows; i++) {
            const float before = top_;
            top_ = map_.key(i, sizes_[i], top_, k + i * kw);
            decay.step[i] = before == top_ ? 1 : std::exp(before - top_);
        }
        fill_zero(k + rows * kw, int64_t(padded(rows) - rows) * kw);
        decay.fill(rows);
        values(c.value, true, head, t, rows, v);
    }

    // The maximum behind keys [begin, end), which goes on from the start.
    float highest(int64_t head, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            project_keys(head, t, rows);
            for (int i = 0; i < rows; i++) top_ = map_.raise(i, sizes_[i], top_);
        }
        return top_;
    }

    void expect(const subquad_tensor& x, bool is_qk, int64_t head, int64_t t, Ahead& ahead) const {
        const int64_t size = (is_qk ? c.is_qk_bf16 : c.is_v_bf16) ? 2 : 4;
        ahead.add(reinterpret_cast<uintptr_t>(x.data) + uintptr_t(offset(x, c.heads, head, t) * size),
                  x.time * size, CHUNK, (is_qk ? c.width : c.v) * size);
    }

  private:
    static_assert(CHUNK <= TOKENS, "a chunk is projected at once");

    void project_keys(int64_t head, int64_t t, int rows) {
        map_.project(c.key, c.is_qk_bf16, c.heads, head, t, rows, c.half_scale, sizes_,
                     [&](int64_t i) { return is_hidden(head, i); });
    }

    CausalFeatures map_;
    float sizes_[TOKENS];
    float top_ = 0;
};

SUBQUAD_END
