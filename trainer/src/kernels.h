// Training kernels: one layer's work between its matrix products, forward and backward, and the loss. Shapes as in spec/ARITHMETIC.md section 8.
//
// B rows of T steps; E = heads * head_dim, N = d_state, C = E + 2N channels of the convolution, O = E + C + heads columns of the input projection.
// All arrays are dense, row-major and of the sizes that the comments state. "Integer" arrays hold the integers of the spec, the float baseline's hold reals.

#pragma once

#include <cstdint>

extern "C" {

struct mi_mixer {
    int32_t
        kind;  // 0 float; 1 … 4 integer with (activation, gate) = (silu, silu), (squareplus, silu), (silu, squareplus), (squareplus, squareplus)
    int32_t rows, length, heads, head_dim, d_state, mantissa;
    const int32_t *index;     // [B][T] position in its document: 0 where one starts
    const void *projected;    // [B][T][O] int16 Q8 or float: z | x B C | dt
    const void *conv_weight;  // [4][C] int32 Q6 or float, oldest tap first
    const void *conv_bias;    // [C] int32 Q8 or float
    const void *skip;         // [heads] int32 Q6 or float
    const void *norm_scale;   // [E] int32 Q6 or float
    // The share of the state that a step replaces. Integer model: add = m (integers as float) and the heads' shifts k.
    // Float: h = keep h + add v.
    const float *keep;  // [B][T][heads], float only
    const float *add;   // [B][T][heads]
    const int32_t *k;   // [heads], integer only
    void *out;          // [B][T][E] int8 Q5 or float
    float *norms;       // [B][T][2] what the norm's backward pass needs
    void *
        states;  // [B][ceil(T / 32)][E N] int32 or float, the state before every 32nd step; null if there will be no backward pass
};

struct mi_mixer_grads {
    const float *grad_out;  // [B][T][E]
    float *grad_projected;  // [B][T][O]; the dt columns are set to 0, their gradient follows from the next two
    float *grad_keep;       // [B][T][heads]
    float *grad_add;        // [B][T][heads]
};

struct mi_norm {
    int32_t is_float, width, mantissa;
    const float *in;    // [R][D], integer model: multiples of 2^-8
    const void *scale;  // [D] int32 Q6 or float
    void *out;          // [R][D] int8 Q5 or float
    float *norms;       // [R][2] what the backward pass needs
};

// Each works on `threads` threads. Parameter gradients are added to `threads` buffers of `stride` floats, which the caller sums.
void mi_train_norm(const mi_norm *s, int64_t rows, int32_t threads);
void mi_train_norm_backward(const mi_norm *s, const float *grad_out, float *grad_in, float *grad_scale, int64_t stride,
                            int64_t rows, int32_t threads);
void mi_train_requantise(const int32_t *acc, const int32_t *mul, int32_t shift, int16_t *out, float *dt, int64_t rows,
                         int32_t width, int32_t heads, int32_t threads);
void mi_train_residual(const float *r, const int32_t *acc, const int32_t *mul, int32_t shift, float *out, int64_t rows,
                       int32_t width, int32_t threads);
void mi_train_mixer(const mi_mixer *s, int32_t threads);
// grads: [4][C] convolution, [C] its bias, [heads] skip, [E] norm.
void mi_train_mixer_backward(const mi_mixer *s, const mi_mixer_grads *g, float *grads, int64_t stride, int32_t threads);
// logits [rows][width]: int32 (times scale) or float; replaced by weight * (softmax - one-hot) as float if weight is not null.
void mi_train_cross_entropy(void *logits, int32_t is_float, float scale, const int64_t *target, const float *weight,
                            float *nats, int64_t rows, int32_t width, int32_t threads);
}
