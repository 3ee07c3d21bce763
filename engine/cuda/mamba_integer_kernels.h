/* Mamba-Integer kernels for CUDA: the C interface of engine/cuda/, one launch_... function for each operation of a layer.
 *
 * The bits are those of spec/ARITHMETIC.md and of the CPU engine. The functions check what they are told about sizes, put a
 * kernel into `stream` (a cudaStream_t; NULL is the default stream) and return at once; pointers lead to memory of the device
 * unless a comment says otherwise, and what they point to is trusted, as it is between the operations of one engine. A
 * status other than MI_OK means that nothing was put into the stream, and launch_error() tells in words what went wrong in
 * the calling thread. What fails while a kernel runs is reported, as always with CUDA, by the next call that waits for the
 * stream.
 *
 * Rows: tokens that go through the model together, of one sequence or of many. Inputs of matrices lie in rows of padded(d)
 * bytes, d rounded up to a multiple of 64, with zeros beyond d, and begin at multiples of 16 bytes. In brackets: shapes.
 */
#ifndef MAMBA_INTEGER_KERNELS_H
#define MAMBA_INTEGER_KERNELS_H

#include "mamba_integer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Message of the last failed launch in this thread; never NULL. */
const char *launch_error(void);

/* Consecutive tokens of one sequence: the rows first ... first + n - 1. What the sequence remembers is kept layer after
 * layer; kernels are told where their layer begins. */
typedef struct mi_span {
    int32_t first, n;
    uint64_t position;   /* of its first token in the sequence */
    const int16_t *past; /* [3, E+2N] a layer: the last three x | B | C before the convolution, oldest first */
    int16_t *next_past;  /* the same after these tokens; other memory than `past` */
    int32_t *h;          /* [H, N, P] Q14 a layer */
} mi_span;

/* ARITHMETIC 9: r = m_e * e[token], Q8. libbitlinear.so. */
mi_status launch_embedding(const int8_t *e /* [V, stride] */, int32_t stride, const uint32_t *tokens /* [rows] */,
                           int32_t rows, int32_t d, int32_t embed_mul, int32_t *r /* [rows, d] */, void *stream);

/* ARITHMETIC 4: int32 -> int8 Q5, of the rows of x that `select` names, or of the first `rows` if it is NULL. mantissa is
 * 0 or 8. libbitshift_norm.so. */
mi_status launch_bitshift_norm(const int32_t *x /* [.., d] */, const int32_t *select /* [rows] */, int32_t rows,
                               const int8_t *g /* [d] Q6 */, int32_t d, int32_t mantissa,
                               int8_t *out /* [rows, padded(d)] */, void *stream);

/* ARITHMETIC 3: out = sat_bits(rshift(act(c), f - q)), c int16 Q8. libsquareplus.so; inside a model these are parts of
 * launch_conv1d_step and launch_dyadic_mamba. */
mi_status launch_squareplus(const int16_t *c /* [n] */, int32_t n, int32_t q, int32_t bits, int16_t *out /* [n] */,
                            void *stream);
mi_status launch_silu(const int16_t *c /* [n] */, int32_t n, int32_t q, int32_t bits, int16_t *out /* [n] */,
                      void *stream);
/* ARITHMETIC 8: o = sat18(rshift(y g, 6)), Q10. */
mi_status launch_gate(const int16_t *y /* [n] Q8 */, const int16_t *g /* [n] Q8 */, int32_t n, int32_t *o /* [n] */,
                      void *stream);

/* A matrix: int8, or packed ternary, four weights a byte as in the model file. Rows begin every `stride` bytes: padded(cols)
 * for int8, a quarter of that for ternary, zeros beyond the elements. */
typedef struct mi_matrix {
    const void *weight;
    const int16_t *mul; /* [rows]; not read by launch_logits */
    int32_t rows, cols, shift, ternary;
} mi_matrix;

/* ARITHMETIC 5: out = sat16(rshift(mul * sum, shift)). One to four tokens by dp4a at the speed at which weights are read;
 * more by the tensor cores' integer product (mma.sync m16n8k32 s8). libbitlinear.so. */
mi_status launch_bitlinear(const mi_matrix *matrix, const int8_t *x /* [tokens, padded(cols)] */, int32_t tokens,
                           int16_t *out /* [tokens, rows] Q8 */, void *stream);
/* The same, added to the residual: r = sat18(r + out). */
mi_status launch_bitlinear_residual(const mi_matrix *matrix, const int8_t *x, int32_t tokens,
                                    int32_t *r /* [tokens, rows] Q8 */, void *stream);
/* ARITHMETIC 9: the exact sums, int32, those of token t to out[t] (the array of pointers, too, is on the device). */
mi_status launch_logits(const mi_matrix *embedding, const int8_t *x, int32_t tokens,
                        int32_t *const *out /* [tokens] -> [rows] */, void *stream);

/* Rows of B and of C are this long, with zeros beyond N: 4, 8, 16, 32 or 64. */
int32_t launch_state_stride(int32_t d_state);

/* ARITHMETIC 6, then 3, 8 and 10: x | B | C of every row, from the row and the three before it, and what the next tokens
 * will want of them. x = sat8(act) Q5; B and C six bits Q3, turned by their position if `rotation`. libconv1d_step.so. */
typedef struct mi_conv {
    const int8_t *weight; /* [E+2N, 4] Q6, oldest tap first */
    const int16_t *bias;  /* [E+2N] Q8 */
    int32_t d_inner, d_state;
    int32_t activation, rotation; /* 0 silu, 1 squareplus; 0 or 1 */
} mi_conv;
mi_status launch_conv1d_step(const mi_conv *conv, const int16_t *xbc /* a row every `stride` */, int32_t stride,
                             const mi_span *spans, const int32_t *span_of_row /* [rows] */, int32_t rows,
                             uint64_t past_offset /* of the layer, in elements */, int8_t *x /* [rows, E] */,
                             int8_t *bc /* [rows, 2, state_stride] */, void *stream);

/* ARITHMETIC 7 and 8: the selective scan of every span, step after step, with the gate: o = sat18(rshift(y g, 6)) for
 * g = sat15(act(z)); y itself, widened, if z is NULL. One thread holds up to four states of a channel.
 * libdyadic_mamba.so. */
typedef struct mi_scan {
    const int8_t *k;     /* [H] */
    const int32_t *A;    /* [H] Q4 relative to 2^-k */
    const int16_t *base; /* [H] Q8 */
    const int8_t *skip;  /* [H] Q6 */
    int32_t heads, head_dim, d_state;
    int32_t form, gate; /* 0 convex, 1 literal; 0 silu, 1 squareplus */
} mi_scan;
mi_status launch_dyadic_mamba(const mi_scan *scan, const mi_span *spans /* [count] */, int32_t count,
                              const int8_t *x /* [rows, E] Q5 */, const int8_t *bc /* [rows, 2, state_stride] Q3 */,
                              const int16_t *z /* [E] a row every `stride`, Q8, or NULL */,
                              const int16_t *dt /* [H] a row every `stride`, Q8 */, int32_t stride,
                              uint64_t h_offset /* of the layer, in elements */, int32_t *o /* [rows, E] */,
                              void *stream);

/* ARITHMETIC 11, steps 2 and 4 to 7: the host has found C (0 is greedy) and the random word. top_k 0 and top_p 2^16 are
 * off. One block; the token is the CPU's. Part of libmamba_integer_cuda.so. */
mi_status launch_sampler(const int32_t *logits /* [V] */, int32_t vocab_size, uint64_t C, int32_t logit_shift,
                         uint32_t top_k, uint32_t top_p, uint32_t random, uint32_t *token, void *stream);

#ifdef __cplusplus
}
#endif
#endif
