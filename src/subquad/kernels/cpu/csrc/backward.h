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
        r_.ahead = CHUNK;
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            load_queries(head, t, rows);
            product<false>(rows, kw_, int(c_.v), {g_, vw_, 1}, state.kv, kw_, grad_, kw_);
            if (c_.is_causal) {
                load_keys(head, t, rows);
                scale_rows(grad_, kw_, rows, decay_.into);
                make_grad_scores(rows);
                product<true>(rows, kw_, rows, {grad_scores_, CHUNK, 1}, turned_k_, kw_, grad_, kw_,
                              Part::DEPTH_TO_ROW);
            }
            turn_back(head, t, rows);
            add_past_keys(rows, state);
            write_grad_decay(head, t, rows, q_, 1);
            write_features(c_.grad_q, false, head, t, rows, q_);
            if (c_.is_causal) add_keys(rows, state);
        }
    }

    // Gradients of keys and values [begin, end) from the sums R, r over later queries. Where causal,
    // the queries of the same tokens are added to these on the way.
    void keys(int64_t head, int64_t begin, int64_t end, State later) {
        r_.ahead = -CHUNK;
        for (int64_t t = begin + (end - begin - 1) / CHUNK * CHUNK; t >= begin; t -= CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            load_keys(head, t, rows);
            product<false>(rows, vw_, int(c_.k), {turned_k_, kw_, 1}, later.kv, vw_, grad_v_, vw_);
            transpose(later.kv, vw_, kw_, vw_, turned_state_, kw_);
            product<false>(rows, kw_, int(c_.v), {v_, vw_, 1}, turned_state_, kw_, grad_, kw_);
            if (c_.is_causal) {
                load_queries(head, t, rows);
                const float* out = decay_.pairs + (rows - 1) * CHUNK;
                scale_rows(grad_v_, vw_, rows, out);
                scale_rows(grad_, kw_, rows, out);
                add_own_chunk(rows);
            }
            turn_back(head, t, rows);
            add_later_queries(rows, later);
            write_grad_decay(head, t, rows, k_, -1);
            write_features(c_.grad_key, true, head, t, rows, k_);
            write_values(head, t, rows);
            if (c_.is_causal) add_queries(rows, later);
        }
    }

    // Add the keys [begin, end) to a state with transposed kv; returns the decay over all of them.
    float key_sums(int64_t head, int64_t begin, int64_t end, State state) {
        r_.ahead = CHUNK;
        float total = 1;
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            load_keys(head, t, rows);
            add_keys(rows, state);
            if (r_.decays()) total *= decay_.total(rows);
        }
        return total;
    }

    // Add the queries [begin, end) to R and r, the last first.
    float query_sums(int64_t head, int64_t begin, int64_t end, State later) {
        r_.ahead = -CHUNK;
        float total = 1;
        for (int64_t t = begin + (end - begin - 1) / CHUNK * CHUNK; t >= begin; t -= CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            load_queries(head, t, rows);
            if (r_.decays()) {
                r_.decay(head, t, rows, decay_);
                total *= decay_.total(rows);
            }
            add_queries(rows, later);
        }
        return total;
    }

  private:
    float* take_rows(int width) { return scratch_.take(size_t(CHUNK) * width); }

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
        r_.values(c_.out, false, head, t, rows, out_);
        for (int i = 0; i < padded(rows); i++)
            store(partial_ + i * LANES, dot(g_ + i * vw_, out_ + i * vw_, vw_));
        sum_lanes(partial_, padded(rows), e_);
        const float* denominator = c_.denominator + head * c_.time + t;
        for (int i = 0; i < rows; i++) {
            const float d = denominator[i];
            e_[i] = d == 0 ? 0 : -e_[i] / d;
            if (d == 0)
                fill_zero(g_ + i * vw_, vw_);
            else
                divide(g_ + i * vw_, d, vw_);
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
        product<false>(rows, columns, int(c_.v), {g_, vw_, 1}, vt_, CHUNK, grad_scores_, CHUNK,
                       Part::COLUMNS_TO_ROW);
        keep_past(grad_scores_, rows, columns, r_.decays() ? &decay_ : nullptr);
    }

    void add_own_chunk(int rows) {
        const int columns = padded(rows);
        transpose(turned_k_, kw_, columns, kw_, kt_, CHUNK);
        product<false>(rows, columns, int(c_.k), {turned_q_, kw_, 1}, kt_, CHUNK, scores_, CHUNK,
                       Part::COLUMNS_TO_ROW);
        keep_past(scores_, rows, columns, r_.decays() ? &decay_ : nullptr);
        product<true>(rows, vw_, rows, {scores_, 1, CHUNK}, g_, vw_, grad_v_, vw_,
                      Part::DEPTH_FROM_ROW);
        make_grad_scores(rows);
        product<true>(rows, kw_, rows, {grad_scores_, 1, CHUNK}, turned_q_, kw_, grad_, kw_,
                      Part::DEPTH_FROM_ROW);
    }

    // The gradient of features that were not rotated.
    void turn_back(int64_t head, int64_t t, int rows) {
        if (!r_.rotates()) return;
        for (int i = 0; i < rows; i++)
            r_.rotate(head, t + i, -1, grad_ + i * kw_, plain_grad_ + i * kw_);
    }

    // What the denominators give the queries: e_i times the sum of the keys that i sees.
    void add_past_keys(int rows, State state) {
        if (!c_.is_normalized) return;
        fill_zero(local_, kw_);
        for (int i = 0; i < rows; i++) {
            const bool decays = r_.decays();
            if (c_.is_causal) {
                if (decays) scale(local_, decay_.step[i], kw_);
                add_scaled(local_, k_ + i * kw_, 1, kw_);
                add_scaled(plain_grad_ + i * kw_, local_, e_[i], kw_);
            }
            add_scaled(plain_grad_ + i * kw_, state.k_sum,
                       c_.is_causal && decays ? e_[i] * decay_.into[i] : e_[i], kw_);
        }
    }

    // What they give the keys: e_i times q_i, summed over the queries that see j.
    void add_later_queries(int rows, State later) {
        fill_zero(local_, kw_);
        for (int j = rows - 1; j >= 0; j--) {
            const bool decays = r_.decays();
            if (c_.is_causal) {
                if (decays && j + 1 < rows) scale(local_, decay_.step[j + 1], kw_);
                add_scaled(local_, q_ + j * kw_, e_[j], kw_);
                add_scaled(plain_grad_ + j * kw_, local_, 1, kw_);
            }
            add_scaled(plain_grad_ + j * kw_, later.k_sum,
                       c_.is_causal && decays ? decay_.out(rows, j) : 1, kw_);
        }
    }

    void add_keys(int rows, State state) {
        fill_zero(local_, kw_);
        for (int j = 0; j < rows; j++) {
            if (r_.decays()) scale(local_, decay_.step[j], kw_);
            add_scaled(local_, k_ + j * kw_, 1, kw_);
        }
        decay_state(rows, state, c_.v * kw_);
        add_scaled(state.k_sum, local_, 1, kw_);
        scale_rows(turned_k_, kw_, rows, decay_.pairs + (rows - 1) * CHUNK);
        product<true>(int(c_.v), kw_, rows, {v_, 1, vw_}, turned_k_, kw_, state.kv, kw_);
    }

    void add_queries(int rows, State later) {
        decay_state(rows, later, c_.k * vw_);
        for (int i = 0; i < rows; i++)
            add_scaled(later.k_sum, q_ + i * kw_, r_.decays() ? e_[i] * decay_.into[i] : e_[i],
                       kw_);
        scale_rows(turned_q_, kw_, rows, decay_.into);
        product<true>(int(c_.k), vw_, rows, {turned_q_, 1, kw_}, g_, vw_, later.kv, vw_);
    }

    void decay_state(int rows, State state, int64_t count) {
        if (!r_.decays()) return;
        scale(state.kv, decay_.total(rows), count);
        scale(state.k_sum, decay_.total(rows), kw_);
    }

    // The decay's gradient at t is the sum over i >= t of phi(q_i) . its gradient - phi(k_i) . its
    // gradient; here its terms, summed over time at the very end.
    void write_grad_decay(int64_t head, int64_t t, int rows, const float* features, float sign) {
        if (!c_.grad_log_decay) return;
        alignas(64) float terms[CHUNK];
        for (int i = 0; i < rows; i++)
            store(partial_ + i * LANES, dot(features + i * kw_, plain_grad_ + i * kw_, kw_));
        fill_zero(partial_ + rows * LANES, int64_t(padded(rows) - rows) * LANES);
        sum_lanes(partial_, padded(rows), terms);
        float* to = c_.grad_log_decay + head * c_.time + t;
        for (int i = 0; i < rows; i++) to[i] = sign > 0 ? terms[i] : to[i] - terms[i];
    }

    void write_features(const subquad_tensor& to, bool is_key, int64_t head, int64_t t, int rows,
                        const float* features) {
        const vf one = splat(1);
        for (int i = 0; i < rows; i++) {
            float* row = plain_grad_ + i * kw_;
            if (is_key && r_.is_hidden(head, t + i)) {
                fill_zero(row, kw_);
            } else if (c_.is_elu) {  // the map's slope is 1 above 0 and the map itself below
                for (int j = 0; j < kw_; j += LANES) {
                    const vf phi = load(features + i * kw_ + j);
                    store(row + j, load(row + j) * select(phi > one, one, phi));
                }
            }
            store_row(to.data, c_.is_qk_bf16, offset(to, c_.heads, head, t + i), int(c_.k), row);
        }
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
};

SUBQUAD_END
