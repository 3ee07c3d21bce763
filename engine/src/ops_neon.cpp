// The operations of ops.hpp in AArch64's NEON, bit for bit those of ops.cpp: for every such processor, and with the dot
// products that Armv8.2 has.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#define MI_TARGET

namespace mi::ops {
namespace {

// ---- Lanes ----------------------------------------------------------------------------------------------------------

using Lanes = int32x4_t;
constexpr int lanes = 4;

inline Lanes load_bytes(const void *p) { return vreinterpretq_s32_s8(vld1q_s8(static_cast<const int8_t *>(p))); }
inline Lanes load(const int32_t *p) { return vld1q_s32(p); }
inline Lanes load(const int16_t *p) { return vmovl_s16(vld1_s16(p)); }
inline Lanes load(const int8_t *p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}
inline void store(int32_t *p, Lanes v) { vst1q_s32(p, v); }
inline void store(int16_t *p, Lanes v) { vst1_s16(p, vmovn_s32(v)); }
inline void store(int8_t *p, Lanes v) {
    const int16x4_t half = vmovn_s32(v);
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(half, half))), 0);
    std::memcpy(p, &four, 4);
}

inline Lanes set1(int32_t v) { return vdupq_n_s32(v); }
inline Lanes add(Lanes a, Lanes b) { return vaddq_s32(a, b); }
inline Lanes sub(Lanes a, Lanes b) { return vsubq_s32(a, b); }
inline Lanes mul(Lanes a, Lanes b) { return vmulq_s32(a, b); }
inline Lanes min(Lanes a, Lanes b) { return vminq_s32(a, b); }
inline Lanes max(Lanes a, Lanes b) { return vmaxq_s32(a, b); }

using Small = int32_t;
inline Small small(int32_t b) { return b; }
inline Lanes mul_small(Lanes a, Small b) { return vmulq_n_s32(a, b); }

template <int n>
inline Lanes left(Lanes v) {
    return vshlq_n_s32(v, n);
}
template <int n>
inline Lanes right(Lanes v) {
    return vshrq_n_s32(v, n);
}
inline Lanes right_by(Lanes v, Lanes n) { return vshlq_s32(v, vnegq_s32(n)); }
inline Lanes right_logical_by(Lanes v, Lanes n) {
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vnegq_s32(n)));
}

// This machine's rounding shift is the spec's.
class Rshift {
  public:
    explicit Rshift(int s) : count_(vdupq_n_s32(-s)) {}
    Lanes operator()(Lanes v) const { return vrshlq_s32(v, count_); }

  private:
    Lanes count_;
};

inline Lanes high_product(Lanes a, Lanes b) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vmulq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)), 16));
}
inline Lanes half_log2(Lanes v) { return vshrq_n_s32(vsubq_s32(vdupq_n_s32(31), vclzq_s32(v)), 1); }
inline Lanes less_if_above(Lanes a, Lanes x, Lanes y) { return vaddq_s32(a, vreinterpretq_s32_u32(vcgtq_s32(x, y))); }

inline uint64_t square_sum(const int32_t *x, int n) {
    int64x2_t sum = vdupq_n_s64(0);
    for (int i = 0; i < n; i += lanes) {
        const Lanes a = load(x + i);
        sum = vmlal_s32(sum, vget_low_s32(a), vget_low_s32(a));
        sum = vmlal_high_s32(sum, a, a);
    }
    return static_cast<uint64_t>(vaddvq_s64(sum));
}

#include "simd.hpp"

// ---- §5 BitLinear and §9 logits -------------------------------------------------------------------------------------

constexpr int block = 16;        // bytes in a register
constexpr int most_cols = 8192;  // FORMAT.md's limit

// The last n < 16 bytes of a row, and zeros.
inline uint8x16_t load_rest(const void *p, int n) {
    uint8_t bytes[block] = {};
    std::memcpy(bytes, p, static_cast<size_t>(n));
    return vld1q_u8(bytes);
}

// sum += w x of int8, whose magnitudes are at most 127: a product has 15 bits.
struct Pairs {
    static inline Lanes step(Lanes sum, int8x16_t w, int8x16_t x) {
        sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
        return vpadalq_s16(sum, vmull_high_s8(w, x));
    }
};
// In a build for every processor this is written as the instruction itself: the compiler's name for it wants a target that
// would keep it from being inlined here. Clang accepts neither, and has these kernels in builds for processors with it only.
#if defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__)
#define MI_DOTPROD 1
struct DotProducts {
    static inline Lanes step(Lanes sum, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
        return vdotq_s32(sum, w, x);
#else
        __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
        return sum;
#endif
    }
};
#endif

// Inputs that one row is multiplied with at a time: so many, or one.
constexpr int inputs_at_once = 4;

size_t at(int row, int cols) { return static_cast<size_t>(row) * static_cast<size_t>(cols); }

// Plane k holds elements k, k + 4, k + 8, ... of an input.
void split(const int8_t *x /* [padded(cols)] */, int cols, int apart, int8_t *out /* [4, apart] */) {
    std::memset(out, 0, at(4, apart));
    for (int i = 0; i < cols; i += 64) {
        const int8x16x4_t four = vld4q_s8(x + i);
        for (int k = 0; k < 4; ++k) vst1q_s8(out + k * apart + (i >> 2), four.val[k]);
    }
}

template <class Multiply, int n>
inline void dot_int8(const int8_t *w, const int8_t *const *x, int cols, int32_t *out) {
    Lanes sum[n];
    for (Lanes &s : sum) s = vdupq_n_s32(0);
    for (int i = 0; i < cols; i += block) {
        const int8x16_t v = cols - i >= block ? vld1q_s8(w + i) : vreinterpretq_s8_u8(load_rest(w + i, cols - i));
        for (int t = 0; t < n; ++t) sum[t] = Multiply::step(sum[t], v, vld1q_s8(x[t] + i));
    }
    for (int t = 0; t < n; ++t) out[t] = vaddvq_s32(sum[t]);
}

// x: four planes, `apart` bytes from each other, as a byte has its weights; codes 0, 1, 2 are 0, 1, -1.
template <class Multiply, int n>
inline void dot_ternary(const uint8_t *w, const int8_t *const *x, int apart, int bytes, int32_t *out) {
    const int8x16_t weight_of = {0, 1, -1};
    const uint8x16_t two_bits = vdupq_n_u8(3);
    Lanes sum[n];
    for (Lanes &s : sum) s = vdupq_n_s32(0);
    for (int i = 0; i < bytes; i += block) {
        const uint8x16_t v = bytes - i >= block ? vld1q_u8(w + i) : load_rest(w + i, bytes - i);
        const int8x16_t w0 = vqtbl1q_s8(weight_of, vandq_u8(v, two_bits));
        const int8x16_t w1 = vqtbl1q_s8(weight_of, vandq_u8(vshrq_n_u8(v, 2), two_bits));
        const int8x16_t w2 = vqtbl1q_s8(weight_of, vandq_u8(vshrq_n_u8(v, 4), two_bits));
        const int8x16_t w3 = vqtbl1q_s8(weight_of, vshrq_n_u8(v, 6));
        for (int t = 0; t < n; ++t) {
            const int8_t *p = x[t] + i;
            sum[t] = Multiply::step(sum[t], w0, vld1q_s8(p));
            sum[t] = Multiply::step(sum[t], w1, vld1q_s8(p + apart));
            sum[t] = Multiply::step(sum[t], w2, vld1q_s8(p + 2 * apart));
            sum[t] = Multiply::step(sum[t], w3, vld1q_s8(p + 3 * apart));
        }
    }
    for (int t = 0; t < n; ++t) out[t] = vaddvq_s32(sum[t]);
}

template <class Multiply, int n>
void linear_of(const Linear &p, int first, int last, const int8_t *x, int t0, int16_t *out) {
    int8_t planes[n][most_cols + 4 * 64];
    const int bytes = (p.cols + 3) >> 2, apart = padded(bytes);
    const int8_t *in[n];
    for (int t = 0; t < n; ++t) {
        in[t] = x + at(t0 + t, padded(p.cols));
        if (p.ternary) split(in[t], p.cols, apart, planes[t]), in[t] = planes[t];
    }
    for (int o = first; o < last; ++o) {
        int32_t sum[n];
        if (p.ternary)
            dot_ternary<Multiply, n>(static_cast<const uint8_t *>(p.weight) + at(o, bytes), in, apart, bytes, sum);
        else
            dot_int8<Multiply, n>(static_cast<const int8_t *>(p.weight) + at(o, p.cols), in, p.cols, sum);
        for (int t = 0; t < n; ++t)
            out[at(t0 + t, p.rows) + at(o, 1)] = static_cast<int16_t>(requantise(sum[t], p.mul[o], p.shift));
    }
}

template <class Multiply, int n>
void logits_of(const int8_t *e, int d, int first, int last, const int8_t *u, int t0, int32_t *const *out) {
    const int8_t *in[n];
    for (int t = 0; t < n; ++t) in[t] = u + at(t0 + t, padded(d));
    for (int v = first; v < last; ++v) {
        int32_t sum[n];
        dot_int8<Multiply, n>(e + at(v, d), in, d, sum);
        for (int t = 0; t < n; ++t) out[t0 + t][v] = sum[t];
    }
}

template <class Multiply>
void linear_neon(const Linear &p, int first, int last, const int8_t *x, int tokens, int16_t *out) {
    int t = 0;
    for (; t + inputs_at_once <= tokens; t += inputs_at_once)
        linear_of<Multiply, inputs_at_once>(p, first, last, x, t, out);
    for (; t < tokens; ++t) linear_of<Multiply, 1>(p, first, last, x, t, out);
}

template <class Multiply>
void logits_neon(const int8_t *e, int d, int first, int last, const int8_t *u, int tokens, int32_t *const *out) {
    int t = 0;
    for (; t + inputs_at_once <= tokens; t += inputs_at_once)
        logits_of<Multiply, inputs_at_once>(e, d, first, last, u, t, out);
    for (; t < tokens; ++t) logits_of<Multiply, 1>(e, d, first, last, u, t, out);
}

}  // namespace

const Kernels *neon_kernels() {
    static constexpr Kernels kernels = {"neon",     norm_lanes, linear_neon<Pairs>, conv_lanes,        activate_lanes,
                                        scan_lanes, gate_lanes, add_lanes,          logits_neon<Pairs>};
    return &kernels;
}

const Kernels *neon_dotprod_kernels() {
#if MI_DOTPROD
    static constexpr Kernels kernels = {"neon-dotprod", norm_lanes,     linear_neon<DotProducts>,
                                        conv_lanes,     activate_lanes, scan_lanes,
                                        gate_lanes,     add_lanes,      logits_neon<DotProducts>};
    return &kernels;
#else
    return nullptr;
#endif
}

}  // namespace mi::ops

#else

namespace mi::ops {

const Kernels *neon_kernels() { return nullptr; }
const Kernels *neon_dotprod_kernels() { return nullptr; }

}  // namespace mi::ops

#endif
