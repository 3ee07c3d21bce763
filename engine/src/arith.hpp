// The primitives of spec/ARITHMETIC.md, one function each, in the order of the document.
//
// Everything here is pure, constexpr, and made of integer addition, multiplication, comparison and shifts alone: no
// float, no division, no table indexed by data, no allocation, no standard container. The same file serves the CPU and,
// through MI_HD, CUDA device code.
//
// A name "Q8" in a comment is the spec's: the integer x stands for x / 2^8. Bounds in comments are the ones that the
// spec proves; they are why the chosen width is enough.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define MI_HD __host__ __device__
#define MI_TABLE static __device__ constexpr
#else
#include <bit>
#define MI_HD
#define MI_TABLE constexpr
#endif

#include "constants.hpp"

namespace mi {

// ---- §1 Notation ----------------------------------------------------------------------------------------------------

// floor((x + 2^(s-1)) / 2^s): rounding shift, halves go up. C++20 defines >> of a negative number as the floor.
template <class Int>
MI_HD constexpr Int rshift(Int x, int s) {
    return (x + ((Int{1} << s) >> 1)) >> s;  // for s = 0 the added half is 1 >> 1 = 0
}

// Symmetric saturation to N bits: -2^(N-1) never occurs.
template <int N>
MI_HD constexpr int32_t sat(int32_t x) {
    constexpr int32_t top = (int32_t{1} << (N - 1)) - 1;
    return x > top ? top : x < -top ? -top : x;
}

MI_HD constexpr int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

// The least b with v < 2^b.
MI_HD constexpr int bitlen(uint64_t v) {
#if defined(__CUDA_ARCH__)
    return 64 - __clzll(static_cast<long long>(v));
#elif defined(__CUDACC__)
    int b = 0;
    for (; v; v >>= 1) ++b;
    return b;
#else
    return static_cast<int>(std::bit_width(v));
#endif
}

// ---- §2 Square roots ------------------------------------------------------------------------------------------------

struct Rsqrt {
    uint32_t y;  // 2^15 ... 2^16
    int j;       // 1/sqrt(v) = y * 2^(-16-j), rounded down
};

// Reciprocal square root of 1 <= v < 2^32: the y with y^2 u <= 2^62 < (y+1)^2 u, u being v scaled by 4^(15-j) into
// [2^30, 2^32).
//
// Newton's step y <- y + y (1 - u y^2 / 2^62) / 2 from a straight line that is within 8.7% of the answer: the relative
// error goes 0.087, 0.012, 2e-4, 6e-8, from below after the first step, and all shifts round down. So y is never too
// large and at most one too small, which the last line settles. (test_arith.cpp checks the inequality on both sides of
// every step of y, and on request for all u.)
MI_HD constexpr Rsqrt rsqrt(uint32_t v) {
    constexpr uint64_t one = uint64_t{1} << 62;
    const int j = (bitlen(v) - 1) >> 1;
    const uint64_t u = uint64_t{v} << (2 * (15 - j));  // 2^30 <= u < 2^32
    int64_t y = 69884 - static_cast<int64_t>((u * 39934) >> 32);
    for (int step = 0; step < 3; ++step) {
        const int64_t rest =
            static_cast<int64_t>(one) - static_cast<int64_t>(static_cast<uint64_t>(y * y) * u);  // |rest| < 2^61
        y += (y * (rest >> 31)) >> 32;
    }
    const uint64_t next = static_cast<uint64_t>(y + 1);
    return {static_cast<uint32_t>(y) + (next * next * u <= one), j};
}

// floor(sqrt(v)), given rsqrt(v): v / sqrt(v) = v * y * 2^(-16-j) falls short by at most two.
MI_HD constexpr int32_t isqrt(uint32_t v, Rsqrt r) {
    uint64_t s = (uint64_t{v} * r.y) >> (16 + r.j);
    s += (s + 1) * (s + 1) <= v;
    s += (s + 1) * (s + 1) <= v;
    return static_cast<int32_t>(s);
}

// floor(sqrt(v)), 0 <= v < 2^32.
MI_HD constexpr int32_t isqrt(uint32_t v) { return v == 0 ? 0 : isqrt(v, rsqrt(v)); }

// The radicand c^2 + 2^18 of both functions below: c is int16 Q8 and never -2^15, so it is below 2^31, and its root s
// is above |c|.
MI_HD constexpr uint32_t radicand(int32_t c) { return static_cast<uint32_t>(c * c) + (uint32_t{1} << 18); }

// sigmoid12(c), 0 ... 4095: the q with q * 2s <= (s+c) * 2^12 < (q+1) * 2s. The reciprocal root gives q from below;
// what is left over, divided the same way, brings it to within one.
MI_HD constexpr int32_t sigmoid12(int32_t c) {
    const uint32_t v = radicand(c);
    const Rsqrt r = rsqrt(v);
    const int32_t s = isqrt(v, r);
    const int32_t target = (s + c) << 12;  // < 2^29, as 0 < s + c <= 2^16 + 1
    int32_t q = static_cast<int32_t>((static_cast<int64_t>(s + c) * r.y) >> (5 + r.j));
    q += static_cast<int32_t>((static_cast<int64_t>(target - q * 2 * s) * r.y) >> (17 + r.j));
    q += (q + 1) * 2 * s <= target;
    return q;
}

// squareplus(c), Q8, 0 ... 2^15: (x + sqrt(x^2 + 4)) / 2.
MI_HD constexpr int32_t squareplus(int32_t c) { return (c + isqrt(radicand(c))) >> 1; }

// ---- §3 Activations -------------------------------------------------------------------------------------------------

enum class Activation : uint32_t { silu = 0, squareplus = 1 };

// act(c) is an integer of scale act_scale: |act| < 2^27 at scale 20, or < 2^15 at scale 8.
MI_HD constexpr int act_scale(Activation form) { return form == Activation::silu ? 20 : 8; }
MI_HD constexpr int32_t act(Activation form, int32_t c) {
    return form == Activation::silu ? c * sigmoid12(c) : squareplus(c) - 256;
}

// The same with the rounding of §8: sat_bits(rshift(act(c), f - q)), so of scale Qq.
MI_HD constexpr int32_t activated(Activation form, int32_t c, int q, int bits) {
    const int32_t top = (1 << (bits - 1)) - 1;
    return clamp(rshift(act(form, c), act_scale(form) - q), -top, top);
}

// ---- §4 BitShift norm -----------------------------------------------------------------------------------------------

constexpr uint64_t norm_epsilon = uint64_t{1} << 14;  // where the sum of squares S starts

// The power of two: from S (2^14 <= S < 2^49) the shift j, 0 ... 17.
MI_HD constexpr int norm_shift(uint64_t S) { return (bitlen(S) - 15) >> 1; }

// The refinement, 128 ... 256: the mu with mu^2 S' <= 2^30 < (mu+1)^2 S' for S' = S >> 2j; 128 always in the pure form
// (mantissa_bits = 0).
MI_HD constexpr int32_t norm_mantissa(uint64_t S, int j, int mantissa_bits) {
    if (mantissa_bits == 0) return 128;
    return static_cast<int32_t>(rsqrt(static_cast<uint32_t>(S >> (2 * j)) << 16).y >> 8);
}

// The final shift for vectors of d elements, 13 ... 20: 2^e stands in for sqrt(d).
MI_HD constexpr int norm_out_shift(int d) { return 20 - (bitlen(static_cast<uint64_t>(d)) >> 1); }

// One element: |x| < 2^17, g int8 Q6, result int8 Q5. |n| <= 2^12 + 1 and |n mu g| < 2^27.
MI_HD constexpr int32_t norm_element(int32_t x, int32_t g, int j, int32_t mu, int out_shift) {
    const int32_t n = rshift(x * 16, j);
    return sat<8>(rshift(n * mu * g, out_shift));
}

// ---- §5 BitLinear ---------------------------------------------------------------------------------------------------

// The dot product itself is ops.cpp's; this brings its sum to int16 Q8. The loader has checked that |acc m| + half <
// 2^30.
MI_HD constexpr int32_t requantise(int32_t acc, int32_t m, int s) { return sat<16>(rshift(acc * m, s)); }

// ---- §6 Convolution step --------------------------------------------------------------------------------------------

// p0 (oldest) ... p3 int16 Q8, w int8 Q6, b int16 Q8. |sum| < 2^24.
MI_HD constexpr int32_t conv4(int32_t p0, int32_t p1, int32_t p2, int32_t p3, const int8_t *w /* [4] */, int32_t b) {
    return sat<16>(rshift(p0 * w[0] + p1 * w[1] + p2 * w[2] + p3 * w[3], 6) + b);
}

// ---- §7 Selective scan ----------------------------------------------------------------------------------------------

enum class Scan : uint32_t { convex = 0, literal = 1 };

// The share of the state that is replaced, m / 2^k: dt int16 Q8, A Q4 relative to 2^-k (1 ... 2^19), base int16 Q8. mod
// A <= 2^29.
MI_HD constexpr int32_t scan_share(Scan form, int32_t dt, int32_t A, int32_t base, int k) {
    const int32_t mod = clamp(256 + dt + base, 1 << 5, 1 << 10);
    const int32_t m_max = form == Scan::convex ? 255 : (1 << k) - 1;
    return clamp(rshift(mod * A, 12), 1, m_max);
}

// h <- h + rshift(m (v - h), k). |v|, |h| < 2^18 for ever, as h stays between the values of v; the product is below
// 2^27.
MI_HD constexpr int32_t scan_convex(int32_t h, int32_t v, int32_t m, int k) { return h + rshift(m * (v - h), k); }

// h <- rshift(h (2^k - m), k) + rshift(m v, k). |h| < 2^19; the products need 34 bits.
MI_HD constexpr int32_t scan_literal(int32_t h, int32_t v, int32_t m, int k) {
    const int64_t kept = (int64_t{1} << k) - m;
    return static_cast<int32_t>(rshift(h * kept, k) + rshift(int64_t{m} * v, k));
}

// Output of one channel from sum = sum_n C_n h_n (Q17): skip int8 Q6, x int8 Q5; the result is int16 Q8.
MI_HD constexpr int32_t scan_output(int32_t sum, int32_t skip, int32_t x) {
    return sat<16>(rshift(sum + skip * x * 64, 9));
}

// ---- §8 and §9 One layer, and what comes before the first -----------------------------------------------------------

// y and g int16 Q8; the result is Q10 in 18 bits.
MI_HD constexpr int32_t gated(int32_t y, int32_t g) { return sat<18>(rshift(y * g, 6)); }

// The residual Q8 and what a layer adds to it, int16 Q8.
MI_HD constexpr int32_t added(int32_t r, int32_t x) { return sat<18>(r + x); }

// An element of a token's embedding, int8, with the multiplier of all: Q8.
MI_HD constexpr int32_t embedded(int32_t e, int32_t embed_mul) { return embed_mul * e; }

// ---- §10 Dyadic-Cayley rotation -------------------------------------------------------------------------------------

struct Pair {
    int32_t x, y;
};

// The rotation by `angle` steps of 2 pi / 1024: exact quarter turns, and three shears for the rest, of at most 45
// degrees. The tables are indexed by the angle, which is a function of the public position alone.
class Rotation {
  public:
    // Shears of scale b, 13 ... 30.
    MI_HD constexpr Rotation(uint32_t angle, int b) : b_(b) {
        const int32_t a = static_cast<int32_t>(angle & 1023);
        quarters_ = (a + 127) >> 8;
        const int32_t j = a - quarters_ * 256;  // -127 ... 128
        const int32_t magnitude = j < 0 ? -j : j, sign = j < 0 ? -1 : 1;
        t_ = sign * rshift(kRotT[magnitude], kRotScale - b);
        s_ = sign * rshift(kRotS[magnitude], kRotScale - b);
    }

    MI_HD constexpr Pair turn(Pair p) const {
        if (quarters_ & 1) p = {wrap(-int64_t{p.y}), p.x};
        if (quarters_ & 2) p = {wrap(-int64_t{p.x}), wrap(-int64_t{p.y})};
        p.x = wrap(p.x - shear(t_, p.y));
        p.y = wrap(p.y + shear(s_, p.x));
        p.x = wrap(p.x - shear(t_, p.y));
        return p;
    }

    // The same steps undone in reverse order: exact for every pair, as every sum is taken mod 2^32.
    MI_HD constexpr Pair turn_back(Pair p) const {
        p.x = wrap(p.x + shear(t_, p.y));
        p.y = wrap(p.y - shear(s_, p.x));
        p.x = wrap(p.x + shear(t_, p.y));
        if (quarters_ & 2) p = {wrap(-int64_t{p.x}), wrap(-int64_t{p.y})};
        if (quarters_ & 1) p = {p.y, wrap(-int64_t{p.x})};
        return p;
    }

  private:
    MI_HD static constexpr int32_t wrap(int64_t v) { return static_cast<int32_t>(static_cast<uint32_t>(v)); }
    MI_HD constexpr int64_t shear(int32_t factor, int32_t v) const {
        return rshift(int64_t{factor} * v, b_);
    }  // |factor| < 2^30

    int b_;
    int32_t quarters_ = 0, t_ = 0, s_ = 0;
};

// What the model turns pair i of B and of C by at a position. Positions count mod 1024 here, as angles do.
MI_HD constexpr Rotation rotation_at(uint64_t position, int i) {
    return Rotation(static_cast<uint32_t>(position & 1023) * static_cast<uint32_t>(kRotFrequency[i]), kRotModelScale);
}

// Pair i of B or of C, int16 Q8, at a position: turned, then Q3 in 6 bits.
MI_HD constexpr Pair rotated(Pair p, uint64_t position, int i) {
    p = rotation_at(position, i).turn(p);
    return {sat<6>(rshift(p.x, 5)), sat<6>(rshift(p.y, 5))};
}

// ---- §11 Sampler ----------------------------------------------------------------------------------------------------

// 2^16 * 2^(-F / 2^16) for F < 2^16, within 6 units, falling from 2^16 at F = 0.
MI_HD constexpr uint32_t pow2neg(uint32_t F) {
    const uint64_t f = F;
    const uint64_t inner = f * ((uint64_t{15188} << 16) - 2616 * f) >> 16;
    return (1 << 16) - static_cast<uint32_t>(f * ((uint64_t{45341} << 16) - inner) >> 32);
}

// The weight of a candidate whose logit lies delta below the largest, 0 ... 2^16; C is the inverse temperature.
MI_HD constexpr int32_t sampling_weight(uint32_t delta, uint64_t C, int logit_shift) {
    const uint64_t e = delta * C >> logit_shift;  // Q16
    const uint64_t whole = e >> 16;
    return whole > 16 ? 0 : static_cast<int32_t>(pow2neg(static_cast<uint32_t>(e & 0xffff)) >> whole);
}

// Where, in the running sum of weights, the token lies that a random word chooses: below W, the sum of all.
MI_HD constexpr uint64_t sampling_target(uint32_t random, uint64_t W) {
    return (random >> 2) * W >> 30;  // below 2^63 before the shift
}

}  // namespace mi
