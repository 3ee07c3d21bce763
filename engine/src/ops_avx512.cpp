// The operations of ops.hpp in AVX-512 with VNNI, VBMI and GFNI, bit for bit those of ops.cpp.
#include "kernels.hpp"

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of the undefined registers of its own header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define MI_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512cd,avx512vnni,avx512vbmi,gfni")))

namespace mi::ops {
namespace {

// ---- Lanes ----------------------------------------------------------------------------------------------------------

using Lanes = __m512i;
constexpr int lanes = 16;

MI_TARGET inline Lanes load_bytes(const void *p) { return _mm512_loadu_si512(p); }
MI_TARGET inline Lanes load(const int32_t *p) { return _mm512_loadu_si512(p); }
MI_TARGET inline Lanes load(const int16_t *p) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
MI_TARGET inline Lanes load(const int8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
MI_TARGET inline void store(int32_t *p, Lanes v) { _mm512_storeu_si512(p, v); }
MI_TARGET inline void store(int16_t *p, Lanes v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(v));
}
MI_TARGET inline void store(int8_t *p, Lanes v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(v));
}

MI_TARGET inline Lanes set1(int32_t v) { return _mm512_set1_epi32(v); }
MI_TARGET inline Lanes add(Lanes a, Lanes b) { return _mm512_add_epi32(a, b); }
MI_TARGET inline Lanes sub(Lanes a, Lanes b) { return _mm512_sub_epi32(a, b); }
MI_TARGET inline Lanes mul(Lanes a, Lanes b) { return _mm512_mullo_epi32(a, b); }
MI_TARGET inline Lanes min(Lanes a, Lanes b) { return _mm512_min_epi32(a, b); }
MI_TARGET inline Lanes max(Lanes a, Lanes b) { return _mm512_max_epi32(a, b); }

// A multiply-add of pairs whose upper halves are multiplied by zero: quicker than a product of 32 bits.
using Small = Lanes;
MI_TARGET inline Small small(int32_t b) { return set1(b & 0xffff); }
MI_TARGET inline Lanes mul_small(Lanes a, Small b) { return _mm512_madd_epi16(a, b); }

template <int n>
MI_TARGET inline Lanes left(Lanes v) {
    return _mm512_slli_epi32(v, n);
}
template <int n>
MI_TARGET inline Lanes right(Lanes v) {
    return _mm512_srai_epi32(v, n);
}
MI_TARGET inline Lanes right_by(Lanes v, Lanes n) { return _mm512_srav_epi32(v, n); }
MI_TARGET inline Lanes right_logical_by(Lanes v, Lanes n) { return _mm512_srlv_epi32(v, n); }

class Rshift {
  public:
    MI_TARGET explicit Rshift(int s) : half_(set1((1 << s) >> 1)), count_(_mm_cvtsi32_si128(s)) {}
    MI_TARGET Lanes operator()(Lanes v) const { return _mm512_sra_epi32(add(v, half_), count_); }

  private:
    Lanes half_;
    __m128i count_;
};

MI_TARGET inline Lanes high_product(Lanes a, Lanes b) { return _mm512_mulhi_epu16(a, b); }
MI_TARGET inline Lanes half_log2(Lanes v) { return _mm512_srli_epi32(sub(set1(31), _mm512_lzcnt_epi32(v)), 1); }
MI_TARGET inline Lanes less_if_above(Lanes a, Lanes x, Lanes y) {
    return _mm512_mask_sub_epi32(a, _mm512_cmpgt_epi32_mask(x, y), a, set1(1));
}

MI_TARGET inline uint64_t square_sum(const int32_t *x, int n) {
    Lanes even = _mm512_setzero_si512(), odd = even;
    for (int i = 0; i < n; i += lanes) {
        const Lanes a = load(x + i), b = _mm512_srli_epi64(a, 32);
        even = _mm512_add_epi64(even, _mm512_mul_epi32(a, a));
        odd = _mm512_add_epi64(odd, _mm512_mul_epi32(b, b));
    }
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(even, odd)));
}

#include "simd.hpp"

// ---- §5 BitLinear and §9 logits -------------------------------------------------------------------------------------

// vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32, exactly. The weights are made unsigned by
// adding `offset` to each (int8: 128, by turning the sign bit; ternary: 1, so that the codes 0, 1, 2 become 1, 2, 0); what
// this adds to a sum is offset * (sum of the inputs), which is taken off at the end. Sums: |.| <= 8192 * 255 * 127 < 2^29.

constexpr int block = 64;        // bytes in a register
constexpr int most_cols = 8192;  // FORMAT.md's limit

MI_TARGET inline __mmask64 first_bytes(int n) { return n >= block ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

MI_TARGET inline int32_t sum_of(const int8_t *x /* [n], n a multiple of 64 */, int n) {
    Lanes sum = _mm512_setzero_si512();
    for (int i = 0; i < n; i += block) sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), load_bytes(x + i));
    return _mm512_reduce_add_epi32(sum);
}

MI_TARGET inline Lanes fold(Lanes u, Lanes v) {
    return add(_mm512_shuffle_i32x4(u, v, 0x88), _mm512_shuffle_i32x4(u, v, 0xdd));
}

// The sums of the lanes of sixteen registers, in order.
MI_TARGET inline Lanes sums(const Lanes (&a)[16]) {
    Lanes four[4];  // of four registers each: in every quarter the four sums over that quarter
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Lanes *q = a + 4 * i;
        const Lanes low = add(_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
        const Lanes high = add(_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
        four[i] = add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    return fold(fold(four[0], four[1]), fold(four[2], four[3]));
}

// Eight bits of a byte as a GF(2) matrix for vgf2p8affineqb: bit i of the result is the parity of x and row i.
constexpr uint64_t bit_row(int i, int x) { return static_cast<uint64_t>(x) << (8 * (7 - i)); }
// What makes codes unsigned weights: the low bit of 1 + w is set if neither bit of the code is, the high one if the low is.
// The constant that is added (^) to the result has a one for every low bit.
constexpr uint64_t plane_matrix(int k) { return bit_row(1, 1 << 2 * k) | bit_row(0, 3 << 2 * k); }  // code k alone
constexpr uint64_t code_matrix() {  // all four, where they are
    uint64_t m = 0;
    for (int k = 0; k < 4; ++k) m |= bit_row(2 * k + 1, 1 << 2 * k) | bit_row(2 * k, 3 << 2 * k);
    return m;
}

struct Int8 {
    static constexpr int offset = 128;
    const int8_t *weight;
    int cols;

    int row_bytes() const { return cols; }
    const int8_t *row(int o) const { return weight + static_cast<size_t>(o) * static_cast<size_t>(cols); }

    // One row by one input: a register whose lanes add up to the sum.
    struct Input {
        const int8_t *x;  // [padded(cols)]
    };
    static constexpr int input_bytes = 0;  // the input is used as it is
    MI_TARGET Input prepare(const int8_t *x, int8_t * /*scratch*/) const { return {x}; }
    MI_TARGET inline Lanes dot(int o, Input in) const {
        const Lanes sign = _mm512_set1_epi8(-128);
        const int8_t *w = row(o);
        Lanes a = _mm512_setzero_si512(), b = a;
        int i = 0;
        for (; i + 2 * block <= cols; i += 2 * block) {
            _mm_prefetch(reinterpret_cast<const char *>(w + i) + ahead, _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(w + i) + ahead + block, _MM_HINT_T0);
            a = _mm512_dpbusd_epi32(a, _mm512_xor_si512(load_bytes(w + i), sign), load_bytes(in.x + i));
            b = _mm512_dpbusd_epi32(b, _mm512_xor_si512(load_bytes(w + i + block), sign), load_bytes(in.x + i + block));
        }
        for (; i < cols; i += block) {
            const Lanes v = _mm512_maskz_loadu_epi8(first_bytes(cols - i), w + i);
            a = _mm512_dpbusd_epi32(a, _mm512_xor_si512(v, sign), load_bytes(in.x + i));
        }
        return add(a, b);
    }
    static constexpr size_t ahead = 4096;  // such a request never faults

    // The weights of a row from byte i on, of which n <= 64 are there, and what the panel makes of them.
    MI_TARGET inline Lanes piece(int o, int i, int n) const {
        return _mm512_xor_si512(_mm512_maskz_loadu_epi8(first_bytes(n), row(o) + i), _mm512_set1_epi8(-128));
    }
    MI_TARGET static inline void unpack(Lanes v, uint8_t *panel) { _mm512_store_si512(panel, v); }
    static constexpr int unpacked = 1;  // steps that one dword of a row becomes
};

struct Ternary {
    static constexpr int offset = 1;
    const uint8_t *weight;
    int cols;

    int row_bytes() const { return (cols + 3) >> 2; }
    const uint8_t *row(int o) const { return weight + static_cast<size_t>(o) * static_cast<size_t>(row_bytes()); }

    // The input in four planes, as a byte has its weights: plane k holds elements k, k + 4, k + 8, ...
    struct Input {
        const int8_t *plane[4];  // [padded(row_bytes)]
    };
    static constexpr int input_bytes = most_cols + 4 * block;
    MI_TARGET Input prepare(const int8_t *x, int8_t *scratch) const {
        const int bytes = padded(row_bytes());
        Input in;
        for (int k = 0; k < 4; ++k) {
            int8_t *plane = scratch + k * bytes;
            in.plane[k] = plane;
            std::memset(plane + bytes - block, 0, block);
            for (int i = 0; i < padded(cols); i += block)
                _mm_storeu_si128(reinterpret_cast<__m128i *>(plane + (i >> 2)),
                                 _mm512_cvtepi32_epi8(_mm512_srl_epi32(load_bytes(x + i), _mm_cvtsi32_si128(8 * k))));
        }
        return in;
    }
    MI_TARGET static inline Lanes plane_of(Lanes v, int k) {
        return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(static_cast<int64_t>(plane_matrix(k))), 1);
    }
    MI_TARGET inline Lanes dot(int o, const Input &in) const {
        const uint8_t *w = row(o);
        const int bytes = row_bytes();
        Lanes a = _mm512_setzero_si512(), b = a;
        for (int i = 0; i < bytes; i += block) {
            _mm_prefetch(reinterpret_cast<const char *>(w + i) + ahead, _MM_HINT_T0);
            const Lanes v =
                bytes - i >= block ? load_bytes(w + i) : _mm512_maskz_loadu_epi8(first_bytes(bytes - i), w + i);
            a = _mm512_dpbusd_epi32(a, plane_of(v, 0), load_bytes(in.plane[0] + i));
            b = _mm512_dpbusd_epi32(b, plane_of(v, 1), load_bytes(in.plane[1] + i));
            a = _mm512_dpbusd_epi32(a, plane_of(v, 2), load_bytes(in.plane[2] + i));
            b = _mm512_dpbusd_epi32(b, plane_of(v, 3), load_bytes(in.plane[3] + i));
        }
        return add(a, b);
    }
    static constexpr size_t ahead = 2048;

    MI_TARGET inline Lanes piece(int o, int i, int n) const {
        const Lanes v = _mm512_maskz_loadu_epi8(first_bytes(n), row(o) + i);
        return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(static_cast<int64_t>(code_matrix())), 0x55);
    }
    // A dword of each row, 16 weights, as four steps: of byte i the two bits at 0, 2, 4 and 6 become a byte each.
    MI_TARGET static inline void unpack(Lanes v, uint8_t *panel) {
        for (int i = 0; i < 4; ++i) {
            const int64_t where = 0x0604020006040200 + 0x0101010101010101 * (8 * i) + 0x2020202000000000;
            const Lanes step = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(where), v);
            _mm512_store_si512(panel + i * block, _mm512_and_si512(step, _mm512_set1_epi8(3)));
        }
    }
    static constexpr int unpacked = 4;
};

// Sixteen results of one input, of which the first n are wanted.
struct RequantiseTo {  // int16 Q8
    const int16_t *mul;
    Rshift rshift;
    int16_t *out;
    int rows;

    MI_TARGET void put(int t, int o, int n, Lanes sum) const {
        const __mmask16 wanted = static_cast<__mmask16>((1u << n) - 1);
        const Lanes m = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(wanted, mul + o));
        const Lanes v = sat(rshift(_mm512_mullo_epi32(sum, m)), 16);
        _mm256_mask_storeu_epi16(out + static_cast<size_t>(t) * static_cast<size_t>(rows) + o, wanted,
                                 _mm512_cvtepi32_epi16(v));
    }
};
struct StoreTo {
    int32_t *const *out;

    MI_TARGET void put(int t, int o, int n, Lanes sum) const {
        _mm512_mask_storeu_epi32(out[t] + o, static_cast<__mmask16>((1u << n) - 1), sum);
    }
};

// Few inputs: row after row, as the weights lie in memory.
constexpr int few = 3;

template <class Weights, class To>
MI_TARGET void by_rows(const Weights &w, int first, int last, const int8_t *x, int t0, int tokens, const To &to) {
    alignas(64) int8_t scratch[few * Weights::input_bytes + 1];
    typename Weights::Input in[few];
    Lanes correction[few];
    const int stride = padded(w.cols);
    for (int t = 0; t < tokens; ++t) {
        const int8_t *row = x + static_cast<size_t>(t0 + t) * static_cast<size_t>(stride);
        in[t] = w.prepare(row, scratch + t * Weights::input_bytes);
        correction[t] = set1(Weights::offset * sum_of(row, stride));
    }
    for (int o = first; o < last; o += 16) {
        const int n = std::min(16, last - o);
        for (int t = 0; t < tokens; ++t) {
            Lanes sum[16];
            for (int r = 0; r < 16; ++r) sum[r] = w.dot(std::min(o + r, last - 1), in[t]);
            to.put(t0 + t, o, n, sub(sums(sum), correction[t]));
        }
    }
}

// The dword i of each of sixteen rows becomes register i.
MI_TARGET inline void transpose(Lanes (&a)[16]) {
    Lanes b[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        const Lanes lo0 = _mm512_unpacklo_epi32(a[i], a[i + 1]), hi0 = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        const Lanes lo1 = _mm512_unpacklo_epi32(a[i + 2], a[i + 3]), hi1 = _mm512_unpackhi_epi32(a[i + 2], a[i + 3]);
        b[i] = _mm512_unpacklo_epi64(lo0, lo1), b[i + 1] = _mm512_unpackhi_epi64(lo0, lo1);
        b[i + 2] = _mm512_unpacklo_epi64(hi0, hi1), b[i + 3] = _mm512_unpackhi_epi64(hi0, hi1);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // b[4g + i]: in quarter q the dwords 4q + i of rows 4g ... 4g + 3
        const Lanes even0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88),
                    odd0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
        const Lanes even1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88),
                    odd1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
        a[i] = _mm512_shuffle_i32x4(even0, even1, 0x88), a[8 + i] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        a[4 + i] = _mm512_shuffle_i32x4(odd0, odd1, 0x88), a[12 + i] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
}

MI_TARGET inline Lanes four(const int8_t *p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return set1(v);
}

// Sums of sixteen rows with 4G inputs. A step of the panel is four weights of each row; the same four of an input go to all
// lanes.
template <int G>
MI_TARGET inline void multiply_panel(const uint8_t *panel, int steps, const int8_t *x, size_t stride,
                                     int32_t (*total)[16]) {
    Lanes sum[4 * G];
#pragma GCC unroll 16
    for (int t = 0; t < 4 * G; ++t) sum[t] = load(total[t]);
    const int8_t *group[G];
    for (int g = 0; g < G; ++g) group[g] = x + 4 * stride * static_cast<size_t>(g);
    for (int i = 0; i < steps; ++i) {
        const Lanes w = _mm512_load_si512(panel + block * i);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const int8_t *p = group[g] + 4 * i;
            sum[4 * g] = _mm512_dpbusd_epi32(sum[4 * g], w, four(p));
            sum[4 * g + 1] = _mm512_dpbusd_epi32(sum[4 * g + 1], w, four(p + stride));
            sum[4 * g + 2] = _mm512_dpbusd_epi32(sum[4 * g + 2], w, four(p + 2 * stride));
            sum[4 * g + 3] = _mm512_dpbusd_epi32(sum[4 * g + 3], w, four(p + 3 * stride));
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < 4 * G; ++t) store(total[t], sum[t]);
}

// Many inputs: sixteen rows at a time are laid out side by side, once for all inputs.
constexpr int many = 64;              // inputs whose sums are kept at a time
constexpr int panel_steps = 32 * 16;  // the panel stays in the first cache

template <class Weights, class To>
MI_TARGET void by_panels(const Weights &w, int first, int last, const int8_t *x, int t0, int tokens /* 4 ... many */,
                         const To &to) {
    alignas(64) uint8_t panel[panel_steps * block];
    alignas(64) int32_t total[many][16];
    const int stride = padded(w.cols), bytes = w.row_bytes();
    x += static_cast<size_t>(t0) * static_cast<size_t>(stride);
    int32_t correction[many];
    for (int t = 0; t < tokens; ++t)
        correction[t] = Weights::offset * sum_of(x + static_cast<size_t>(t) * static_cast<size_t>(stride), stride);
    for (int o = first; o < last; o += 16) {
        std::memset(total, 0, sizeof total);
        for (int i = 0, done = 0; i < bytes; done += panel_steps) {
            int steps = 0;
            for (; i < bytes && steps < panel_steps; i += block) {
                Lanes a[16];
                for (int r = 0; r < 16; ++r) a[r] = w.piece(std::min(o + r, last - 1), i, bytes - i);
                transpose(a);
                for (const Lanes &v : a) {
                    Weights::unpack(v, panel + steps * block);
                    steps += Weights::unpacked;
                }
            }
            steps = std::min(steps, (stride >> 2) - done);  // what a padded input has
            const int8_t *in = x + 4 * done;
            for (int t = 0; t < tokens;) {
                const int8_t *row = in + static_cast<size_t>(t) * static_cast<size_t>(stride);
                const size_t apart = static_cast<size_t>(stride);
                if (tokens - t >= 16)
                    multiply_panel<4>(panel, steps, row, apart, total + t), t += 16;
                else if (tokens - t >= 8)
                    multiply_panel<2>(panel, steps, row, apart, total + t), t += 8;
                else
                    multiply_panel<1>(panel, steps, row, apart, total + t), t += 4;
            }
        }
        const int n = std::min(16, last - o);
        for (int t = 0; t < tokens; ++t) to.put(t0 + t, o, n, sub(load(total[t]), set1(correction[t])));
    }
}

template <class Weights, class To>
MI_TARGET void matrix(const Weights &w, int first, int last, const int8_t *x, int tokens, const To &to) {
    int t = 0;
    while (tokens - t > few) {
        const int n = std::min(many, tokens - t) & -4;
        by_panels(w, first, last, x, t, n, to);
        t += n;
    }
    if (t < tokens) by_rows(w, first, last, x, t, tokens - t, to);
}

MI_TARGET void linear_avx512(const Linear &p, int first, int last, const int8_t *x, int tokens, int16_t *out) {
    const RequantiseTo to{p.mul, Rshift(p.shift), out, p.rows};
    if (p.ternary)
        matrix(Ternary{static_cast<const uint8_t *>(p.weight), p.cols}, first, last, x, tokens, to);
    else
        matrix(Int8{static_cast<const int8_t *>(p.weight), p.cols}, first, last, x, tokens, to);
}

MI_TARGET void logits_avx512(const int8_t *e, int d, int first, int last, const int8_t *u, int tokens,
                             int32_t *const *out) {
    matrix(Int8{e, d}, first, last, u, tokens, StoreTo{out});
}

}  // namespace

const Kernels *avx512_kernels() {
    static constexpr Kernels kernels = {"avx512",   norm_lanes, linear_avx512, conv_lanes,   activate_lanes,
                                        scan_lanes, gate_lanes, add_lanes,     logits_avx512};
    return &kernels;
}

}  // namespace mi::ops

#else

namespace mi::ops {

const Kernels *avx512_kernels() { return nullptr; }

}  // namespace mi::ops

#endif
