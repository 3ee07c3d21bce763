// The operations of a layer on vectors: the scalar reference, which every faster version (kernels.hpp) must equal bit
// for bit.
//
// What this file knows: the primitives (arith.hpp) and shapes. What it does not know: files, sequences, sampling, threads.
// Operations work on a part of what a layer has (some rows of a matrix, some heads) so that a caller can keep that part in
// the nearest cache, or give it to a thread.
#pragma once

#include <cstdint>

#include "model.hpp"

namespace mi::ops {

// What a norm found out about its input; the trace and the prover want it.
struct NormScale {
    int32_t j, mu;
};

// r = m_e * e: int8 [d] -> Q8 [d].
void embed(const int8_t *e /* [d] */, int embed_mul, int d, int32_t *r /* [d] */);

// §4: |x| < 2^17 -> int8 Q5.
NormScale norm(const int32_t *x /* [d] */, const int8_t *g /* [d] */, int d, int mantissa_bits, int8_t *out /* [d] */);

// Inputs of matrices lie in rows of this length: whole registers of every machine. What a row has beyond its elements is
// zero.
constexpr int padded(int n) { return (n + 63) & -64; }

// §5 for the rows first ... last - 1 of the matrix and several tokens, each as alone: int8 -> int16 Q8.
void linear(const Linear &p, int first, int last, const int8_t *x /* [tokens, padded(cols)] */, int tokens,
            int16_t *out /* [tokens, rows] */);

// §6 for n channels: the inputs at four times, oldest first.
void conv(const int8_t *w /* [n, 4] */, const int16_t *bias /* [n] */, const int16_t *const (&p)[4] /* [n] each */,
          int n, int16_t *out /* [n] */);

// §3 with the rounding of §8: out = sat_bits(rshift(act(c), f - q)), so of scale Qq.
void activate(Activation form, const int16_t *c /* [n] */, int n, int q, int bits, int16_t *out /* [n] */);

// §10: turns the pairs (b[i], b[i + n/2]) by the angle of pair i at this position, then Q8 -> Q3 in 6 bits.
void rotate(uint64_t position, int n, int16_t *b /* [n] */);

// §10, the Dyadic-Cayley transform of n = 2^m complex numbers in place, 1 <= m <= 10, and its exact inverse. No model
// uses it.
void cayley_transform(int32_t *re /* [2^m] */, int32_t *im /* [2^m] */, int m);
void cayley_transform_inverse(int32_t *re /* [2^m] */, int32_t *im /* [2^m] */, int m);

// §7 for `heads` heads of a layer from `first` on, to whom all arrays but B and C belong: the state moves on by one token.
struct ScanShape {
    int first, heads, head_dim, d_state;
    Scan form;
};
void scan(const Layer &layer, const ScanShape &shape, const int16_t *x /* [heads, P] Q5 */,
          const int16_t *B /* [N] Q3 */, const int16_t *C /* [N] Q3 */, const int16_t *dt /* [heads] Q8 */,
          int32_t *h /* [heads, N, P] Q14 */, int32_t *m /* [heads] */, int16_t *y /* [heads, P] Q8 */);

// o = sat18(rshift(y g, 6)).
void gate(const int16_t *y /* [n] Q8 */, const int16_t *g /* [n] Q8 */, int n, int32_t *o /* [n] Q10 */);

// r = sat18(r + x).
void add(const int16_t *x /* [n] Q8 */, int n, int32_t *r /* [n] Q8 */);

// §9 for the tokens first ... last - 1 of the vocabulary, after several inputs: logits = sum_c e[v,c] u_c, exact.
void logits(const int8_t *e /* [V, d] */, int d, int first, int last, const int8_t *u /* [tokens, padded(d)] */,
            int tokens, int32_t *const *out /* [tokens][V] */);

}  // namespace mi::ops
