// Backward: two sweeps over the chunks of a stretch of one head.
//
// The first goes forward in time with the state and gives the gradients of queries; the second goes
// back with the sums R = sum_i q_i g_i^T and r = sum_i e_i q_i over later queries and gives those of
// keys and values. Nothing is kept that grows with time and no state is rebuilt by subtraction.
// Source: Katharopoulos et al. 2020, equations 13 to 15.
#pragma once

#include "gradients.h"

SUBQUAD_BEGIN

class Backward : public Gradients {
  public:
    using Gradients::Gradients;

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
                r_.keys(head, t, rows, k_, turned_k_, v_, decay_);
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
            r_.keys(head, t, rows, k_, turned_k_, v_, decay_);
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
            r_.keys(head, t, rows, k_, turned_k_, v_, decay_);
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
};

SUBQUAD_END
