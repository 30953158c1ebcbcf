// Forward: outputs of a stretch of one head, chunk by chunk, from a state that goes along.
#pragma once

#include "chunk.h"

SUBQUAD_BEGIN

// Sums over the past in padded rows: kv (K, width of V), k_sum (width of K).
struct State {
    float *kv, *k_sum;
};

template <class Source>
class ForwardFrom {
  public:
    explicit ForwardFrom(const subquad_linear& call)
        : r_(call), c_(call), kw_(r_.kw), vw_(r_.vw),
          scratch_(size_t(CHUNK) * (5 * kw_ + 2 * vw_ + CHUNK + LANES) + kw_),
          q_(scratch_.take(CHUNK * kw_)),
          turned_q_(r_.rotates() ? scratch_.take(CHUNK * kw_) : q_),
          k_(scratch_.take(CHUNK * kw_)),
          turned_k_(r_.rotates() ? scratch_.take(CHUNK * kw_) : k_),
          kt_(scratch_.take(size_t(kw_) * CHUNK)), v_(scratch_.take(CHUNK * vw_)),
          out_(scratch_.take(CHUNK * vw_)), scores_(scratch_.take(CHUNK * CHUNK)),
          partial_(scratch_.take(CHUNK * LANES)), local_(scratch_.take(kw_)) {}

    bool ok() const { return scratch_.ok() && r_.ok(); }
    Source& source() { return r_; }

    // Outputs of queries [begin, end). Where causal, their keys are added to the state on the way.
    void outputs(int64_t head, int64_t begin, int64_t end, State state) {
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            expect(head, t + CHUNK);
            r_.features(c_.q, false, head, t, rows, q_, turned_q_);
            product<false>(rows, vw_, int(c_.k), {turned_q_, kw_, 1}, state.kv, vw_, out_, vw_,
                           Part::WHOLE, &ahead_);
            if (c_.is_causal) {
                r_.keys(head, t, rows, k_, turned_k_, v_, decay_);
                add_own_chunk(rows);
            }
            denominators(rows, state);
            finish(head, t, rows);
            if (c_.is_causal) update(rows, state);
        }
    }

    // Add the keys [begin, end) to the state; returns the decay over all of them.
    float sums(int64_t head, int64_t begin, int64_t end, State state) {
        float total = 1;
        for (int64_t t = begin; t < end; t += CHUNK) {
            const int rows = int(smaller(CHUNK, end - t));
            ahead_.clear();
            r_.expect(c_.key, true, head, t + CHUNK, ahead_);
            r_.expect(c_.value, false, head, t + CHUNK, ahead_);
            r_.keys(head, t, rows, k_, turned_k_, v_, decay_);
            sum_rows(k_, rows, kw_, r_.decays() ? decay_.step : nullptr, local_);
            update(rows, state);
            if (r_.decays()) total *= decay_.total(rows);
        }
        return total;
    }

  private:
    // The chunk of queries, keys and values that begins at t, and where its outputs go.
    void expect(int64_t head, int64_t t) {
        ahead_.clear();
        r_.expect(c_.q, true, head, t, ahead_);
        if (c_.is_causal) {
            r_.expect(c_.key, true, head, t, ahead_);
            r_.expect(c_.value, false, head, t, ahead_);
        }
        r_.expect(c_.out, false, head, t, ahead_);
    }

    void add_own_chunk(int rows) {
        const int columns = padded(rows);
        transpose(turned_k_, kw_, columns, kw_, kt_, CHUNK);
        lower_product(rows, int(c_.k), {turned_q_, kw_, 1}, kt_, CHUNK, scores_, CHUNK,
                      &ahead_);
        keep_past(scores_, rows, columns, r_.decays() ? &decay_ : nullptr);
        if (r_.decays())
            for (int i = 0; i < rows; i++) scale(out_ + i * vw_, decay_.into[i], vw_);
        product<true>(rows, vw_, rows, {scores_, CHUNK, 1}, v_, vw_, out_, vw_,
                      Part::DEPTH_TO_ROW, &ahead_);
    }

    // Into denominator_; the sum of the chunk's keys into local_ on the way. It is kept apart from
    // the past, whose sum may be so large that adding one key to it would round the key away.
    void denominators(int rows, State state) {
        for (int j = 0; j < kw_;) {
            const int vectors = (kw_ - j) / LANES;
            j += LANES * (vectors >= 4 ? add_denominators<4>(rows, j, state)
                                       : add_denominators<1>(rows, j, state));
        }
        fill_zero(partial_ + rows * LANES, int64_t(padded(rows) - rows) * LANES);
        sum_lanes(partial_, padded(rows), denominator_);
    }

    // What N vectors of columns from j on give them; the running sums stay in registers.
    template <int N>
    int add_denominators(int rows, int j, State state) {
        vf past[N], own[N];
        for (int n = 0; n < N; n++) {
            past[n] = load(state.k_sum + j + n * LANES);
            own[n] = vf{};
        }
        for (int i = 0; i < rows; i++) {
            const float *q = q_ + i * kw_ + j, *k = k_ + i * kw_ + j;
            vf total = j ? load(partial_ + i * LANES) : vf{};
            if (!c_.is_causal) {
                for (int n = 0; n < N; n++) total += load(q + n * LANES) * past[n];
            } else if (r_.decays()) {
                const vf step = splat(decay_.step[i]), into = splat(decay_.into[i]);
                for (int n = 0; n < N; n++) {
                    own[n] = own[n] * step + load(k + n * LANES);
                    total += load(q + n * LANES) * (past[n] * into + own[n]);
                }
            } else {
                for (int n = 0; n < N; n++) {
                    own[n] += load(k + n * LANES);
                    total += load(q + n * LANES) * (past[n] + own[n]);
                }
            }
            store(partial_ + i * LANES, total);
        }
        for (int n = 0; n < N; n++) store(local_ + j + n * LANES, own[n]);
        return N;
    }

    // Divide and write; a row whose denominator is exactly 0 becomes 0.
    void finish(int64_t head, int64_t t, int rows) {
        std::memcpy(c_.denominator + head * c_.time + t, denominator_, size_t(rows) * 4);
        for (int i = 0; i < rows; i++) {
            float* row = out_ + i * vw_;
            const int64_t at = offset(c_.out, c_.heads, head, t + i);
            if (c_.is_normalized) {
                const float d = denominator_[i];
                if (d == 0)
                    fill_zero(row, vw_);
                else if (!c_.is_v_bf16 && vw_ == c_.v) {
                    divide(row, d, vw_, static_cast<float*>(c_.out.data) + at);
                    continue;
                } else {
                    divide(row, d, vw_, row);
                }
            }
            store_row(c_.out.data, c_.is_v_bf16, at, int(c_.v), row);
        }
    }

    // Add the chunk to the state; local_ holds the sum of its keys.
    void update(int rows, State state) {
        if (r_.decays()) scale(state.k_sum, decay_.total(rows), kw_);
        add_scaled(state.k_sum, local_, 1, kw_);
        if (r_.decays())
            for (int j = 0; j < rows; j++) scale(turned_k_ + j * kw_, decay_.out(rows, j), kw_);
        if (r_.decays()) scale(state.kv, decay_.total(rows), c_.k * vw_);
        product<true>(int(c_.k), vw_, rows, {turned_k_, 1, kw_}, v_, vw_, state.kv, vw_,
                      Part::WHOLE, &ahead_);
    }

    Source r_;
    const subquad_linear& c_;
    const int kw_, vw_;
    Scratch scratch_;
    float *q_, *turned_q_, *k_, *turned_k_, *kt_, *v_, *out_, *scores_, *partial_, *local_;
    alignas(64) float denominator_[CHUNK];
    Decay decay_;
    Ahead ahead_;
};

using Forward = ForwardFrom<Reader>;

SUBQUAD_END
