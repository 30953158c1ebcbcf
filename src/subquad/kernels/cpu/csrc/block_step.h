// One token for a whole residual block at a few sequences at once: projections, linear attention,
// feed-forward network and norms, without a call from outside between them.
//
// At so few rows a product reads each weight once and is over; what a framework does between two of
// them takes as long. Weights are rows of outputs, as torch's Linear keeps them.
#pragma once

#include "step.h"

SUBQUAD_BEGIN

// out (B, rows) = x (B, columns) weight^T + bias, then what ``finish`` makes of each number.
struct Affine {
    const float *weight, *bias;  // bias may be null
    int64_t rows, columns;
};

// Works on blocks of LANES outputs, of all sequences.
template <int BATCH>
class AffineRows {
  public:
    explicit AffineRows(const subquad_block_step&) {}
    bool ok() const { return true; }

    template <class Finish>
    void take(const Affine& map, const float* x, float* out, int64_t block, const Finish& finish) {
        const int64_t first = block * LANES;
        const int count = int(smaller(LANES, map.rows - first));
        for (int i = 0; i < LANES; i += GROUP) sums(map, x, first, i, count);
        for (int b = 0; b < BATCH; b++) {
            alignas(64) float total[LANES];
            sum_lanes(partial_[b], LANES, total);
            for (int i = 0; i < count; i++) {
                const int64_t row = first + i, at = b * map.rows + row;
                const float y = total[i] + tail_[b][i] + (map.bias ? map.bias[row] : 0);
                out[at] = finish(y, at);
            }
        }
    }

  private:
    // Rows whose products are in flight at once: enough to hide their latency, few enough for the
    // registers.
    static constexpr int GROUP = BATCH > 4 ? 2 : 4;

    // Sums over whole vectors into partial_, what is left over into tail_. Rows behind the last are
    // the last once more.
    void sums(const Affine& map, const float* x, int64_t first, int i, int count) {
        const int64_t n = map.columns, whole = n / LANES * LANES;
        const float* row[GROUP];
        for (int g = 0; g < GROUP; g++)
            row[g] = map.weight + (first + (i + g < count ? i + g : count - 1)) * n;
        vf total[GROUP][BATCH] = {};
        for (int64_t j = 0; j < whole; j += LANES)
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; g++) {
                const vf w = load(row[g] + j);
#pragma GCC unroll 8
                for (int b = 0; b < BATCH; b++) total[g][b] += w * load(x + b * n + j);
            }
        for (int g = 0; g < GROUP; g++)
            for (int b = 0; b < BATCH; b++) {
                store(partial_[b] + (i + g) * LANES, total[g][b]);
                float rest = 0;
                for (int64_t j = whole; j < n; j++) rest += row[g][j] * x[b * n + j];
                tail_[b][i + g] = rest;
            }
    }

    alignas(64) float partial_[BATCH][LANES * LANES];
    float tail_[BATCH][LANES];
};

// The sum over a row of f of each number.
template <class F>
SUBQUAD_INLINE float sum_row(const float* x, int64_t count, const F& f) {
    vf total{};
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) total += f(load(x + j));
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += total[lane];
    for (; j < count; j++) sum += f(splat(x[j]))[0];
    return sum;
}

inline void layer_norm(const float* x, const subquad_norm& norm, int64_t width, float* y) {
    const float mean = sum_row(x, width, [](vf a) { return a; }) / float(width);
    const vf m = splat(mean);
    const float variance =
        sum_row(x, width, [m](vf a) { return (a - m) * (a - m); }) / float(width);
    const float factor = 1 / std::sqrt(variance + norm.eps);
    for (int64_t j = 0; j < width; j++)
        y[j] = (x[j] - mean) * factor * (norm.weight ? norm.weight[j] : 1) +
               (norm.bias ? norm.bias[j] : 0);
}

template <int BATCH>
class BlockStep {
  public:
    explicit BlockStep(const subquad_block_step& call)
        : c_(call), features_(c_.heads * c_.k), values_(c_.heads * c_.v),
          projected_(2 * features_ + values_),
          scratch_(size_t(BATCH) * (projected_ + values_ + c_.hidden + 3 * c_.width)),
          qkv_(scratch_.take(BATCH * projected_)), mixed_(scratch_.take(BATCH * values_)),
          hidden_(scratch_.take(BATCH * c_.hidden)), normed_(scratch_.take(BATCH * c_.width)),
          sum_(scratch_.take(BATCH * c_.width)), middle_(scratch_.take(BATCH * c_.width)) {}

    int run() {
        if (!scratch_.ok()) return SUBQUAD_OUT_OF_MEMORY;
        const int64_t n = c_.width;
        const auto plain = [](float y, int64_t) { return y; };
        map({c_.qkv_weight, c_.qkv_bias, projected_, n}, enter(c_.mixer_norm, c_.x), qkv_, plain);
        if (!mix()) return SUBQUAD_OUT_OF_MEMORY;
        const float* x = c_.x;
        map({c_.out_weight, c_.out_bias, n, values_}, mixed_, sum_,
            [x](float y, int64_t at) { return y + x[at]; });
        leave(c_.mixer_norm, sum_, middle_);
        const Affine inner{c_.inner_weight, c_.inner_bias, c_.hidden, n};
        const float* entered = enter(c_.feed_norm, middle_);
        if (c_.is_gelu)
            map(inner, entered, hidden_, [](float y, int64_t) {
                return 0.5f * y * (1 + std::erf(y * 0.70710678118654752f));
            });
        else  // the comparison is turned so that NaN stays NaN
            map(inner, entered, hidden_, [](float y, int64_t) { return y < 0 ? 0 : y; });
        const float* middle = middle_;
        map({c_.outer_weight, c_.outer_bias, n, c_.hidden}, hidden_, sum_,
            [middle](float y, int64_t at) { return y + middle[at]; });
        leave(c_.feed_norm, sum_, c_.y);
        return SUBQUAD_DONE;
    }

  private:
    template <class Finish>
    void map(const Affine& map, const float* x, float* out, const Finish& finish) {
        share_out<AffineRows<BATCH>>(c_, (map.rows + LANES - 1) / LANES,
                                     [&](AffineRows<BATCH>& rows, int64_t block) {
                                         rows.take(map, x, out, block, finish);
                                     });
    }

    bool mix() {
        subquad_linear_step step{};
        step.batch = BATCH, step.heads = c_.heads, step.k = c_.k, step.v = c_.v;
        step.is_elu = 1, step.is_normalized = c_.is_normalized;
        step.threads = c_.state_threads, step.parallel = c_.parallel;
        step.q = {qkv_, projected_, c_.k, 0};
        step.key = {qkv_ + features_, projected_, c_.k, 0};
        step.value = {qkv_ + 2 * features_, projected_, c_.v, 0};
        step.out = {mixed_, values_, c_.v, 0};
        step.cos = {const_cast<float*>(c_.cos), c_.k / 2, 0, 0};
        step.sin = {const_cast<float*>(c_.sin), c_.k / 2, 0, 0};
        step.kv_in = step.kv_out = c_.kv;
        step.k_sum_in = step.k_sum_out = c_.k_sum;
        return share_out<Step>(step, BATCH * c_.heads,
                               [](Step& one, int64_t head) { one.take(head); });
    }

    // What a part of the block is given: normed before, or as it is.
    const float* enter(const subquad_norm& norm, const float* x) {
        if (!c_.is_pre_norm) return x;
        for (int b = 0; b < BATCH; b++)
            layer_norm(x + b * c_.width, norm, c_.width, normed_ + b * c_.width);
        return normed_;
    }

    // What it gives: as it is, or normed behind.
    void leave(const subquad_norm& norm, const float* x, float* y) {
        if (c_.is_pre_norm) {
            std::memcpy(y, x, size_t(BATCH * c_.width) * sizeof(float));
            return;
        }
        for (int b = 0; b < BATCH; b++)
            layer_norm(x + b * c_.width, norm, c_.width, y + b * c_.width);
    }

    const subquad_block_step& c_;
    const int64_t features_, values_, projected_;
    Scratch scratch_;
    float *qkv_, *mixed_, *hidden_, *normed_, *sum_, *middle_;
};

inline int run_block_step(const subquad_block_step& call) {
    switch (call.batch) {
        case 1: return BlockStep<1>(call).run();
        case 2: return BlockStep<2>(call).run();
        case 3: return BlockStep<3>(call).run();
        case 4: return BlockStep<4>(call).run();
        case 5: return BlockStep<5>(call).run();
        case 6: return BlockStep<6>(call).run();
        case 7: return BlockStep<7>(call).run();
        case 8: return BlockStep<8>(call).run();
        default: return SUBQUAD_FAILED;
    }
}

SUBQUAD_END
