// One token for all heads of a layer: the state is read and written once.
#pragma once

#include "chunk.h"
#include "team.h"

SUBQUAD_BEGIN

class Step {
  public:
    explicit Step(const subquad_linear_step& call)
        : c_(call), kw_(padded(call.k)), vw_(padded(call.v)), scratch_(size_t(4 * kw_ + 2 * vw_)),
          q_(scratch_.take(kw_)), k_(scratch_.take(kw_)), turned_q_(scratch_.take(kw_)),
          turned_k_(scratch_.take(kw_)), v_(scratch_.take(vw_)), out_(scratch_.take(vw_)) {}

    bool ok() const { return scratch_.ok(); }

    void take(int64_t head) {
        const float decay = load_token(head);
        const float* k_in = c_.k_sum_in + head * c_.k;
        float* k_out = c_.k_sum_out + head * c_.k;
        float denominator = 0;
        for (int64_t j = 0; j < c_.k; j++) {
            k_out[j] = decay * k_in[j] + k_[j];
            denominator += q_[j] * k_out[j];
        }
        const float* kv_in = c_.kv_in + head * c_.k * c_.v;
        float* kv_out = c_.kv_out + head * c_.k * c_.v;
        int64_t j = 0;
        for (; j + 4 * LANES <= c_.v; j += 4 * LANES) columns<4>(kv_in + j, kv_out + j, j, decay);
        for (; j + LANES <= c_.v; j += LANES) columns<1>(kv_in + j, kv_out + j, j, decay);
        for (; j < c_.v; j++) column(kv_in + j, kv_out + j, j, decay);
        if (c_.is_normalized)
            for (j = 0; j < c_.v; j++) out_[j] = denominator == 0 ? 0 : out_[j] / denominator;
        store_row(c_.out.data, c_.is_v_bf16, offset(c_.out, c_.heads, head, 0), int(c_.v), out_);
    }

  private:
    // Returns exp of the log-decay.
    float load_token(int64_t head) {
        const int k = int(c_.k);
        load_row(c_.q.data, c_.is_qk_bf16, offset(c_.q, c_.heads, head, 0), k, kw_, q_);
        load_row(c_.key.data, c_.is_qk_bf16, offset(c_.key, c_.heads, head, 0), k, kw_, k_);
        load_row(c_.value.data, c_.is_v_bf16, offset(c_.value, c_.heads, head, 0), int(c_.v), vw_,
                 v_);
        if (c_.is_elu) {
            map_row(q_, k, kw_, q_);
            map_row(k_, k, kw_, k_);
        }
        turn(head, q_, turned_q_);
        turn(head, k_, turned_k_);
        if (!c_.log_decay.data) return 1;
        return std::exp(static_cast<const float*>(
            c_.log_decay.data)[offset(c_.log_decay, c_.heads, head, 0)]);
    }

    void turn(int64_t head, const float* from, float* to) {
        if (!c_.cos.data) {
            std::memcpy(to, from, size_t(kw_) * sizeof(float));
            return;
        }
        rotate_row(from, static_cast<const float*>(c_.cos.data) + offset(c_.cos, c_.heads, head, 0),
                   static_cast<const float*>(c_.sin.data) + offset(c_.sin, c_.heads, head, 0), 1,
                   int(c_.k), kw_, to);
    }

    // N vectors of columns of the state, from column j on.
    template <int N>
    SUBQUAD_INLINE void columns(const float* kv_in, float* kv_out, int64_t j, float decay) {
        vf value[N], total[N];
        for (int n = 0; n < N; n++) value[n] = load(v_ + j + n * LANES), total[n] = vf{};
        for (int64_t i = 0; i < c_.k; i++, kv_in += c_.v, kv_out += c_.v) {
            const vf key = splat(turned_k_[i]), query = splat(turned_q_[i]);
            for (int n = 0; n < N; n++) {
                const vf x = load(kv_in + n * LANES) * splat(decay) + key * value[n];
                store(kv_out + n * LANES, x);
                total[n] += query * x;
            }
        }
        for (int n = 0; n < N; n++) store(out_ + j + n * LANES, total[n]);
    }

    void column(const float* kv_in, float* kv_out, int64_t j, float decay) {
        float total = 0;
        for (int64_t i = 0; i < c_.k; i++) {
            const float x = kv_in[i * c_.v] * decay + turned_k_[i] * v_[j];
            kv_out[i * c_.v] = x;
            total += turned_q_[i] * x;
        }
        out_[j] = total;
    }

    const subquad_linear_step& c_;
    const int kw_, vw_;
    Scratch scratch_;
    float *q_, *k_, *turned_q_, *turned_k_, *v_, *out_;
};

SUBQUAD_END
