// One chunk of the backward pass: what is read, and what becomes of finished gradients.
//
// g_i = grad_out_i / d_i is the gradient of a numerator, e_i = -(grad_out_i . out_i) / d_i that of a
// denominator; both are 0 where d_i is 0. Without a normaliser g_i = grad_out_i and e_i = 0.
#pragma once

#include "forward.h"

SUBQUAD_BEGIN

class Gradients {
  public:
    explicit Gradients(const subquad_linear& call)
        : r_(call), c_(call), kw_(r_.kw), vw_(r_.vw),
          scratch_(size_t(CHUNK) * (7 * kw_ + 5 * vw_ + 2 * CHUNK + LANES) +
                   size_t(kw_) * vw_ + kw_),
          q_(take_rows(kw_)), turned_q_(r_.rotates() ? take_rows(kw_) : q_), k_(take_rows(kw_)),
          turned_k_(r_.rotates() ? take_rows(kw_) : k_), grad_(take_rows(kw_)),
          plain_grad_(r_.rotates() ? take_rows(kw_) : grad_), kt_(take_rows(kw_)),
          v_(take_rows(vw_)), vt_(take_rows(vw_)), g_(take_rows(vw_)), out_(take_rows(vw_)),
          grad_v_(take_rows(vw_)), scores_(take_rows(CHUNK)), grad_scores_(take_rows(CHUNK)),
          partial_(take_rows(LANES)), turned_state_(scratch_.take(size_t(kw_) * vw_)),
          local_(scratch_.take(kw_)) {}

    bool ok() const { return scratch_.ok(); }

  protected:
    float* take_rows(int width) { return scratch_.take(size_t(CHUNK) * width); }

    // What load_queries reads, for the chunk at t.
    void expect_gradients(int64_t head, int64_t t) {
        r_.expect(c_.q, true, head, t, ahead_);
        r_.expect(c_.grad_out, false, head, t, ahead_);
        if (c_.is_normalized) r_.expect(c_.out, false, head, t, ahead_);
    }

    void expect_queries(int64_t head, int64_t t) {
        ahead_.clear();
        expect_gradients(head, t);
        if (c_.is_causal) {
            r_.expect(c_.key, true, head, t, ahead_);
            r_.expect(c_.value, false, head, t, ahead_);
        }
        r_.expect(c_.grad_q, true, head, t, ahead_);
    }

    void expect_keys(int64_t head, int64_t t) {
        ahead_.clear();
        r_.expect(c_.key, true, head, t, ahead_);
        r_.expect(c_.value, false, head, t, ahead_);
        if (c_.is_causal) expect_gradients(head, t);
        r_.expect(c_.grad_key, true, head, t, ahead_);
        r_.expect(c_.grad_value, false, head, t, ahead_);
    }

    // Queries with g and e.
    void load_queries(int64_t head, int64_t t, int rows) {
        r_.features(c_.q, false, head, t, rows, q_, turned_q_);
        r_.values(c_.grad_out, false, head, t, rows, g_);
        fill_zero(e_, CHUNK);
        if (!c_.is_normalized) return;
        const bool is_direct = !c_.is_v_bf16 && c_.v == vw_;
        if (!is_direct) r_.values(c_.out, false, head, t, rows, out_);
        for (int i = 0; i < rows; i++) {
            const float* out = is_direct ? static_cast<const float*>(c_.out.data) +
                                               offset(c_.out, c_.heads, head, t + i)
                                         : out_ + i * vw_;
            store(partial_ + i * LANES, dot(g_ + i * vw_, out, vw_));
        }
        fill_zero(partial_ + rows * LANES, int64_t(padded(rows) - rows) * LANES);
        sum_lanes(partial_, padded(rows), e_);
        const float* denominator = c_.denominator + head * c_.time + t;
        for (int i = 0; i < rows; i++) {
            const float d = denominator[i];
            e_[i] = d == 0 ? 0 : -e_[i] / d;
            if (d == 0)
                fill_zero(g_ + i * vw_, vw_);
            else
                divide(g_ + i * vw_, d, vw_, g_ + i * vw_);
        }
    }

    // Row i times factor[i], if there is a decay at all.
    void scale_rows(float* x, int width, int rows, const float* factor) {
        if (r_.decays())
            for (int i = 0; i < rows; i++) scale(x + i * width, factor[i], width);
    }

    // The gradient of features that were not rotated.
    void turn_back(int64_t head, int64_t t, int rows) {
        if (!r_.rotates()) return;
        for (int i = 0; i < rows; i++)
            r_.rotate(head, t + i, -1, grad_ + i * kw_, plain_grad_ + i * kw_);
    }

    // Where finished gradients of features go: into the tensor itself where its rows have the width
    // of ours, else into plain_grad_ first.
    struct Rows {
        float* to;
        int64_t stride;
        bool is_direct;
        const float* features;
        float sign;  // with which they count for the decay's gradient
    };

    Rows begin_rows(const subquad_tensor& x, int64_t head, int64_t t, const float* features,
                    float sign) const {
        const bool is_direct = !c_.is_qk_bf16 && c_.k == kw_ && !c_.key_mask.data;
        if (!is_direct) return {plain_grad_, kw_, false, features, sign};
        float* to = static_cast<float*>(x.data) + offset(x, c_.heads, head, t);
        return {to, x.time, true, features, sign};
    }

    // Row i of the vectors from column j on: its decay's term, then the slope of the map, which is 1
    // above 0 and the map itself below.
    template <int N>
    SUBQUAD_INLINE void finish_row(int i, int j, vf (&x)[N], const Rows& rows) {
        const float* phi = rows.features + i * kw_ + j;
        if (c_.grad_log_decay) {
            vf term = j ? load(partial_ + i * LANES) : vf{};
            for (int n = 0; n < N; n++) term += load(phi + n * LANES) * x[n];
            store(partial_ + i * LANES, term);
        }
        for (int n = 0; n < N; n++) {
            const vf f = load(phi + n * LANES), one = splat(1);
            if (c_.is_elu) x[n] *= select(f > one, one, f);
            store(rows.to + i * rows.stride + j + n * LANES, x[n]);
        }
    }

    // What the denominators give the queries, e_i times the sum of the keys that i sees; the sum of
    // the chunk's keys stays in local_.
    template <int N>
    int finish_queries(int rows, int j, State state, const Rows& to) {
        vf past[N], own[N], x[N];
        for (int n = 0; n < N; n++) {
            past[n] = load(state.k_sum + j + n * LANES);
            own[n] = vf{};
        }
        for (int i = 0; i < rows; i++) {
            const vf e = splat(e_[i]);
            const bool decays = c_.is_causal && r_.decays();
            const vf into = splat(decays ? decay_.into[i] : 1);
            for (int n = 0; n < N; n++) {
                if (decays) own[n] *= splat(decay_.step[i]);
                if (c_.is_causal) own[n] += load(k_ + i * kw_ + j + n * LANES);
                x[n] = load(plain_grad_ + i * kw_ + j + n * LANES);
                if (!c_.is_normalized) continue;
                x[n] += own[n] * e;
                x[n] += past[n] * (into * e);
            }
            finish_row<N>(i, j, x, to);
        }
        for (int n = 0; n < N; n++) store(local_ + j + n * LANES, own[n]);
        return N;
    }

    // What they give the keys: e_i times q_i, summed over the queries that see j. That sum over the
    // chunk, as the keys before it see it, stays in local_.
    template <int N>
    int finish_keys(int rows, int j, State later, const Rows& to) {
        const bool decays = c_.is_causal && r_.decays();
        vf past[N], own[N], x[N];
        for (int n = 0; n < N; n++) {
            past[n] = load(later.k_sum + j + n * LANES);
            own[n] = vf{};
        }
        for (int i = rows - 1; i >= 0; i--) {
            const vf out = splat(decays ? decay_.out(rows, i) : 1);
            for (int n = 0; n < N; n++) {
                x[n] = load(plain_grad_ + i * kw_ + j + n * LANES);
                if (c_.is_causal) own[n] += load(q_ + i * kw_ + j + n * LANES) * splat(e_[i]);
                x[n] += own[n];
                x[n] += past[n] * out;
                if (decays) own[n] *= splat(decay_.step[i]);
            }
            finish_row<N>(i, j, x, to);
        }
        for (int n = 0; n < N; n++) store(local_ + j + n * LANES, own[n]);
        return N;
    }

    // Write what is not in its tensor yet, and the terms of the decay's gradient: at t it is the sum
    // over i >= t of phi(q_i) . its gradient - phi(k_i) . its gradient, summed over time at the end.
    void end_rows(const subquad_tensor& x, bool is_key, int64_t head, int64_t t, int rows,
                  const Rows& done) {
        if (!done.is_direct)
            for (int i = 0; i < rows; i++) {
                float* row = plain_grad_ + i * kw_;
                if (is_key && r_.is_hidden(head, t + i)) fill_zero(row, kw_);
                store_row(x.data, c_.is_qk_bf16, offset(x, c_.heads, head, t + i), int(c_.k), row);
            }
        if (!c_.grad_log_decay) return;
        alignas(64) float terms[CHUNK];
        fill_zero(partial_ + rows * LANES, int64_t(padded(rows) - rows) * LANES);
        sum_lanes(partial_, padded(rows), terms);
        float* to = c_.grad_log_decay + head * c_.time + t;
        for (int i = 0; i < rows; i++) to[i] = done.sign > 0 ? terms[i] : to[i] - terms[i];
    }

    void write_values(int64_t head, int64_t t, int rows) {
        for (int i = 0; i < rows; i++) {
            if (r_.is_hidden(head, t + i)) fill_zero(grad_v_ + i * vw_, vw_);
            store_row(c_.grad_value.data, c_.is_v_bf16,
                      offset(c_.grad_value, c_.heads, head, t + i), int(c_.v), grad_v_ + i * vw_);
        }
    }

    Reader r_;
    const subquad_linear& c_;
    const int kw_, vw_;
    Scratch scratch_;
    float *q_, *turned_q_, *k_, *turned_k_, *grad_, *plain_grad_, *kt_, *v_, *vt_, *g_, *out_,
        *grad_v_, *scores_, *grad_scores_, *partial_, *turned_state_, *local_;
    alignas(64) float e_[CHUNK];
    Decay decay_;
    Ahead ahead_;
};

SUBQUAD_END
