#include "ops.hpp"

#include <cstring>
#include <utility>

// The loops are written so that a compiler vectorises them for whatever machine it builds for: no branch inside, widths
// stated, and MI_RESTRICT where a store could otherwise be thought to change what is read next.
#define MI_RESTRICT __restrict

namespace mi::ops {
namespace {

// Where column `col` of row `row` lies.
size_t at(int row, int cols, int col = 0) {
    return static_cast<size_t>(row) * static_cast<size_t>(cols) + static_cast<size_t>(col);
}

// int8 x int8 -> int32. With x in 16-bit lanes this becomes a multiply-add of pairs (pmaddwd, smlal).
int32_t dot(const int8_t *MI_RESTRICT w /* [n] */, const int16_t *MI_RESTRICT x /* [n] */, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) sum += w[i] * x[i];
    return sum;
}

struct ConvexStep {
    int32_t operator()(int32_t h, int32_t v, int32_t m, int k) const { return scan_convex(h, v, m, k); }
};
struct LiteralStep {
    int32_t operator()(int32_t h, int32_t v, int32_t m, int k) const { return scan_literal(h, v, m, k); }
};

// One head. `Step` is the recurrence, a type so that its loop has no call and no choice inside.
template <class Step>
void scan_head(Step step, int m, int k, int skip, int head_dim, int d_state, const int16_t *MI_RESTRICT x /* [P] */,
               const int32_t *MI_RESTRICT B /* [N] Q9 */, const int32_t *MI_RESTRICT C /* [N] */,
               int32_t *MI_RESTRICT h /* [P, N] */, int16_t *MI_RESTRICT y /* [P] */) {
    for (int p = 0; p < head_dim; ++p) {
        int32_t *MI_RESTRICT row = h + p * d_state;
        int32_t sum = 0;
        for (int n = 0; n < d_state; ++n) {
            row[n] = step(row[n], x[p] * B[n], m, k);
            sum += C[n] * row[n];
        }
        y[p] = static_cast<int16_t>(scan_output(sum, skip, x[p]));
    }
}

// The butterfly of the transform: 45 degrees, so that (u, v) becomes (u - v, u + v) / sqrt 2.
constexpr Rotation eighth(128, 30);

// The twiddle of number k in a block of 2^r: backwards by k / 2^r of a turn.
Rotation twiddle(int k, int r) { return Rotation(0u - (static_cast<uint32_t>(k) << (10 - r)), 30); }

// Swaps every element with the one whose index has the same m bits reversed.
void reverse_bits(int32_t *z /* [2^m] */, int m) {
    for (int i = 0; i < 1 << m; ++i) {
        int reversed = 0;
        for (int bit = 0; bit < m; ++bit) reversed |= (i >> bit & 1) << (m - 1 - bit);
        if (i < reversed) std::swap(z[i], z[reversed]);
    }
}

}  // namespace

void embed(const int8_t *e, int embed_mul, int d, int32_t *r) {
    for (int i = 0; i < d; ++i) r[i] = embed_mul * e[i];
}

NormScale norm(const int32_t *MI_RESTRICT x, const int8_t *MI_RESTRICT g, int d, int mantissa_bits,
               int16_t *MI_RESTRICT out) {
    uint64_t S = norm_epsilon;
    for (int i = 0; i < d; ++i) {
        // Of unsigned numbers the 32 x 32 -> 64 product is cheap on every machine.
        const uint64_t magnitude = static_cast<uint32_t>(x[i] < 0 ? -x[i] : x[i]);
        S += magnitude * magnitude;
    }
    const int j = norm_shift(S), shift = norm_out_shift(d);
    const int32_t mu = norm_mantissa(S, j, mantissa_bits);
    for (int i = 0; i < d; ++i) out[i] = static_cast<int16_t>(norm_element(x[i], g[i], j, mu, shift));
    return {j, mu};
}

void linear(const Linear &p, const int16_t *x, int tokens, int16_t *out) {
    const int8_t *w = p.weight;
    for (int o = 0; o < p.rows; ++o, w += p.cols)
        for (int t = 0; t < tokens; ++t)
            out[at(t, p.rows, o)] =
                static_cast<int16_t>(requantise(dot(w, x + at(t, p.cols), p.cols), p.mul[o], p.shift));
}

void conv(const Layer &layer, int channels, int16_t *past, const int16_t *now, int16_t *out) {
    const int16_t *p0 = past, *p1 = p0 + channels, *p2 = p1 + channels;  // [channels] each, oldest first
    const int8_t *w = layer.conv_weight;
    for (int c = 0; c < channels; ++c)
        out[c] = static_cast<int16_t>(conv4(p0[c], p1[c], p2[c], now[c], w + 4 * c, layer.conv_bias[c]));
    const size_t row = static_cast<size_t>(channels) * sizeof *past;
    std::memmove(past, past + channels, 2 * row);
    std::memcpy(past + 2 * channels, now, row);
}

void activate(Activation form, const int16_t *c, int n, int q, int bits, int16_t *out) {
    const int32_t shift = act_scale(form) - q, top = (1 << (bits - 1)) - 1;
    for (int i = 0; i < n; ++i) out[i] = static_cast<int16_t>(clamp(rshift(act(form, c[i]), shift), -top, top));
}

void rotate(uint64_t position, int n, int16_t *b) {
    const int half = n >> 1;
    for (int i = 0; i < half; ++i) {
        const Pair p = rotation_at(position, i).turn({b[i], b[i + half]});
        b[i] = static_cast<int16_t>(sat<6>(rshift(p.x, 5)));
        b[i + half] = static_cast<int16_t>(sat<6>(rshift(p.y, 5)));
    }
}

void cayley_transform(int32_t *re, int32_t *im, int m) {
    for (int r = m; r > 0; --r) {  // blocks of 2^r
        const int half = 1 << (r - 1);
        for (int start = 0; start < 1 << m; start += 2 * half)
            for (int k = 0; k < half; ++k) {
                const int a = start + k, b = a + half;
                const Pair x = eighth.turn({re[a], re[b]}), y = eighth.turn({im[a], im[b]});  // (difference, sum)
                const Pair d = twiddle(k, r).turn({x.x, y.x});
                re[a] = x.y, im[a] = y.y;
                re[b] = d.x, im[b] = d.y;
            }
    }
    reverse_bits(re, m);
    reverse_bits(im, m);
}

void cayley_transform_inverse(int32_t *re, int32_t *im, int m) {
    reverse_bits(re, m);
    reverse_bits(im, m);
    for (int r = 1; r <= m; ++r) {
        const int half = 1 << (r - 1);
        for (int start = 0; start < 1 << m; start += 2 * half)
            for (int k = 0; k < half; ++k) {
                const int a = start + k, b = a + half;
                const Pair d = twiddle(k, r).turn_back({re[b], im[b]});
                const Pair x = eighth.turn_back({d.x, re[a]}), y = eighth.turn_back({d.y, im[a]});
                re[a] = x.x, im[a] = y.x;
                re[b] = x.y, im[b] = y.y;
            }
    }
}

void scan(const Layer &layer, const ScanShape &shape, const int16_t *x, const int16_t *B, const int16_t *C,
          const int16_t *dt, int32_t *h, int32_t *m, int16_t *y) {
    const auto [heads, head_dim, d_state, form] = shape;
    int32_t wide_B[64], wide_C[64];  // d_state <= 64; v = (x B) << 6 takes its shift here
    for (int n = 0; n < d_state; ++n) wide_B[n] = B[n] * 64, wide_C[n] = C[n];
    for (int i = 0; i < heads; ++i) {
        const int k = layer.scan_k[i], skip = layer.scan_skip[i];
        m[i] = scan_share(form, dt[i], layer.scan_A[i], layer.scan_base[i], k);
        if (form == Scan::convex)
            scan_head(ConvexStep{}, m[i], k, skip, head_dim, d_state, x, wide_B, wide_C, h, y);
        else
            scan_head(LiteralStep{}, m[i], k, skip, head_dim, d_state, x, wide_B, wide_C, h, y);
        x += head_dim, y += head_dim, h += head_dim * d_state;
    }
}

void gate(const int16_t *MI_RESTRICT y, const int16_t *MI_RESTRICT g, int n, int32_t *MI_RESTRICT o) {
    for (int i = 0; i < n; ++i) o[i] = gated(y[i], g[i]);
}

void add(const int16_t *MI_RESTRICT x, int n, int32_t *MI_RESTRICT r) {
    for (int i = 0; i < n; ++i) r[i] = sat<18>(r[i] + x[i]);
}

void logits(const int8_t *e, const int16_t *u, int vocab_size, int d, int tokens, int32_t *out) {
    for (int v = 0; v < vocab_size; ++v, e += d)
        for (int t = 0; t < tokens; ++t) out[at(t, vocab_size, v)] = dot(e, u + at(t, d), d);
}

}  // namespace mi::ops
