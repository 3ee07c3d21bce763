// The operations of a layer on vectors: the scalar reference, which every faster version (kernels.hpp) must equal bit
// for bit.
//
// What this file knows: the primitives (arith.hpp) and shapes. What it does not know: files, sequences, sampling.
// int8 activations travel in 16-bit lanes: the widest multiply-add that every machine has works on those, and nothing
// is lost.
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
NormScale norm(const int32_t *x /* [d] */, const int8_t *g /* [d] */, int d, int mantissa_bits, int16_t *out /* [d] */);

// §5: int8 -> int16 Q8, for several tokens at once, each as alone.
void linear(const Linear &p, const int16_t *x /* [tokens, cols] */, int tokens, int16_t *out /* [tokens, rows] */);

// §6: `past` holds the three inputs before `now`, oldest first, and is moved on by one.
void conv(const Layer &layer, int channels, int16_t *past /* [3, channels] */, const int16_t *now /* [channels] */,
          int16_t *out /* [channels] */);

// §3 with the rounding of §8: out = sat_bits(rshift(act(c), f - q)), so of scale Qq.
void activate(Activation form, const int16_t *c /* [n] */, int n, int q, int bits, int16_t *out /* [n] */);

// §10: turns the pairs (b[i], b[i + n/2]) by the angle of pair i at this position, then Q8 -> Q3 in 6 bits.
void rotate(uint64_t position, int n, int16_t *b /* [n] */);

// §10, the Dyadic-Cayley transform of n = 2^m complex numbers in place, 1 <= m <= 10, and its exact inverse. No model
// uses it.
void cayley_transform(int32_t *re /* [2^m] */, int32_t *im /* [2^m] */, int m);
void cayley_transform_inverse(int32_t *re /* [2^m] */, int32_t *im /* [2^m] */, int m);

// §7 for all heads of a layer: the state moves on by one token.
struct ScanShape {
    int heads, head_dim, d_state;
    Scan form;
};
void scan(const Layer &layer, const ScanShape &shape, const int16_t *x /* [H, P] Q5 */, const int16_t *B /* [N] Q3 */,
          const int16_t *C /* [N] Q3 */, const int16_t *dt /* [H] Q8 */, int32_t *h /* [H, P, N] Q14 */,
          int32_t *m /* [H] */, int16_t *y /* [H, P] Q8 */);

// o = sat18(rshift(y g, 6)).
void gate(const int16_t *y /* [n] Q8 */, const int16_t *g /* [n] Q8 */, int n, int32_t *o /* [n] Q10 */);

// r = sat18(r + x).
void add(const int16_t *x /* [n] Q8 */, int n, int32_t *r /* [n] Q8 */);

// §9: logits = sum_c e[v,c] u_c, exact, for several tokens at once.
void logits(const int8_t *e /* [V, d] */, const int16_t *u /* [tokens, d] */, int vocab_size, int d, int tokens,
            int32_t *out /* [tokens, V] */);

}  // namespace mi::ops
