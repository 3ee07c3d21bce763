#include "ops.hpp"

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

int32_t dot(const int8_t *MI_RESTRICT w /* [n] */, const int8_t *MI_RESTRICT x /* [n] */, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) sum += w[i] * x[i];
    return sum;
}

// Of packed ternary weights. Beyond n both the codes and x are zero.
int32_t dot_ternary(const uint8_t *MI_RESTRICT w /* [ceil(n/4)] */, const int8_t *MI_RESTRICT x /* [padded(n)] */,
                    int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i += 4, ++w)
        for (int k = 0; k < 4; ++k) sum += ((*w >> 2 * k & 1) - (*w >> (2 * k + 1) & 1)) * x[i + k];
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
               const int16_t *MI_RESTRICT B /* [N] */, const int16_t *MI_RESTRICT C /* [N] */,
               int32_t *MI_RESTRICT h /* [N, P] */, int16_t *MI_RESTRICT y /* [P] */) {
    int32_t sum[256] = {};  // head_dim <= 256
    for (int n = 0; n < d_state; ++n, h += head_dim) {
        const int32_t wide_B = B[n] * 64, wide_C = C[n];  // v = (x B) << 6 takes its shift here
        for (int p = 0; p < head_dim; ++p) {
            h[p] = step(h[p], x[p] * wide_B, m, k);
            sum[p] += wide_C * h[p];
        }
    }
    for (int p = 0; p < head_dim; ++p) y[p] = static_cast<int16_t>(scan_output(sum[p], skip, x[p]));
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
    for (int i = 0; i < d; ++i) r[i] = embedded(e[i], embed_mul);
}

NormScale norm(const int32_t *MI_RESTRICT x, const int8_t *MI_RESTRICT g, int d, int mantissa_bits,
               int8_t *MI_RESTRICT out) {
    uint64_t S = norm_epsilon;
    for (int i = 0; i < d; ++i) {
        // Of unsigned numbers the 32 x 32 -> 64 product is cheap on every machine.
        const uint64_t magnitude = static_cast<uint32_t>(x[i] < 0 ? -x[i] : x[i]);
        S += magnitude * magnitude;
    }
    const int j = norm_shift(S), shift = norm_out_shift(d);
    const int32_t mu = norm_mantissa(S, j, mantissa_bits);
    for (int i = 0; i < d; ++i) out[i] = static_cast<int8_t>(norm_element(x[i], g[i], j, mu, shift));
    return {j, mu};
}

void linear(const Linear &p, int first, int last, const int8_t *x, int tokens, int16_t *out) {
    const int stride = padded(p.cols), packed = (p.cols + 3) >> 2;
    for (int o = first; o < last; ++o)
        for (int t = 0; t < tokens; ++t) {
            const int8_t *row = x + at(t, stride);
            const int32_t sum = p.ternary
                                    ? dot_ternary(static_cast<const uint8_t *>(p.weight) + at(o, packed), row, p.cols)
                                    : dot(static_cast<const int8_t *>(p.weight) + at(o, p.cols), row, p.cols);
            out[at(t, p.rows, o)] = static_cast<int16_t>(requantise(sum, p.mul[o], p.shift));
        }
}

void conv(const int8_t *MI_RESTRICT w, const int16_t *MI_RESTRICT bias, const int16_t *const (&p)[4], int n,
          int16_t *MI_RESTRICT out) {
    const int16_t *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3];
    for (int c = 0; c < n; ++c) out[c] = static_cast<int16_t>(conv4(p0[c], p1[c], p2[c], p3[c], w + 4 * c, bias[c]));
}

void activate(Activation form, const int16_t *c, int n, int q, int bits, int16_t *out) {
    for (int i = 0; i < n; ++i) out[i] = static_cast<int16_t>(activated(form, c[i], q, bits));
}

void rotate(uint64_t position, int n, int16_t *b) {
    const int half = n >> 1;
    for (int i = 0; i < half; ++i) {
        const Pair p = rotated({b[i], b[i + half]}, position, i);
        b[i] = static_cast<int16_t>(p.x);
        b[i + half] = static_cast<int16_t>(p.y);
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
    const auto [first, heads, head_dim, d_state, form] = shape;
    for (int i = 0; i < heads; ++i) {
        const int head = first + i, k = layer.scan_k[head], skip = layer.scan_skip[head];
        m[i] = scan_share(form, dt[i], layer.scan_A[head], layer.scan_base[head], k);
        if (form == Scan::convex)
            scan_head(ConvexStep{}, m[i], k, skip, head_dim, d_state, x, B, C, h, y);
        else
            scan_head(LiteralStep{}, m[i], k, skip, head_dim, d_state, x, B, C, h, y);
        x += head_dim, y += head_dim, h += head_dim * d_state;
    }
}

void gate(const int16_t *MI_RESTRICT y, const int16_t *MI_RESTRICT g, int n, int32_t *MI_RESTRICT o) {
    for (int i = 0; i < n; ++i) o[i] = gated(y[i], g[i]);
}

void add(const int16_t *MI_RESTRICT x, int n, int32_t *MI_RESTRICT r) {
    for (int i = 0; i < n; ++i) r[i] = added(r[i], x[i]);
}

void logits(const int8_t *e, int d, int first, int last, const int8_t *u, int tokens, int32_t *const *out) {
    for (int v = first; v < last; ++v)
        for (int t = 0; t < tokens; ++t) out[t][v] = dot(e + at(v, d), u + at(t, padded(d)), d);
}

}  // namespace mi::ops
