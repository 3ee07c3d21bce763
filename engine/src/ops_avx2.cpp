// The operations of ops.hpp in AVX2, bit for bit those of ops.cpp.
//
// Integer instructions only. Every function here carries the target itself, so that this file needs no flags of its own
// and the inline functions that it shares with other files are compiled for the baseline, whichever copy the linker
// keeps.
#include "kernels.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define MI_AVX2 __attribute__((target("avx2")))

namespace mi::ops {
namespace {

// ---- Lanes ----------------------------------------------------------------------------------------------------------

MI_AVX2 inline __m256i load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
MI_AVX2 inline void store(void *p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }
MI_AVX2 inline __m128i load_half(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
MI_AVX2 inline void store_half(void *p, __m128i v) { _mm_storeu_si128(static_cast<__m128i *>(p), v); }

// Eight int16 or int8 as eight int32.
MI_AVX2 inline __m256i load_int16(const int16_t *p) { return _mm256_cvtepi16_epi32(load_half(p)); }
MI_AVX2 inline __m256i load_int8(const int8_t *p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
}
// And back; they are in range.
MI_AVX2 inline void store_int16(int16_t *p, __m256i v) {
    store_half(p, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

MI_AVX2 inline __m256i clamp(__m256i v, __m256i low, __m256i high) {
    return _mm256_min_epi32(_mm256_max_epi32(v, low), high);
}
MI_AVX2 inline __m256i sat(__m256i v, int bits) {
    const int32_t top = (1 << (bits - 1)) - 1;
    return clamp(v, _mm256_set1_epi32(-top), _mm256_set1_epi32(top));
}

// rshift of arith.hpp, all lanes by the same number.
class Rshift {
  public:
    MI_AVX2 explicit Rshift(int s) : half_(_mm256_set1_epi32((1 << s) >> 1)), count_(_mm_cvtsi32_si128(s)) {}
    MI_AVX2 __m256i operator()(__m256i v) const { return _mm256_sra_epi32(_mm256_add_epi32(v, half_), count_); }

  private:
    __m256i half_;
    __m128i count_;
};

// The sums of the lanes of eight vectors, in order.
MI_AVX2 inline __m256i sums(const __m256i (&a)[8]) {
    const __m256i low =
        _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));  // two halves of 0 ... 3
    const __m256i high =
        _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));  // two halves of 4 ... 7
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

// ---- §5 BitLinear and §9 logits -------------------------------------------------------------------------------------

constexpr int block = 32;         // weights in a register
constexpr int scratch = 1 << 16;  // bytes for the activations of as many tokens as fit; a row is at most 8192

int padded(int n) { return (n + block - 1) & -block; }

// Activations as int8. What is left after the last whole block moves to the end of a block of its own and zeros go before it:
// against it lie the last 32 weights of a row, so that nothing is read beyond the row.
MI_AVX2 void pack(const int16_t *x /* [n] */, int n, int8_t *out /* [padded(n)] */) {
    const int whole = n & -block;
    for (int i = 0; i < whole; i += block)
        store(out + i, _mm256_permute4x64_epi64(_mm256_packs_epi16(load(x + i), load(x + i + 16)), 0xd8));
    if (n == whole) return;
    std::memset(out + whole, 0, block);
    for (int i = whole; i < n; ++i) out[padded(n) - n + i] = static_cast<int8_t>(x[i]);
}

// sum += w x, by 32 of one row. maddubs multiplies unsigned by signed bytes and adds pairs in 16 bits: |x| and w with the
// sign of x, of which neither goes beyond 127, so a pair stays below 2 * 127^2 < 2^15 and nothing saturates.
MI_AVX2 inline __m256i multiply_add(__m256i sum, __m256i w, __m256i x, __m256i magnitude) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Dot products of eight rows with one packed vector. Eight streams are more than the processor's own prefetcher follows, so
// with `prefetch` the 8n bytes from the address `next` on are asked for, in order; such a request never faults.
template <bool prefetch>
MI_AVX2 inline __m256i dot8(const int8_t *const (&row)[8] /* [n] each */, const int8_t *x /* [padded(n)] */, int n,
                            uintptr_t next) {
    __m256i sum[8];
    for (int r = 0; r < 8; ++r) sum[r] = _mm256_setzero_si256();
    const int whole = n & -block;
    for (int i = 0; i < whole; i += block) {
        const __m256i v = load(x + i), magnitude = _mm256_abs_epi8(v);
        if constexpr (prefetch) {
#pragma GCC unroll 4
            for (int line = 0; line < 8 * block; line += 64)
                _mm_prefetch(reinterpret_cast<const char *>(next) + line, _MM_HINT_T0);
            next += 8 * block;
        }
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) sum[r] = multiply_add(sum[r], load(row[r] + i), v, magnitude);
    }
    if (n > whole) {
        const __m256i v = load(x + whole), magnitude = _mm256_abs_epi8(v);
        for (int r = 0; r < 8; ++r) {
            if (n >= block) {
                sum[r] = multiply_add(sum[r], load(row[r] + n - block), v, magnitude);
            } else {
                int8_t w[block] = {};
                std::memcpy(w + block - n, row[r], static_cast<size_t>(n));
                sum[r] = multiply_add(sum[r], load(w), v, magnitude);
            }
        }
    }
    return sums(sum);
}

// Eight results at a time; of the last ones, rows that do not exist are computed as the last row and left out.
struct RequantiseTo {  // int16 Q8
    const int16_t *mul;
    Rshift rshift;
    int16_t *out;

    MI_AVX2 void put(size_t at, int o, int n, __m256i sum) const {
        int16_t m[8] = {}, result[8];
        if (n == 8) {
            store_int16(out + at, finish(sum, load_int16(mul + o)));
        } else {
            std::copy_n(mul + o, n, m);
            store_int16(result, finish(sum, load_int16(m)));
            std::copy_n(result, n, out + at);
        }
    }
    MI_AVX2 __m256i finish(__m256i sum, __m256i m) const { return sat(rshift(_mm256_mullo_epi32(sum, m)), 16); }
};
struct StoreTo {
    int32_t *out;

    MI_AVX2 void put(size_t at, int /*o*/, int n, __m256i sum) const {
        if (n == 8) return store(out + at, sum);
        int32_t result[8];
        store(result, sum);
        std::copy_n(result, n, out + at);
    }
};

// Weights are read once for as many tokens as fit into the scratch: eight rows stay in the first cache for all of them.
template <class To>
MI_AVX2 void matrix(const int8_t *w /* [rows, cols] */, int rows, int cols, const int16_t *x /* [tokens, cols] */,
                    int tokens, const To &to) {
    alignas(32) int8_t packed[scratch];
    const int stride = padded(cols);
    const size_t row_bytes = static_cast<size_t>(cols), ahead = std::max<size_t>(8 * row_bytes, 6144);
    int room = 0;  // tokens that fit
    for (int used = stride; used <= scratch && room < tokens; used += stride) ++room;
    for (int first = 0; first < tokens; first += room) {
        const int n = std::min(room, tokens - first);
        for (int t = 0; t < n; ++t) pack(x + static_cast<size_t>(first + t) * row_bytes, cols, packed + t * stride);
        for (int o = 0; o < rows; o += 8) {
            const int8_t *row[8];
            for (int r = 0; r < 8; ++r) row[r] = w + static_cast<size_t>(std::min(o + r, rows - 1)) * row_bytes;
            const uintptr_t next = reinterpret_cast<uintptr_t>(row[0]) + ahead;
            size_t at = static_cast<size_t>(first) * static_cast<size_t>(rows) + static_cast<size_t>(o);
            for (int t = 0; t < n; ++t, at += static_cast<size_t>(rows)) {
                const int8_t *v = packed + t * stride;
                to.put(at, o, std::min(8, rows - o),
                       t == 0 ? dot8<true>(row, v, cols, next) : dot8<false>(row, v, cols, 0));
            }
        }
    }
}

MI_AVX2 void linear_avx2(const Linear &p, const int16_t *x, int tokens, int16_t *out) {
    matrix(p.weight, p.rows, p.cols, x, tokens, RequantiseTo{p.mul, Rshift(p.shift), out});
}

MI_AVX2 void logits_avx2(const int8_t *e, const int16_t *u, int vocab_size, int d, int tokens, int32_t *out) {
    matrix(e, vocab_size, d, u, tokens, StoreTo{out});
}

// ---- §3 Activations -------------------------------------------------------------------------------------------------

// What sigmoid12 and squareplus share: s = isqrt(v) of v = c^2 + 2^18, j = (bitlen(v) - 1) >> 1, and Y, within 3 * 10^-4
// of 2^(16+j) / sqrt(v).
//
// Y comes from v scaled to 16 bits, U in [2^14, 2^16), by two of the three steps of arith.hpp, Y^2 U ~ 2^46. What a root
// or quotient that Y gives leaves over is multiplied by Y once more; that brings it to the integer sought or one below, and
// a comparison settles which. No product exceeds 32 bits. There are only 65,536 values of c, and test_kernels.cpp tries
// them all.
struct Roots {
    __m256i s, j, Y;
};

// (rest / 2^4) Y / 2^(13+j) ~ rest / 2s.
MI_AVX2 inline __m256i divide_rest(__m256i rest, __m256i j, __m256i Y) {
    return _mm256_srav_epi32(_mm256_mullo_epi32(_mm256_srai_epi32(rest, 4), Y),
                             _mm256_add_epi32(j, _mm256_set1_epi32(13)));
}

MI_AVX2 inline Roots roots(__m256i c) {
    const __m256i v = _mm256_add_epi32(_mm256_mullo_epi32(c, c), _mm256_set1_epi32(1 << 18));  // < 2^31
    __m256i j = _mm256_set1_epi32(9);
#pragma GCC unroll 6
    for (int bit = 20; bit <= 30; bit += 2)  // a comparison gives -1
        j = _mm256_sub_epi32(j, _mm256_cmpgt_epi32(v, _mm256_set1_epi32((1 << bit) - 1)));
    const __m256i U = _mm256_srlv_epi32(v, _mm256_sub_epi32(_mm256_add_epi32(j, j), _mm256_set1_epi32(14)));

    __m256i Y = _mm256_sub_epi32(_mm256_set1_epi32(69884), _mm256_mulhi_epu16(U, _mm256_set1_epi32(39934)));
#pragma GCC unroll 2
    for (int step = 0; step < 2; ++step) {
        const __m256i square = _mm256_mulhi_epu16(Y, Y);  // Y < 2^16
        const __m256i rest = _mm256_sub_epi32(_mm256_set1_epi32(1 << 30), _mm256_mullo_epi32(U, square));
        Y = _mm256_add_epi32(Y, _mm256_srai_epi32(_mm256_mullo_epi32(Y, _mm256_srai_epi32(rest, 15)), 16));
    }
    __m256i s = _mm256_srlv_epi32(_mm256_mullo_epi32(U, Y), _mm256_sub_epi32(_mm256_set1_epi32(30), j));
    s = _mm256_add_epi32(s, divide_rest(_mm256_sub_epi32(v, _mm256_mullo_epi32(s, s)), j, Y));
    const __m256i next = _mm256_add_epi32(s, _mm256_set1_epi32(1));  // s += (s + 1)^2 <= v
    const __m256i too_large = _mm256_cmpgt_epi32(_mm256_mullo_epi32(next, next), v);
    return {_mm256_add_epi32(next, too_large), j, Y};
}

MI_AVX2 inline __m256i sigmoid12(__m256i c) {
    const auto [s, j, Y] = roots(c);
    const __m256i sum = _mm256_add_epi32(s, c), twice = _mm256_add_epi32(s, s), target = _mm256_slli_epi32(sum, 12);
    __m256i q = _mm256_srlv_epi32(_mm256_mullo_epi32(sum, Y), _mm256_add_epi32(j, _mm256_set1_epi32(5)));
    q = _mm256_add_epi32(q, divide_rest(_mm256_sub_epi32(target, _mm256_mullo_epi32(q, twice)), j, Y));
    const __m256i next = _mm256_add_epi32(q, _mm256_set1_epi32(1));  // q += (q + 1) * 2s <= (s + c) * 2^12
    const __m256i too_large = _mm256_cmpgt_epi32(_mm256_mullo_epi32(next, twice), target);
    return _mm256_add_epi32(next, too_large);
}

MI_AVX2 inline __m256i act(Activation form, __m256i c) {
    if (form == Activation::silu) return _mm256_mullo_epi32(c, sigmoid12(c));
    return _mm256_sub_epi32(_mm256_srai_epi32(_mm256_add_epi32(c, roots(c).s), 1), _mm256_set1_epi32(256));
}

MI_AVX2 void activate_avx2(Activation form, const int16_t *c, int n, int q, int bits, int16_t *out) {
    const Rshift rshift(act_scale(form) - q);
    int i = 0;
    for (; i + 8 <= n; i += 8) store_int16(out + i, sat(rshift(act(form, load_int16(c + i))), bits));
    if (i == n) return;
    int16_t rest[8] = {};
    std::copy_n(c + i, n - i, rest);
    store_int16(rest, sat(rshift(act(form, load_int16(rest))), bits));
    std::copy_n(rest, n - i, out + i);
}

// ---- §4 BitShift norm -----------------------------------------------------------------------------------------------

MI_AVX2 NormScale norm_avx2(const int32_t *x, const int8_t *g, int d, int mantissa_bits, int16_t *out) {
    const int whole = d & -8;
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (int i = 0; i < whole; i += 8) {
        const __m256i a = load(x + i), b = _mm256_srli_epi64(a, 32);
        even = _mm256_add_epi64(even, _mm256_mul_epi32(a, a));
        odd = _mm256_add_epi64(odd, _mm256_mul_epi32(b, b));
    }
    uint64_t parts[4], S = norm_epsilon;
    store(parts, _mm256_add_epi64(even, odd));
    for (uint64_t part : parts) S += part;
    for (int i = whole; i < d; ++i) S += static_cast<uint64_t>(int64_t{x[i]} * x[i]);

    const int j = norm_shift(S), shift = norm_out_shift(d);
    const int32_t mu = norm_mantissa(S, j, mantissa_bits);
    const Rshift by_j(j), by_shift(shift);
    const __m256i mantissa = _mm256_set1_epi32(mu);
    for (int i = 0; i < whole; i += 8) {
        const __m256i n = by_j(_mm256_slli_epi32(load(x + i), 4));
        const __m256i scale = _mm256_mullo_epi32(mantissa, load_int8(g + i));
        store_int16(out + i, sat(by_shift(_mm256_mullo_epi32(n, scale)), 8));
    }
    for (int i = whole; i < d; ++i) out[i] = static_cast<int16_t>(norm_element(x[i], g[i], j, mu, shift));
    return {j, mu};
}

// ---- §6 Convolution step --------------------------------------------------------------------------------------------

MI_AVX2 void conv_avx2(const Layer &layer, int channels, int16_t *past, const int16_t *now, int16_t *out) {
    const int16_t *p0 = past, *p1 = p0 + channels, *p2 = p1 + channels;
    const int8_t *w = layer.conv_weight;
    const Rshift rshift(6);
    int c = 0;
    for (; c + 8 <= channels; c += 8) {
        const __m128i a = load_half(p0 + c), b = load_half(p1 + c), d = load_half(p2 + c), e = load_half(now + c);
        const __m128i ab0 = _mm_unpacklo_epi16(a, b), ab4 = _mm_unpackhi_epi16(a, b);  // channels 0 ... 3 and 4 ... 7
        const __m128i de0 = _mm_unpacklo_epi16(d, e), de4 = _mm_unpackhi_epi16(d, e);
        // Four taps a channel, side by side: two channels a half, as the weights lie.
        const __m256i taps0 = _mm256_set_m128i(_mm_unpackhi_epi32(ab0, de0), _mm_unpacklo_epi32(ab0, de0));
        const __m256i taps4 = _mm256_set_m128i(_mm_unpackhi_epi32(ab4, de4), _mm_unpacklo_epi32(ab4, de4));
        const __m256i sum0 = _mm256_madd_epi16(taps0, _mm256_cvtepi8_epi16(load_half(w + 4 * c)));
        const __m256i sum4 = _mm256_madd_epi16(taps4, _mm256_cvtepi8_epi16(load_half(w + 4 * c + 16)));
        const __m256i sum = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum0, sum4), 0xd8);
        store_int16(out + c, sat(_mm256_add_epi32(rshift(sum), load_int16(layer.conv_bias + c)), 16));
    }
    for (; c < channels; ++c)
        out[c] = static_cast<int16_t>(conv4(p0[c], p1[c], p2[c], now[c], w + 4 * c, layer.conv_bias[c]));
    const size_t row = static_cast<size_t>(channels) * sizeof *past;
    std::memmove(past, past + channels, 2 * row);
    std::memcpy(past + 2 * channels, now, row);
}

// ---- §7 Selective scan ----------------------------------------------------------------------------------------------

// One channel: its states move on, and its sum over them comes back, spread over the lanes.
struct ConvexChannel {
    Rshift rshift;
    __m256i m;
    int32_t share;
    int k, d_state;

    MI_AVX2 __m256i operator()(int32_t x, const int32_t *B, const int32_t *C, int32_t *h) const {
        const __m256i wide_x = _mm256_set1_epi32(x);
        __m256i sum = _mm256_setzero_si256();
        int n = 0;
        for (; n + 8 <= d_state; n += 8) {
            const __m256i old = load(h + n), v = _mm256_mullo_epi32(wide_x, load(B + n));
            const __m256i now = _mm256_add_epi32(old, rshift(_mm256_mullo_epi32(m, _mm256_sub_epi32(v, old))));
            store(h + n, now);
            sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(load(C + n), now));
        }
        int32_t rest = 0;
        for (; n < d_state; ++n) {
            h[n] = scan_convex(h[n], x * B[n], share, k);
            rest += C[n] * h[n];
        }
        return _mm256_add_epi32(sum, _mm256_castsi128_si256(_mm_cvtsi32_si128(rest)));
    }
};

MI_AVX2 void scan_avx2(const Layer &layer, const ScanShape &shape, const int16_t *x, const int16_t *B, const int16_t *C,
                       const int16_t *dt, int32_t *h, int32_t *m, int16_t *y) {
    if (shape.form != Scan::convex) return ops::scan(layer, shape, x, B, C, dt, h, m, y);
    const int P = shape.head_dim, N = shape.d_state;
    alignas(32) int32_t wide_B[64], wide_C[64];  // d_state <= 64; v = (x B) << 6 takes its shift here
    for (int n = 0; n < N; ++n) wide_B[n] = B[n] * 64, wide_C[n] = C[n];
    const Rshift to_y(9);
    for (int i = 0; i < shape.heads; ++i) {
        const int k = layer.scan_k[i];
        const int32_t skip = layer.scan_skip[i];
        m[i] = scan_share(shape.form, dt[i], layer.scan_A[i], layer.scan_base[i], k);
        const ConvexChannel channel{Rshift(k), _mm256_set1_epi32(m[i]), m[i], k, N};
        int p = 0;
        for (; p + 8 <= P; p += 8) {
            __m256i sum[8];
            for (int r = 0; r < 8; ++r) sum[r] = channel(x[p + r], wide_B, wide_C, h + (p + r) * N);
            const __m256i through = _mm256_mullo_epi32(load_int16(x + p), _mm256_set1_epi32(skip * 64));
            store_int16(y + p, sat(to_y(_mm256_add_epi32(sums(sum), through)), 16));
        }
        for (; p < P; ++p) {
            int32_t lanes[8], sum = 0;
            store(lanes, channel(x[p], wide_B, wide_C, h + p * N));
            for (int32_t lane : lanes) sum += lane;
            y[p] = static_cast<int16_t>(scan_output(sum, skip, x[p]));
        }
        x += P, y += P, h += P * N;
    }
}

// ---- §8 One layer ---------------------------------------------------------------------------------------------------

MI_AVX2 void gate_avx2(const int16_t *y, const int16_t *g, int n, int32_t *o) {
    const Rshift rshift(6);
    int i = 0;
    for (; i + 8 <= n; i += 8) store(o + i, sat(rshift(_mm256_mullo_epi32(load_int16(y + i), load_int16(g + i))), 18));
    for (; i < n; ++i) o[i] = gated(y[i], g[i]);
}

MI_AVX2 void add_avx2(const int16_t *x, int n, int32_t *r) {
    int i = 0;
    for (; i + 8 <= n; i += 8) store(r + i, sat(_mm256_add_epi32(load(r + i), load_int16(x + i)), 18));
    for (; i < n; ++i) r[i] = mi::sat<18>(r[i] + x[i]);
}

}  // namespace

const Kernels *avx2_kernels() {
    static constexpr Kernels kernels = {"avx2",    norm_avx2, linear_avx2, conv_avx2,  activate_avx2,
                                        scan_avx2, gate_avx2, add_avx2,    logits_avx2};
    return &kernels;
}

}  // namespace mi::ops

#else

namespace mi::ops {

const Kernels *avx2_kernels() { return nullptr; }

}  // namespace mi::ops

#endif
