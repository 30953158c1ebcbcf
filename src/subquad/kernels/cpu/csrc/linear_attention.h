// What one call needs to know, in plain C types: the Python side fills this through ctypes.
#pragma once

#include <cstdint>

extern "C" {

// A tensor (B, H, T, last) by strides in elements. The last axis has stride 1; a tensor without
// heads has head stride 0. data is null where the tensor is not given.
struct subquad_tensor {
    void* data;
    int64_t batch, head, time;
};

// Causal and bidirectional linear attention, forward and backward; see ops/linear_attention.py for
// the mathematics. Everything is float32 but where said otherwise.
struct subquad_linear {
    int64_t batch, heads, k, v;
    int64_t time, key_time;  // of queries and of keys; one number where causal
    int32_t is_qk_bf16;     // q, key and their gradients
    int32_t is_v_bf16;      // value, out and their gradients
    int32_t is_elu;         // map q and key by elu + 1; else they are mapped already
    int32_t is_normalized;  // divide by the denominator
    int32_t is_causal;
    int32_t threads;
    // Runs fn(argument) on each of a team of so many threads: GOMP_parallel of the OpenMP runtime
    // that torch brought, so that no second one is started. Null: the caller's thread alone.
    void (*parallel)(void (*fn)(void*), void* argument, unsigned threads, unsigned flags);

    subquad_tensor q, key, value, out;
    subquad_tensor log_decay;  // (B, H, T)
    subquad_tensor key_mask;   // (B, T) bytes, 0 = hidden
    subquad_tensor cos, sin;   // (B, T, K / 2)
    float* denominator;        // (B, H, T), contiguous
    const float *kv_in, *k_sum_in;  // (B, H, K, V) and (B, H, K), contiguous; null: zeros
    float *kv_out, *k_sum_out;

    // Backward alone.
    subquad_tensor grad_out, grad_q, grad_key, grad_value;
    float* grad_log_decay;                      // (B, H, T), contiguous; null: not wanted
    const float *grad_kv_out, *grad_k_sum_out;  // null: zeros
    float *grad_kv_in, *grad_k_sum_in;          // null: not wanted

    // Causal FAVOR+ forward alone (directions not null): q and key are (B, H, T, width), k is the number of
    // features made of them, and the decay is that of the running maximum.
    int64_t width;
    const float *directions, *log_max_in;  // (k, width) and (B, H), contiguous
    float* log_max_out;                    // (B, H)
    float half_scale;
};

// One token: q and key (B, H, K), value and out (B, H, V) as tensors whose time stride is not
// used; cos and sin (B, K / 2). kv and k_sum are contiguous, and "out" may be the same memory as "in".
struct subquad_linear_step {
    int64_t batch, heads, k, v;
    int32_t is_qk_bf16, is_v_bf16, is_elu, is_normalized, threads;
    void (*parallel)(void (*fn)(void*), void* argument, unsigned threads, unsigned flags);
    subquad_tensor q, key, value, out, log_decay, cos, sin;  // log_decay (B, H)
    const float *kv_in, *k_sum_in;
    float *kv_out, *k_sum_out;
};

struct subquad_norm {
    const float *weight, *bias;  // null: 1 and 0
    float eps;
};

// One token of 1 to 8 sequences for a whole block: x and y (B, width). All is contiguous float32;
// a weight has a row for each output, a bias may be null. The mixer is linear attention with elu + 1.
struct subquad_block_step {
    int64_t batch, width, heads, k, v, hidden;
    int32_t is_normalized, is_pre_norm, is_gelu;  // else norms stand behind; else relu
    int32_t threads, state_threads;               // for products; for the state
    void (*parallel)(void (*fn)(void*), void* argument, unsigned threads, unsigned flags);
    const float *qkv_weight, *qkv_bias, *out_weight, *out_bias;
    const float *inner_weight, *inner_bias, *outer_weight, *outer_bias;
    subquad_norm mixer_norm, feed_norm;
    const float *cos, *sin;  // (B, K / 2); null: no rotation
    const float* x;
    float *y, *kv, *k_sum;
};

// FAVOR+ over all keys, forward and backward; see ops/performer_bidirectional.py. q, key (B, H, T, K) and value (B, H, T, V).
struct subquad_favor {
    int64_t batch, heads, k, v, features, time, key_time;
    int32_t is_qk_bf16, is_v_bf16, threads;
    float half_scale;
    void (*parallel)(void (*fn)(void*), void* argument, unsigned threads, unsigned flags);
    subquad_tensor q, key, value, out;  // out is float32
    subquad_tensor hidden;              // (B, H, T) bytes, 1 = hidden
    const float* directions;            // (features, K), contiguous
    float *means, *log_sums;            // s (B, H, features, V) and b (B, H, features), contiguous

    // Backward alone.
    subquad_tensor grad_out, grad_q, grad_key, grad_value;  // grad_out is float32
};

// The features of causal FAVOR+; see ops/causal_features.py.
struct subquad_favor_map {
    int64_t batch, heads, k, features, time;
    int32_t is_bf16, is_key, threads;
    float half_scale;
    void (*parallel)(void (*fn)(void*), void* argument, unsigned threads, unsigned flags);
    subquad_tensor x, hidden;  // hidden as above
    const float* directions;
    const float* start;    // (B, H): the maximum so far, of keys alone
    float *phi, *log_max;  // (B, H, T, features) and, of keys alone, (B, H, T); contiguous
};
}
