// FAVOR+ over all keys, backward: queries, then keys; the features are made anew, in the cache.
//
// With p_im the weights of the features of query i and w_jm those of the keys of feature m (each a
// softmax), g_i the incoming gradient, y_i the output, s the means:
//
//     D_im = p_im (g_i . s_m - g_i . y_i)      grad s_m = sum_i p_im g_i      grad b_m = sum_i D_im
//     E_jm = w_jm (v_j . grad s_m + grad b_m - grad s_m . s_m)
//     grad q_i = sum_m D_im w_m    grad v_j = sum_m w_jm grad s_m
//     grad k_j = sum_m E_jm w_m - scale k_j sum_m E_jm
#pragma once

#include "favor.h"

SUBQUAD_BEGIN

// Of one head: grad s in rows of the padded width of V, and grad b.
struct MeanGradients {
    float *means, *log_sums;
};

class FavorBackward {
  public:
    explicit FavorBackward(const subquad_favor& call)
        : c_(call), vw_(padded(call.v)), m_(int(call.features)),
          projection_(call.directions, call.features, call.k), width_(projection_.width),
          kw_(projection_.kw),
          scratch_(size_t(TOKENS) * (2 * vw_ + kw_ + width_) + size_t(width_) * (vw_ + 4) +
                   size_t(m_) * (kw_ + 2 * vw_)),
          g_(scratch_.take(TOKENS * vw_)), grad_v_(scratch_.take(TOKENS * vw_)),
          grad_x_(scratch_.take(TOKENS * kw_)), d_(scratch_.take(size_t(TOKENS) * width_)),
          turned_(scratch_.take(size_t(width_) * vw_), width_, vw_), level_(scratch_.take(width_)),
          log_sums_(scratch_.take(width_)), directions_(scratch_.take(size_t(m_) * kw_)),
          means_(scratch_.take(size_t(m_) * vw_)),
          own{scratch_.take(size_t(m_) * vw_), scratch_.take(width_)} {
        if (!ok()) return;
        for (int m = 0; m < m_; m++)
            load_row(call.directions, false, int64_t(m) * call.k, int(call.k), kw_,
                     directions_ + m * kw_);
    }

    bool ok() const { return projection_.ok() && scratch_.ok(); }

    // Write grad q; add to ``sums``.
    void queries(int64_t head, int64_t begin, int64_t end, MeanGradients sums) {
        read_means(head);
        turned_.pack(means_, m_, vw_);
        float most = log_sums_[0];
        for (int m = 1; m < m_; m++) most = log_sums_[m] > most ? log_sums_[m] : most;
        std::memcpy(level_, projection_.no_padding(), size_t(width_) * sizeof(float));
        for (int m = 0; m < m_; m++) level_[m] = log_sums_[m] - most;
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = int(smaller(TOKENS, end - t));
            projection_.project(c_.q, c_.is_qk_bf16, c_.heads, head, t, rows, 0, size_,
                                [](int64_t) { return false; });
            for (int i = 0; i < rows; i++) {
                float* p = projection_.u + i * width_;
                divide(p, exp_row(p, level_, width_), width_, p);
                load_row(c_.grad_out.data, false, offset(c_.grad_out, c_.heads, head, t + i),
                         int(c_.v), vw_, g_ + i * vw_);
            }
            turned_.times(g_, vw_, rows, d_);
            for (int i = 0; i < rows; i++) weigh_query(head, t + i, i, sums);
            product<true>(m_, vw_, rows, {projection_.u, 1, width_}, g_, vw_, sums.means, vw_);
            write(c_.grad_q, head, t, rows);
        }
    }

    // Write grad k and grad v.
    void keys(int64_t head, int64_t begin, int64_t end, MeanGradients sums) {
        read_means(head);
        turned_.pack(sums.means, m_, vw_);
        fill_zero(level_, width_);
        for (int m = 0; m < m_; m++) {
            const vf part = dot(sums.means + m * vw_, means_ + m * vw_, vw_);
            level_[m] = sums.log_sums[m];
            for (int j = 0; j < LANES; j++) level_[m] -= part[j];
        }
        for (int64_t t = begin; t < end; t += TOKENS) {
            const int rows = int(smaller(TOKENS, end - t));
            projection_.project(c_.key, c_.is_qk_bf16, c_.heads, head, t, rows, c_.half_scale,
                                size_, [&](int64_t i) { return is_set(c_.hidden, c_.heads, head, i); });
            for (int i = 0; i < rows; i++) load_value(c_, head, t + i, g_ + i * vw_);
            turned_.times(g_, vw_, rows, d_);
            for (int i = 0; i < rows; i++) total_[i] = weigh_key(i);
            deep_product(rows, vw_, m_, projection_.u, width_, sums.means, grad_v_);
            for (int i = 0; i < rows; i++)
                store_row(c_.grad_value.data, c_.is_v_bf16,
                          offset(c_.grad_value, c_.heads, head, t + i), int(c_.v),
                          grad_v_ + i * vw_);
            write(c_.grad_key, head, t, rows, total_);
        }
    }

    void clear(MeanGradients sums) const {
        fill_zero(sums.means, int64_t(m_) * vw_);
        fill_zero(sums.log_sums, width_);
    }

    void merge(MeanGradients from, MeanGradients to) const {
        add_scaled(to.means, from.means, 1, m_ * vw_);
        add_scaled(to.log_sums, from.log_sums, 1, width_);
    }

  private:
    void read_means(int64_t head) {
        for (int m = 0; m < m_; m++)
            load_row(c_.means, false, (head * m_ + m) * c_.v, int(c_.v), vw_, means_ + m * vw_);
        load_row(c_.log_sums, false, head * m_, m_, width_, log_sums_);
    }

    // Row i of d_ from g . s to D, which goes to grad b.
    void weigh_query(int64_t head, int64_t t, int i, MeanGradients sums) {
        float* y = grad_v_;  // room for a row
        load_row(c_.out.data, false, offset(c_.out, c_.heads, head, t), int(c_.v), vw_, y);
        const vf part = dot(g_ + i * vw_, y, vw_);
        float mean = 0;
        for (int j = 0; j < LANES; j++) mean += part[j];
        const float* p = projection_.u + i * width_;
        float* d = d_ + i * width_;
        for (int j = 0; j < width_; j += LANES) {
            const vf x = (load(d + j) - mean) * load(p + j);
            store(d + j, x);
            store(sums.log_sums + j, load(sums.log_sums + j) + x);
        }
    }

    // Row i of u to the weights of its key, of d_ from v . grad s to E; returns the sum of E.
    float weigh_key(int i) {
        float *u = projection_.u + i * width_, *e = d_ + i * width_;
        const float size = size_[i];
        vf total{};
        for (int j = 0; j < width_; j += LANES) {
            const vf weight = exp_nonpositive(load(u + j) - size - load(log_sums_ + j));
            const vf x = (load(e + j) + load(level_ + j)) * weight;
            store(u + j, weight);
            store(e + j, x);
            total += x;
        }
        float sum = 0;
        for (int j = 0; j < int(smaller(LANES, width_)); j++) sum += total[j];
        return sum;
    }

    // d_ times the directions, less scale times the sum of each row times its token.
    void write(const subquad_tensor& to, int64_t head, int64_t t, int rows,
               const float* sums = nullptr) {
        deep_product(rows, kw_, m_, d_, width_, directions_, grad_x_);
        for (int i = 0; i < rows; i++) {
            float* row = grad_x_ + i * kw_;
            if (sums) add_scaled(row, projection_.x + i * kw_, -2 * c_.half_scale * sums[i], kw_);
            store_row(to.data, c_.is_qk_bf16, offset(to, c_.heads, head, t + i), int(c_.k), row);
        }
    }

    const subquad_favor& c_;
    const int vw_, m_;
    Projection projection_;
    const int width_, kw_;
    Scratch scratch_;
    float *g_, *grad_v_, *grad_x_, *d_;
    Panels turned_;
    float *level_, *log_sums_, *directions_, *means_;
    float size_[TOKENS], total_[TOKENS];

  public:
    const MeanGradients own;  // for a head that one thread does alone
};

inline int drive_favor_backward(const subquad_favor& c) {
    const int64_t heads = c.batch * c.heads;
    const Segments keys(c.key_time, stretches(c)), queries(c.time, stretches(c));
    const int64_t n = keys.count, m = queries.count;
    if (n == 1 && m == 1) {
        const bool done = share_out<FavorBackward>(c, heads, [&](FavorBackward& back, int64_t head) {
            back.clear(back.own);
            back.queries(head, 0, c.time, back.own);
            back.keys(head, 0, c.key_time, back.own);
        });
        return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
    }
    const int64_t means = c.features * padded(c.v), size = means + padded(c.features);
    Scratch memory(size_t(heads * m * size));
    if (!memory.ok()) return SUBQUAD_OUT_OF_MEMORY;
    float* start = memory.take(0);
    auto part = [&](int64_t unit) {
        return MeanGradients{start + unit * size, start + unit * size + means};
    };
    bool done = share_out<FavorBackward>(c, heads * m, [&](FavorBackward& back, int64_t unit) {
        const int64_t head = unit / m, s = unit % m;
        back.clear(part(unit));
        back.queries(head, queries.begin(s), queries.end(s), part(unit));
    });
    done = done && share_out<FavorBackward>(c, heads, [&](FavorBackward& back, int64_t head) {
        for (int64_t s = 1; s < m; s++) back.merge(part(head * m + s), part(head * m));
    });
    done = done && share_out<FavorBackward>(c, heads * n, [&](FavorBackward& back, int64_t unit) {
        const int64_t head = unit / n, s = unit % n;
        back.keys(head, keys.begin(s), keys.end(s), part(head * m));
    });
    return done ? SUBQUAD_DONE : SUBQUAD_OUT_OF_MEMORY;
}

SUBQUAD_END
