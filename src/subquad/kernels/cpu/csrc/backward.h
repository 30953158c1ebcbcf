// Backward: two sweeps over the chunks of a stretch of one head.
//
// The first goes forward in time with the state and gives the gradients of queries; the second goes
// back with the sums R = sum_i q_i g_i^T and r = sum_i e_i q_i over later queries and gives those of
// keys and values. Nothing is kept that grows with time and no state is rebuilt by subtraction.
//
// g_i = grad_out_i / d_i is the gradient of a numerator, e_i = -(grad_out_i . out_i) / d_i that of a
// denominator; both are 0 where d_i is 0. Without a normaliser g_i = grad_out_i and e_i = 0.
// Source: Katharopoulos et al. 2020, equations 13 to 15.
#pragma once

#include "forward.h"

SUBQUAD_BEGIN

class Backward {
  public:
    explicit Backward(const subquad_linear& call)
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

    // Gradients of queries [begin, end) from the state before them, whose kv is transposed: (V, width
    // of K). Where causal, their keys are added to it on the way.
    void queries(int64_t head, int64_t begin, int64_t end, State state) {
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            expect_queries(head, t + CHUNK);
            load_queries(head, t, rows);
            product<false>(rows, kw_, int(c_.v), {g_, vw_, 1}, state.kv, kw_, grad_, kw_,
                           Part::WHOLE, &ahead_);
            if (c_.is_causal) {
                load_keys(head, t, rows);
                scale_rows(grad_, kw_, rows, decay_.into);
                make_grad_scores(rows);
                product<true>(rows, kw_, rows, {grad_scores_, CHUNK, 1}, turned_k_, kw_, grad_, kw_,
                              Part::DEPTH_TO_ROW, &ahead_);
            }
            turn_back(head, t, rows);
            const Rows to = begin_rows(c_.grad_q, head, t, q_, 1);
            for (int j = 0; j < kw_;)
                j += LANES * (kw_ - j >= 4 * LANES ? finish_queries<4>(rows, j, state, to)
                                                   : finish_queries<1>(rows, j, state, to));
            end_rows(c_.grad_q, false, head, t, rows, to);
            if (c_.is_causal) add_keys(rows, state);
        }
    }

    // Gradients of keys and values [begin, end) from the sums R, r over later queries. Where causal,
    // the queries of the same tokens are added to these on the way.
    void keys(int64_t head, int64_t begin, int64_t end, State later) {
        for (int64_t t = begin + (end - begin - 1) / CHUNK * CHUNK; t >= begin; t -= CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            expect_keys(head, t - CHUNK);
            load_keys(head, t, rows);
            product<false>(rows, vw_, int(c_.k), {turned_k_, kw_, 1}, later.kv, vw_, grad_v_, vw_,
                           Part::WHOLE, &ahead_);
            transpose(later.kv, vw_, kw_, vw_, turned_state_, kw_);
            product<false>(rows, kw_, int(c_.v), {v_, vw_, 1}, turned_state_, kw_, grad_, kw_,
                           Part::WHOLE, &ahead_);
            if (c_.is_causal) {
                load_queries(head, t, rows);
                const float* out = decay_.pairs + (rows - 1) * CHUNK;
                scale_rows(grad_v_, vw_, rows, out);
                scale_rows(grad_, kw_, rows, out);
                add_own_chunk(rows);
            }
            turn_back(head, t, rows);
            const Rows to = begin_rows(c_.grad_key, head, t, k_, -1);
            for (int j = 0; j < kw_;)
                j += LANES * (kw_ - j >= 4 * LANES ? finish_keys<4>(rows, j, later, to)
                                                   : finish_keys<1>(rows, j, later, to));
            end_rows(c_.grad_key, true, head, t, rows, to);
            write_values(head, t, rows);
            if (c_.is_causal) add_queries(rows, later);
        }
    }

    // Add the keys [begin, end) to a state with transposed kv; returns the decay over all of them.
    float key_sums(int64_t head, int64_t begin, int64_t end, State state) {
        float total = 1;
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            ahead_.clear();
            r_.expect(c_.key, true, head, t + CHUNK, ahead_);
            r_.expect(c_.value, false, head, t + CHUNK, ahead_);
            load_keys(head, t, rows);
            sum_rows(k_, rows, kw_, r_.decays() ? decay_.step : nullptr, local_);
            add_keys(rows, state);
            if (r_.decays()) total *= decay_.total(rows);
        }
        return total;
    }

    // Add the queries [begin, end) to R and r, the last first.
    float query_sums(int64_t head, int64_t begin, int64_t end, State later) {
        float total = 1;
        for (int64_t t = begin + (end - begin - 1) / CHUNK * CHUNK; t >= begin; t -= CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            ahead_.clear();
            expect_gradients(head, t - CHUNK);
            load_queries(head, t, rows);
            if (r_.decays()) {
                r_.decay(head, t, rows, decay_);
                total *= decay_.total(rows);
            }
            sum_queries(rows);
            add_queries(rows, later);
        }
        return total;
    }

  private:
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

    void load_keys(int64_t head, int64_t t, int rows) {
        r_.features(c_.key, true, head, t, rows, k_, turned_k_);
        r_.values(c_.value, true, head, t, rows, v_);
        if (r_.decays()) r_.decay(head, t, rows, decay_);
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

    void make_grad_scores(int rows) {
        const int columns = padded(rows);
        transpose(v_, vw_, columns, vw_, vt_, CHUNK);
        lower_product(rows, int(c_.v), {g_, vw_, 1}, vt_, CHUNK, grad_scores_, CHUNK,
                      &ahead_);
        keep_past(grad_scores_, rows, columns, r_.decays() ? &decay_ : nullptr);
    }

    void add_own_chunk(int rows) {
        const int columns = padded(rows);
        transpose(turned_k_, kw_, columns, kw_, kt_, CHUNK);
        lower_product(rows, int(c_.k), {turned_q_, kw_, 1}, kt_, CHUNK, scores_, CHUNK,
                      &ahead_);
        keep_past(scores_, rows, columns, r_.decays() ? &decay_ : nullptr);
        product<true>(rows, vw_, rows, {scores_, 1, CHUNK}, g_, vw_, grad_v_, vw_,
                      Part::DEPTH_FROM_ROW, &ahead_);
        make_grad_scores(rows);
        product<true>(rows, kw_, rows, {grad_scores_, 1, CHUNK}, turned_q_, kw_, grad_, kw_,
                      Part::DEPTH_FROM_ROW, &ahead_);
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

    // local_ holds the sum of the keys.
    void add_keys(int rows, State state) {
        decay_state(rows, state, c_.v * kw_);
        add_scaled(state.k_sum, local_, 1, kw_);
        scale_rows(turned_k_, kw_, rows, decay_.pairs + (rows - 1) * CHUNK);
        product<true>(int(c_.v), kw_, rows, {v_, 1, vw_}, turned_k_, kw_, state.kv, kw_,
                      Part::WHOLE, &ahead_);
    }

    // Into local_, what finish_keys leaves there.
    void sum_queries(int rows) {
        fill_zero(local_, kw_);
        for (int i = 0; i < rows; i++)
            add_scaled(local_, q_ + i * kw_, r_.decays() ? e_[i] * decay_.into[i] : e_[i], kw_);
    }

    // local_ holds the sum of e_i q_i.
    void add_queries(int rows, State later) {
        decay_state(rows, later, c_.k * vw_);
        add_scaled(later.k_sum, local_, 1, kw_);
        scale_rows(turned_q_, kw_, rows, decay_.into);
        product<true>(int(c_.k), vw_, rows, {turned_q_, 1, kw_}, g_, vw_, later.kv, vw_,
                      Part::WHOLE, &ahead_);
    }

    void decay_state(int rows, State state, int64_t count) {
        if (!r_.decays()) return;
        scale(state.kv, decay_.total(rows), count);
        scale(state.k_sum, decay_.total(rows), kw_);
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
