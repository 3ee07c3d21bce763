// The operations of ops.hpp in AVX2, bit for bit those of ops.cpp.
#include "kernels.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define MI_TARGET __attribute__((target("avx2")))

namespace mi::ops {
namespace {

// ---- Lanes ----------------------------------------------------------------------------------------------------------

using Lanes = __m256i;
constexpr int lanes = 8;

MI_TARGET inline Lanes load_bytes(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
MI_TARGET inline void store_bytes(void *p, Lanes v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
MI_TARGET inline Lanes load(const int32_t *p) { return load_bytes(p); }
MI_TARGET inline Lanes load(const int16_t *p) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
MI_TARGET inline Lanes load(const int8_t *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
}
MI_TARGET inline __m128i narrow(Lanes v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
MI_TARGET inline void store(int32_t *p, Lanes v) { store_bytes(p, v); }
MI_TARGET inline void store(int16_t *p, Lanes v) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), narrow(v)); }
MI_TARGET inline void store(int8_t *p, Lanes v) {
    const __m128i half = narrow(v);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(half, half));
}

MI_TARGET inline Lanes set1(int32_t v) { return _mm256_set1_epi32(v); }
MI_TARGET inline Lanes add(Lanes a, Lanes b) { return _mm256_add_epi32(a, b); }
MI_TARGET inline Lanes sub(Lanes a, Lanes b) { return _mm256_sub_epi32(a, b); }
MI_TARGET inline Lanes mul(Lanes a, Lanes b) { return _mm256_mullo_epi32(a, b); }
MI_TARGET inline Lanes min(Lanes a, Lanes b) { return _mm256_min_epi32(a, b); }
MI_TARGET inline Lanes max(Lanes a, Lanes b) { return _mm256_max_epi32(a, b); }

// A multiply-add of pairs whose upper halves are multiplied by zero: quicker than a product of 32 bits.
using Small = Lanes;
MI_TARGET inline Small small(int32_t b) { return set1(b & 0xffff); }
MI_TARGET inline Lanes mul_small(Lanes a, Small b) { return _mm256_madd_epi16(a, b); }

template <int n>
MI_TARGET inline Lanes left(Lanes v) {
    return _mm256_slli_epi32(v, n);
}
template <int n>
MI_TARGET inline Lanes right(Lanes v) {
    return _mm256_srai_epi32(v, n);
}
MI_TARGET inline Lanes right_by(Lanes v, Lanes n) { return _mm256_srav_epi32(v, n); }
MI_TARGET inline Lanes right_logical_by(Lanes v, Lanes n) { return _mm256_srlv_epi32(v, n); }

class Rshift {
  public:
    MI_TARGET explicit Rshift(int s) : half_(set1((1 << s) >> 1)), count_(_mm_cvtsi32_si128(s)) {}
    MI_TARGET Lanes operator()(Lanes v) const { return _mm256_sra_epi32(add(v, half_), count_); }

  private:
    Lanes half_;
    __m128i count_;
};

MI_TARGET inline Lanes high_product(Lanes a, Lanes b) { return _mm256_mulhi_epu16(a, b); }
MI_TARGET inline Lanes half_log2(Lanes v) {
    Lanes j = set1(9);
#pragma GCC unroll 6
    for (int bit = 20; bit <= 30; bit += 2)  // a comparison gives -1
        j = sub(j, _mm256_cmpgt_epi32(v, set1((1 << bit) - 1)));
    return j;
}
MI_TARGET inline Lanes less_if_above(Lanes a, Lanes x, Lanes y) { return add(a, _mm256_cmpgt_epi32(x, y)); }

MI_TARGET inline uint64_t square_sum(const int32_t *x, int n) {
    Lanes even = _mm256_setzero_si256(), odd = even;
    for (int i = 0; i < n; i += lanes) {
        const Lanes a = load(x + i), b = _mm256_srli_epi64(a, 32);
        even = _mm256_add_epi64(even, _mm256_mul_epi32(a, a));
        odd = _mm256_add_epi64(odd, _mm256_mul_epi32(b, b));
    }
    uint64_t parts[4], sum = 0;
    store_bytes(parts, _mm256_add_epi64(even, odd));
    for (uint64_t part : parts) sum += part;
    return sum;
}

#include "simd.hpp"

// ---- §5 BitLinear and §9 logits -------------------------------------------------------------------------------------

constexpr int block = 32;        // bytes in a register
constexpr int most_cols = 8192;  // FORMAT.md's limit

// The sums of the lanes of eight vectors, in order.
MI_TARGET inline Lanes sums(const Lanes (&a)[8]) {
    const Lanes low =
        _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));  // two halves of 0 ... 3
    const Lanes high =
        _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));  // two halves of 4 ... 7
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

// The last n < 32 bytes of a row, and zeros.
MI_TARGET inline Lanes load_rest(const void *p, int n) {
    int8_t bytes[block] = {};
    std::memcpy(bytes, p, static_cast<size_t>(n));
    return load_bytes(bytes);
}

// Eight rows by one input at a time. Eight streams are more than a processor's own prefetcher follows, so with the first
// input what lies `ahead` bytes further on is asked for; such a request never faults.
constexpr int rows_at_once = 8;

struct Int8 {
    const int8_t *weight;
    int cols;

    struct Input {
        const int8_t *x;  // [padded(cols)]
    };
    static constexpr int input_bytes = 0;  // the input is used as it is
    Input prepare(const int8_t *x, int8_t * /*scratch*/) const { return {x}; }

    // sum += w x. maddubs multiplies unsigned by signed bytes and adds pairs in 16 bits: |x| and w with the sign of x, of
    // which neither goes beyond 127, so a pair stays below 2 * 127^2 < 2^15 and nothing saturates.
    MI_TARGET static inline Lanes multiply_add(Lanes sum, Lanes w, Lanes x, Lanes magnitude) {
        const Lanes pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
        return add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }

    template <bool prefetch>
    MI_TARGET inline Lanes dot8(const int (&o)[rows_at_once], Input in) const {
        const size_t row_bytes = static_cast<size_t>(cols), ahead = std::max<size_t>(8 * row_bytes, 6144);
        const int8_t *row[8];
        for (int r = 0; r < 8; ++r) row[r] = weight + static_cast<size_t>(o[r]) * row_bytes;
        uintptr_t next = reinterpret_cast<uintptr_t>(row[0]) + ahead;
        Lanes sum[8];
        for (int r = 0; r < 8; ++r) sum[r] = _mm256_setzero_si256();
        int i = 0;
        for (; i + block <= cols; i += block) {
            const Lanes v = load_bytes(in.x + i), magnitude = _mm256_abs_epi8(v);
            if constexpr (prefetch) {
#pragma GCC unroll 4
                for (int line = 0; line < 8 * block; line += 64)
                    _mm_prefetch(reinterpret_cast<const char *>(next) + line, _MM_HINT_T0);
                next += 8 * block;
            }
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) sum[r] = multiply_add(sum[r], load_bytes(row[r] + i), v, magnitude);
        }
        if (i < cols) {
            const Lanes v = load_bytes(in.x + i), magnitude = _mm256_abs_epi8(v);
            for (int r = 0; r < 8; ++r) sum[r] = multiply_add(sum[r], load_rest(row[r] + i, cols - i), v, magnitude);
        }
        return sums(sum);
    }
};

struct Ternary {
    const uint8_t *weight;
    int cols;

    // The input in four planes, as a byte has its weights: plane k holds elements k, k + 4, k + 8, ...
    struct Input {
        const int8_t *plane[4];  // [padded(ceil(cols/4))]
        Lanes correction;        // the sum of the input: the weights are taken as w + 1
    };
    static constexpr int input_bytes = most_cols + 4 * 64;
    MI_TARGET Input prepare(const int8_t *x, int8_t *scratch) const {
        const int quarter = (cols + 3) >> 2, bytes = padded(quarter);
        std::memset(scratch, 0, static_cast<size_t>(4 * bytes));
        int32_t sum = 0;
        for (int i = 0; i < quarter; ++i)
            for (int k = 0; k < 4; ++k) scratch[k * bytes + i] = x[4 * i + k], sum += x[4 * i + k];
        return {{scratch, scratch + bytes, scratch + 2 * bytes, scratch + 3 * bytes}, set1(sum)};
    }

    // Codes 0, 1, 2 become w + 1 = 1, 2, 0: the low bit is set if neither bit of the code is, the high one if the low is.
    MI_TARGET static inline Lanes unsigned_weights(Lanes v) {
        const Lanes low = _mm256_set1_epi8(0x55);
        const Lanes neither = _mm256_andnot_si256(_mm256_or_si256(v, _mm256_srli_epi16(v, 1)), low);
        return _mm256_or_si256(neither, _mm256_slli_epi16(_mm256_and_si256(v, low), 1));
    }

    // Pairs of products, each at most 2 * 2 * 127 = 508, are added in 16 bits: 64 of them fit, of sixteen registers of codes.
    static constexpr int folds = 16 * block;

    template <bool /*prefetch: a row is short*/>
    MI_TARGET inline Lanes dot8(const int (&o)[rows_at_once], const Input &in) const {
        const int bytes = (cols + 3) >> 2;
        const Lanes two_bits = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
        Lanes sum[8];
        for (int r = 0; r < 8; ++r) {
            const uint8_t *row = weight + static_cast<size_t>(o[r]) * static_cast<size_t>(bytes);
            Lanes wide = _mm256_setzero_si256();
            for (int begin = 0; begin < bytes; begin += folds) {
                Lanes a = _mm256_setzero_si256(), b = a;
                const int end = std::min(begin + folds, bytes);
                for (int i = begin; i < end; i += block) {
                    const Lanes v =
                        unsigned_weights(end - i >= block ? load_bytes(row + i) : load_rest(row + i, end - i));
                    const Lanes w0 = _mm256_and_si256(v, two_bits),
                                w1 = _mm256_and_si256(_mm256_srli_epi16(v, 2), two_bits),
                                w2 = _mm256_and_si256(_mm256_srli_epi16(v, 4), two_bits),
                                w3 = _mm256_and_si256(_mm256_srli_epi16(v, 6), two_bits);
                    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w0, load_bytes(in.plane[0] + i)));
                    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w1, load_bytes(in.plane[1] + i)));
                    a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w2, load_bytes(in.plane[2] + i)));
                    b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w3, load_bytes(in.plane[3] + i)));
                }
                wide = add(wide, add(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)));
            }
            sum[r] = wide;
        }
        return sub(sums(sum), in.correction);
    }
};

// Eight results of one input, of which the first n are wanted.
struct RequantiseTo {  // int16 Q8
    const int16_t *mul;
    Rshift rshift;
    int16_t *out;
    int rows;

    MI_TARGET void put(int t, int o, int n, Lanes sum) const {
        int16_t *to = out + static_cast<size_t>(t) * static_cast<size_t>(rows) + o;
        if (n == 8) return store(to, finish(sum, load(mul + o)));
        int16_t m[8] = {}, result[8];
        std::copy_n(mul + o, n, m);
        store(result, finish(sum, load(m)));
        std::copy_n(result, n, to);
    }
    MI_TARGET Lanes finish(Lanes sum, Lanes m) const { return sat(rshift(_mm256_mullo_epi32(sum, m)), 16); }
};
struct StoreTo {
    int32_t *const *out;

    MI_TARGET void put(int t, int o, int n, Lanes sum) const {
        if (n == 8) return store(out[t] + o, sum);
        int32_t result[8];
        store(result, sum);
        std::copy_n(result, n, out[t] + o);
    }
};

// Weights are read once for some inputs: eight rows stay in the first cache for all of them.
constexpr int inputs_at_once = 8;

template <class Weights, class To>
MI_TARGET void matrix(const Weights &w, int first, int last, const int8_t *x, int tokens, const To &to) {
    alignas(64) int8_t scratch[inputs_at_once * Weights::input_bytes + 1];
    typename Weights::Input in[inputs_at_once];
    const size_t stride = static_cast<size_t>(padded(w.cols));
    for (int t0 = 0; t0 < tokens; t0 += inputs_at_once) {
        const int count = std::min(inputs_at_once, tokens - t0);
        for (int t = 0; t < count; ++t)
            in[t] = w.prepare(x + static_cast<size_t>(t0 + t) * stride, scratch + t * Weights::input_bytes);
        for (int o = first; o < last; o += rows_at_once) {
            int row
                [rows_at_once];  // of the last ones, rows that do not exist are computed as the last row and left out
            for (int r = 0; r < rows_at_once; ++r) row[r] = std::min(o + r, last - 1);
            const int n = std::min(rows_at_once, last - o);
            to.put(t0, o, n, w.template dot8<true>(row, in[0]));
            for (int t = 1; t < count; ++t) to.put(t0 + t, o, n, w.template dot8<false>(row, in[t]));
        }
    }
}

MI_TARGET void linear_avx2(const Linear &p, int first, int last, const int8_t *x, int tokens, int16_t *out) {
    const RequantiseTo to{p.mul, Rshift(p.shift), out, p.rows};
    if (p.ternary)
        matrix(Ternary{static_cast<const uint8_t *>(p.weight), p.cols}, first, last, x, tokens, to);
    else
        matrix(Int8{static_cast<const int8_t *>(p.weight), p.cols}, first, last, x, tokens, to);
}

MI_TARGET void logits_avx2(const int8_t *e, int d, int first, int last, const int8_t *u, int tokens,
                           int32_t *const *out) {
    matrix(Int8{e, d}, first, last, u, tokens, StoreTo{out});
}

}  // namespace

const Kernels *avx2_kernels() {
    static constexpr Kernels kernels = {"avx2",     norm_lanes, linear_avx2, conv_lanes, activate_lanes,
                                        scan_lanes, gate_lanes, add_lanes,   logits_avx2};
    return &kernels;
}

}  // namespace mi::ops

#else

namespace mi::ops {

const Kernels *avx2_kernels() { return nullptr; }

}  // namespace mi::ops

#endif
