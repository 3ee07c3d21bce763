// The training kernels, compiled once for each instruction set (MI_NAMESPACE); see kernels.h for what they compute.
//
// The integer model's forward pass is exact: it computes the integers of spec/ARITHMETIC.md, state rounding included. Gradients pass straight through
// every rounding and stop where a value is clamped, as in mamba_integer/nn/quant.py. Loops are written so that a compiler turns them into vector code.

// Nothing here may be an inline function with external linkage that is not inlined (std::vector's members, say): compiled for a large instruction
// set, it could be the copy that the linker keeps for all.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace MI_NAMESPACE {
namespace {

constexpr int kChunk = 32;  // steps between stored states; the backward pass computes the states between again

#define MI_VECTOR _Pragma("omp simd")

// An array that starts as zeros.
template <class T>
struct Buffer {
    T *data_;
    size_t size_;
    explicit Buffer(size_t size) : data_(static_cast<T *>(std::calloc(size, sizeof(T)))), size_(size) {
        if (data_ == nullptr) std::abort();  // some MB; PyTorch dies the same way
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { std::free(data_); }
    T *data() { return data_; }
    size_t size() const { return size_; }
    T &operator[](size_t i) { return data_[i]; }
    void clear() { std::memset(data_, 0, size_ * sizeof(T)); }
};

inline int32_t rshift(int32_t x, int s) { return s == 0 ? x : (x + (1 << (s - 1))) >> s; }
inline int32_t clamp(int32_t x, int32_t limit) { return std::min(std::max(x, -limit), limit); }

inline int bitlen(uint64_t v) { return v == 0 ? 0 : 64 - __builtin_clzll(v); }

// Section 2 of the spec, by a floating-point guess and an integer correction: the defining inequality decides.
inline int32_t isqrt(int32_t v) {
    int32_t s = static_cast<int32_t>(std::sqrt(static_cast<float>(v)));
    s -= s * s > v ? 1 : 0;
    s += (s + 1) * (s + 1) <= v ? 1 : 0;
    return s;
}

inline int32_t sigmoid12(int32_t c) {
    const int32_t s = isqrt(c * c + (1 << 18));
    const int32_t num = (s + c) << 12, den = 2 * s;
    int32_t q = static_cast<int32_t>(static_cast<float>(num) / static_cast<float>(den));
    q -= q * den > num ? 1 : 0;
    q += (q + 1) * den <= num ? 1 : 0;
    return q;
}

// sat(rshift(act(c), f - to)) of section 3, on the scale 2^-to.
template <bool kSilu>
inline int32_t act(int32_t c, int to, int32_t limit) {
    if constexpr (kSilu) return clamp(rshift(c * sigmoid12(c), 20 - to), limit);
    return clamp(rshift(((c + isqrt(c * c + (1 << 18))) >> 1) - 256, 8 - to), limit);
}

// Where a value is clamped, its gradient passes only if a step against it would bring the value back (nn/quant.py, `through`).
inline bool passes(float grad, float value, float bound) { return std::fabs(value) <= bound || grad * value > 0.0f; }

// grad times the derivative of the smooth form of act.
template <bool kSilu>
inline float act_backward(float grad, float c, float bound) {
    const float r = 1.0f / std::sqrt(c * c + 4.0f);
    const float half = 0.5f + 0.5f * c * r;
    if constexpr (kSilu) return passes(grad, c * half, bound) ? grad * (half + 2.0f * c * r * r * r) : 0.0f;
    return passes(grad, 0.5f * (c + (c * c + 4.0f) * r) - 1.0f, bound) ? grad * half : 0.0f;
}

// e^x to 2 units in the last place for |x| <= 87, saturating beyond: a power of two and a polynomial (Cephes expf's degrees).
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 87.0f);
    const float k = std::nearbyint(x * 1.44269504f);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return y * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// What the norm of a row found: x * ratio * g is the output, total is eps + sum of squares in real units.
struct NormRow {
    float ratio, total;
};

// Section 4. x: d integers of scale 2^-f, g: d integers Q6 -> out int8 Q5.
NormRow norm_row(const int32_t *x, const int32_t *g, int8_t *out, int d, int f, int mantissa) {
    int64_t sum = 1 << 14;
    // Squares of 18-bit numbers: 16 of them fit in 64 bits with room to spare, and so does the whole sum.
    _Pragma("omp simd reduction(+ : sum)") for (int i = 0; i < d; ++i) sum += static_cast<int64_t>(x[i]) * x[i];
    const int j = (bitlen(static_cast<uint64_t>(sum)) - 15) >> 1;
    const int64_t top = sum >> (2 * j);
    int64_t mu = 128;
    if (mantissa != 0) {
        mu = static_cast<int64_t>(std::sqrt(static_cast<double>(1 << 30) / static_cast<double>(top)));
        mu -= mu * mu * top > (1 << 30) ? 1 : 0;
        mu += (mu + 1) * (mu + 1) * top <= (1 << 30) ? 1 : 0;
    }
    const int e = bitlen(static_cast<uint64_t>(d)) >> 1;
    const int32_t m = static_cast<int32_t>(mu), half = j == 0 ? 0 : 1 << (j - 1), s = 20 - e, half_s = 1 << (s - 1);
    MI_VECTOR
    for (int i = 0; i < d; ++i) {
        const int32_t n = ((x[i] << 4) + half) >> j;
        out[i] = static_cast<int8_t>(clamp((n * m * g[i] + half_s) >> s, 127));
    }
    const float ratio = std::ldexp(static_cast<float>(m), f + 4 - j + 6 - 20 + e - 5);
    return {ratio, std::ldexp(static_cast<float>(sum), -2 * f)};
}

// RMS norm with epsilon 1e-5. The same meaning of ratio and total, for the same backward pass.
NormRow norm_row(const float *x, const float *g, float *out, int d) {
    float sum = 0.0f;
    _Pragma("omp simd reduction(+ : sum)") for (int i = 0; i < d; ++i) sum += x[i] * x[i];
    const float total = sum + 1e-5f * static_cast<float>(d);
    const float ratio = std::sqrt(static_cast<float>(d) / total);
    MI_VECTOR
    for (int i = 0; i < d; ++i) out[i] = x[i] * ratio * g[i];
    return {ratio, total};
}

// grad: of the output; adds the gradient of g to grad_g and puts that of x into grad_x. bound: where the output is clamped.
void norm_row_backward(const float *grad, const float *x, const float *g, NormRow n, float bound, float *grad_x,
                       float *grad_g, int d) {
    float dot = 0.0f;
    _Pragma("omp simd reduction(+ : dot)") for (int i = 0; i < d; ++i) {
        const float xr = x[i] * n.ratio;
        const float gy = passes(grad[i], xr * g[i], bound) ? grad[i] : 0.0f;
        grad_g[i] += gy * xr;
        const float gg = gy * g[i];
        grad_x[i] = gg;
        dot += gg * x[i];
    }
    dot /= n.total;
    MI_VECTOR
    for (int i = 0; i < d; ++i) grad_x[i] = n.ratio * (grad_x[i] - x[i] * dot);
}

// What differs between the integer model and its float baseline.
template <bool kSiluConv, bool kSiluGate>
struct Integer {
    using In = int16_t;     // projections, Q8
    using Value = int32_t;  // on the way
    using State = int32_t;  // Q14
    using Out = int8_t;     // Q5
    static constexpr float kP = 1.0f / 256, kX = 1.0f / 32, kB = 1.0f / 8, kH = 1.0f / 16384, kY = 1.0f / 256,
                           kG = 1.0f / 256, kO = 1.0f / 1024;
    static constexpr float kNormBound = 127.0f / 32;

    static Value x(Value c) { return act<kSiluConv>(c, 5, 127); }
    static Value bc(Value c) { return act<kSiluConv>(c, 3, 31); }
    static Value gate(Value z) { return act<kSiluGate>(z, 8, 16383); }
    static float x_backward(float grad, float c) { return act_backward<kSiluConv>(grad, c, 127.0f / 32); }
    static float bc_backward(float grad, float c) { return act_backward<kSiluConv>(grad, c, 31.0f / 8); }
    static float gate_backward(float grad, float z) { return act_backward<kSiluGate>(grad, z, 16383.0f / 256); }
    static Value output(Value sum, Value skip, Value x) { return clamp(rshift(sum + ((skip * x) << 6), 9), 32767); }
    static Value gated(Value y, Value g) { return clamp(rshift(y * g, 6), (1 << 17) - 1); }
    // A saturated product stands at the limit itself.
    static float gated_backward(float grad, float o) {
        return passes(grad, o, static_cast<float>((1 << 17) - 2) / 1024) ? grad : 0.0f;
    }
    static NormRow norm(const Value *o, const Value *g, Out *out, int d, int mantissa) {
        return norm_row(o, g, out, d, 10, mantissa);
    }
    static constexpr float kScaleG = 1.0f / 64;
};

struct Float {
    using In = float;
    using Value = float;
    using State = float;
    using Out = float;
    static constexpr float kP = 1, kX = 1, kB = 1, kH = 1, kY = 1, kG = 1, kO = 1;
    static constexpr float kNormBound = 3e38f;

    static float silu(float v) { return v * sigmoid(v); }
    static float silu_slope(float v) {
        const float s = sigmoid(v);
        return s * (1.0f + v * (1.0f - s));
    }
    static float x(float c) { return silu(c); }
    static float bc(float c) { return silu(c); }
    static float gate(float z) { return silu(z); }
    static float x_backward(float grad, float c) { return grad * silu_slope(c); }
    static float bc_backward(float grad, float c) { return grad * silu_slope(c); }
    static float gate_backward(float grad, float z) { return grad * silu_slope(z); }
    static float output(float sum, float skip, float x) { return sum + skip * x; }
    static float gated(float y, float g) { return y * g; }
    static float gated_backward(float grad, float) { return grad; }
    static NormRow norm(const float *o, const float *g, float *out, int d, int) { return norm_row(o, g, out, d); }
    static constexpr float kScaleG = 1.0f;
};

// One step of one head: h [N][P] after x [P], b and c [N]; adds up y [P].
template <class A, int kP>
struct Head {
    using V = typename A::Value;
    // The decay of a head at a step: integers m, k (h += rshift(m (v - h), k)), or floats (h = keep h + add v).
    static void step(V *h, const V *x, const V *b, const V *c, const mi_mixer &d, int64_t at, int head, int n_state,
                     int p_dim, bool fresh, V *y) {
        const int p_count = kP > 0 ? kP : p_dim;
        for (int p = 0; p < p_count; ++p) y[p] = 0;
        if constexpr (std::is_same_v<V, int32_t>) {
            const int k = d.k[head];
            const int32_t m = static_cast<int32_t>(d.add[at]), half = 1 << (k - 1);
            for (int n = 0; n < n_state; ++n) {
                V *hn = h + static_cast<int64_t>(n) * p_count;
                const V bn = b[n] << 6, cn = c[n];
                if (fresh) {
                    MI_VECTOR
                    for (int p = 0; p < p_count; ++p) {
                        hn[p] = (m * (x[p] * bn) + half) >> k;
                        y[p] += cn * hn[p];
                    }
                } else {
                    MI_VECTOR
                    for (int p = 0; p < p_count; ++p) {
                        hn[p] += (m * (x[p] * bn - hn[p]) + half) >> k;
                        y[p] += cn * hn[p];
                    }
                }
            }
        } else {
            const float keep = fresh ? 0.0f : d.keep[at], add = d.add[at];
            for (int n = 0; n < n_state; ++n) {
                V *hn = h + static_cast<int64_t>(n) * p_count;
                const V bn = b[n] * add, cn = c[n];
                MI_VECTOR
                for (int p = 0; p < p_count; ++p) {
                    hn[p] = hn[p] * keep + x[p] * bn;
                    y[p] += cn * hn[p];
                }
            }
        }
    }
};

// Everything of a step before the scan. c: the convolution's output [E + 2N].
template <class A>
void front(const mi_mixer &s, const typename A::In *const *taps, typename A::Value *c) {
    using V = typename A::Value;
    const V *w = static_cast<const V *>(s.conv_weight);
    const V *bias = static_cast<const V *>(s.conv_bias);
    const int channels = s.heads * s.head_dim + 2 * s.d_state;
    const V *w0 = w, *w1 = w + channels, *w2 = w + 2 * channels, *w3 = w + 3 * channels;
    const typename A::In *t0 = taps[0], *t1 = taps[1], *t2 = taps[2], *t3 = taps[3];
    MI_VECTOR
    for (int i = 0; i < channels; ++i) {
        const V sum = w0[i] * static_cast<V>(t3[i]) + w1[i] * static_cast<V>(t2[i]) + w2[i] * static_cast<V>(t1[i]) +
                      w3[i] * static_cast<V>(t0[i]);
        if constexpr (std::is_same_v<V, int32_t>)
            c[i] = clamp(((sum + 32) >> 6) + bias[i], 32767);
        else
            c[i] = sum + bias[i];
    }
}

template <class A, int kP>
void forward_rows(const mi_mixer &s, int row0, int row1) {
    using V = typename A::Value;
    using In = typename A::In;
    const int e = s.heads * s.head_dim, n = s.d_state, channels = e + 2 * n, width = 2 * e + 2 * n + s.heads,
              p_dim = s.head_dim;
    const V *skip = static_cast<const V *>(s.skip);
    const V *g2 = static_cast<const V *>(s.norm_scale);
    Buffer<V> h(static_cast<size_t>(e) * n), c(channels), x(e), bc(2 * n), y(e), o(e), gate(e);
    Buffer<In> zero(channels);
    const int chunks = (s.length + kChunk - 1) / kChunk;
    for (int row = row0; row < row1; ++row) {
        for (int t = 0; t < s.length; ++t) {
            const int64_t at = static_cast<int64_t>(row) * s.length + t;
            const int index = s.index[at];
            if (t % kChunk == 0 && s.states != nullptr)
                std::memcpy(static_cast<V *>(s.states) + (static_cast<int64_t>(row) * chunks + t / kChunk) * e * n,
                            h.data(), h.size() * sizeof(V));
            const In *p = static_cast<const In *>(s.projected) + at * width;
            const In *taps[4];
            for (int back = 0; back < 4; ++back)
                taps[back] = index >= back ? p + e - static_cast<int64_t>(back) * width : zero.data();
            front<A>(s, taps, c.data());
            MI_VECTOR
            for (int i = 0; i < e; ++i) x[i] = A::x(c[i]);
            MI_VECTOR
            for (int i = 0; i < 2 * n; ++i) bc[i] = A::bc(c[e + i]);
            for (int head = 0; head < s.heads; ++head)
                Head<A, kP>::step(h.data() + static_cast<int64_t>(head) * n * p_dim, x.data() + head * p_dim, bc.data(),
                                  bc.data() + n, s, at * s.heads + head, head, n, p_dim, index == 0,
                                  y.data() + head * p_dim);
            for (int head = 0; head < s.heads; ++head) {
                const V sk = skip[head];
                MI_VECTOR
                for (int i = head * p_dim; i < (head + 1) * p_dim; ++i) y[i] = A::output(y[i], sk, x[i]);
            }
            MI_VECTOR
            for (int i = 0; i < e; ++i) o[i] = A::gated(y[i], A::gate(static_cast<V>(p[i])));
            const NormRow norm = A::norm(o.data(), g2, static_cast<typename A::Out *>(s.out) + at * e, e, s.mantissa);
            s.norms[2 * at] = norm.ratio;
            s.norms[2 * at + 1] = norm.total;
        }
    }
}

// Gradients of rows row0 … row1 - 1. Parameter gradients are added to `grads` (one buffer a thread).
template <class A, int kP>
void backward_rows(const mi_mixer &s, const mi_mixer_grads &g, int row0, int row1, float *grads) {
    using V = typename A::Value;
    using In = typename A::In;
    const int e = s.heads * s.head_dim, n = s.d_state, channels = e + 2 * n, width = 2 * e + 2 * n + s.heads,
              p_dim = s.head_dim;
    const int p_count = kP > 0 ? kP : p_dim;
    const int64_t head_state = static_cast<int64_t>(n) * p_dim;
    float *g_conv = grads;                  // [4][channels]
    float *g_bias = g_conv + 4 * channels;  // [channels]
    float *g_skip = g_bias + channels;      // [heads]
    float *g_norm = g_skip + s.heads;       // [e]
    const V *w = static_cast<const V *>(s.conv_weight);
    Buffer<float> wf(4 * channels), g2(e), skip(s.heads);
    const float w_unit = A::kScaleG;  // integer taps, scales and skips are Q6
    for (int i = 0; i < 4 * channels; ++i) wf[i] = static_cast<float>(w[i]) * w_unit;
    for (int i = 0; i < e; ++i) g2[i] = static_cast<float>(static_cast<const V *>(s.norm_scale)[i]) * A::kScaleG;
    for (int i = 0; i < s.heads; ++i) skip[i] = static_cast<float>(static_cast<const V *>(s.skip)[i]) * A::kScaleG;
    const V *skip_v = static_cast<const V *>(s.skip);

    Buffer<V> c(channels), xs(static_cast<size_t>(kChunk) * e), bcs(static_cast<size_t>(kChunk) * 2 * n),
        ys(static_cast<size_t>(kChunk) * e);
    Buffer<V> h(head_state);
    Buffer<float> cf(static_cast<size_t>(kChunk) * channels);  // the convolution's output, real
    Buffer<float> dc(static_cast<size_t>(kChunk + 3) *
                     channels);  // its gradient; rows kChunk … are of the three steps after the chunk
    Buffer<float> hs(static_cast<size_t>(kChunk + 1) * head_state), dh(static_cast<size_t>(e) * n);
    Buffer<float> dy(static_cast<size_t>(kChunk) * e), dx(static_cast<size_t>(kChunk) * e);
    Buffer<float> db(static_cast<size_t>(kChunk) * n * 16), dcc(static_cast<size_t>(kChunk) * n * 16);
    Buffer<float> of(e), go(e), xf(e);
    Buffer<In> zero(channels);
    const int chunks = (s.length + kChunk - 1) / kChunk;

    for (int row = row0; row < row1; ++row) {
        dh.clear();
        dc.clear();
        for (int chunk = chunks - 1; chunk >= 0; --chunk) {
            const int t0 = chunk * kChunk, count = std::min(kChunk, s.length - t0);
            const int64_t base = static_cast<int64_t>(row) * s.length + t0;
            if (count < kChunk) dc.clear();
            for (int q = 0; q < count; ++q) {
                const int64_t at = base + q;
                const In *p = static_cast<const In *>(s.projected) + at * width;
                const In *taps[4];
                for (int back = 0; back < 4; ++back)
                    taps[back] = s.index[at] >= back ? p + e - static_cast<int64_t>(back) * width : zero.data();
                front<A>(s, taps, c.data());
                float *cq = cf.data() + static_cast<int64_t>(q) * channels;
                V *xq = xs.data() + static_cast<int64_t>(q) * e;
                V *bq = bcs.data() + static_cast<int64_t>(q) * 2 * n;
                MI_VECTOR
                for (int i = 0; i < channels; ++i) cq[i] = static_cast<float>(c[i]) * A::kP;
                MI_VECTOR
                for (int i = 0; i < e; ++i) xq[i] = A::x(c[i]);
                MI_VECTOR
                for (int i = 0; i < 2 * n; ++i) bq[i] = A::bc(c[e + i]);
            }
            // The scan again, head by head, then back through gate, norm and scan. The norm of a step needs all heads, so this takes two passes: the
            // first leaves ys, and the states are computed once more head by head in the second.
            const V *stored = static_cast<const V *>(s.states) + (static_cast<int64_t>(row) * chunks + chunk) * e * n;
            for (int head = 0; head < s.heads; ++head) {
                std::memcpy(h.data(), stored + head * head_state, head_state * sizeof(V));
                for (int q = 0; q < count; ++q) {
                    const int64_t at = base + q;
                    Head<A, kP>::step(h.data(), xs.data() + static_cast<int64_t>(q) * e + head * p_dim,
                                      bcs.data() + static_cast<int64_t>(q) * 2 * n,
                                      bcs.data() + static_cast<int64_t>(q) * 2 * n + n, s, at * s.heads + head, head, n,
                                      p_dim, s.index[at] == 0, ys.data() + static_cast<int64_t>(q) * e + head * p_dim);
                }
            }
            for (int q = 0; q < count; ++q) {
                const int64_t at = base + q;
                const In *p = static_cast<const In *>(s.projected) + at * width;
                V *yq = ys.data() + static_cast<int64_t>(q) * e;
                V *xq = xs.data() + static_cast<int64_t>(q) * e;
                for (int head = 0; head < s.heads; ++head)
                    for (int i = head * p_dim; i < (head + 1) * p_dim; ++i)
                        yq[i] = A::output(yq[i], skip_v[head], xq[i]);
                MI_VECTOR
                for (int i = 0; i < e; ++i)
                    of[i] = static_cast<float>(A::gated(yq[i], A::gate(static_cast<V>(p[i])))) * A::kO;
                norm_row_backward(g.grad_out + at * e, of.data(), g2.data(), {s.norms[2 * at], s.norms[2 * at + 1]},
                                  A::kNormBound, go.data(), g_norm, e);
                float *grad_p = g.grad_projected + at * width;
                float *dyq = dy.data() + static_cast<int64_t>(q) * e;
                MI_VECTOR
                for (int i = 0; i < e; ++i) {
                    const float z = static_cast<float>(p[i]) * A::kP;
                    const float d = A::gated_backward(go[i], of[i]);
                    dyq[i] = d * (static_cast<float>(A::gate(static_cast<V>(p[i]))) * A::kG);
                    grad_p[i] = A::gate_backward(d * (static_cast<float>(yq[i]) * A::kY), z);
                }
                float *dxq = dx.data() + static_cast<int64_t>(q) * e;
                for (int head = 0; head < s.heads; ++head) {
                    float sum = 0.0f;
                    for (int i = head * p_dim; i < (head + 1) * p_dim; ++i) {
                        dxq[i] = dyq[i] * skip[head];
                        sum += dyq[i] * (static_cast<float>(xq[i]) * A::kX);
                    }
                    g_skip[head] += sum;
                }
            }
            db.clear();
            dcc.clear();
            for (int head = 0; head < s.heads; ++head) {
                std::memcpy(h.data(), stored + head * head_state, head_state * sizeof(V));
                for (int64_t i = 0; i < head_state; ++i) hs[i] = static_cast<float>(h[i]) * A::kH;
                for (int q = 0; q < count; ++q) {
                    const int64_t at = base + q;
                    V scratch[256];
                    Head<A, kP>::step(h.data(), xs.data() + static_cast<int64_t>(q) * e + head * p_dim,
                                      bcs.data() + static_cast<int64_t>(q) * 2 * n,
                                      bcs.data() + static_cast<int64_t>(q) * 2 * n + n, s, at * s.heads + head, head, n,
                                      p_dim, s.index[at] == 0, scratch);
                    float *hq = hs.data() + (q + 1) * head_state;
                    MI_VECTOR
                    for (int64_t i = 0; i < head_state; ++i) hq[i] = static_cast<float>(h[i]) * A::kH;
                }
                float *dhh = dh.data() + head * head_state;
                for (int q = count - 1; q >= 0; --q) {
                    const int64_t at = base + q, decay_at = at * s.heads + head;
                    const bool fresh = s.index[at] == 0;
                    const V *xq = xs.data() + static_cast<int64_t>(q) * e + head * p_dim;
                    const V *bq = bcs.data() + static_cast<int64_t>(q) * 2 * n;
                    const float *dyq = dy.data() + static_cast<int64_t>(q) * e + head * p_dim;
                    float *dxq = dx.data() + static_cast<int64_t>(q) * e + head * p_dim;
                    const float *after = hs.data() + (q + 1) * head_state;
                    const float *before = hs.data() + q * head_state;
                    float add, keep;
                    if constexpr (std::is_same_v<V, int32_t>) {
                        add = std::ldexp(s.add[decay_at], -s.k[head]);
                        keep = fresh ? 0.0f : 1.0f - add;
                    } else {
                        add = s.add[decay_at];
                        keep = fresh ? 0.0f : s.keep[decay_at];
                    }
                    float xr[256], dkeep[16] = {}, dadd[16] = {};
                    for (int p = 0; p < p_count; ++p) xr[p] = static_cast<float>(xq[p]) * A::kX;
                    for (int i = 0; i < n; ++i) {
                        const float bn = static_cast<float>(bq[i]) * A::kB, cn = static_cast<float>(bq[n + i]) * A::kB;
                        float *d = dhh + static_cast<int64_t>(i) * p_count;
                        const float *ha = after + static_cast<int64_t>(i) * p_count;
                        const float *hb = before + static_cast<int64_t>(i) * p_count;
                        float *dbq = db.data() + (static_cast<int64_t>(q) * n + i) * 16;
                        float *dcq = dcc.data() + (static_cast<int64_t>(q) * n + i) * 16;
                        int p = 0;
                        for (; p + 16 <= p_count; p += 16) {
                            MI_VECTOR
                            for (int l = 0; l < 16; ++l) {
                                const float gh = d[p + l] + cn * dyq[p + l];
                                dcq[l] += ha[p + l] * dyq[p + l];
                                dkeep[l] += gh * hb[p + l];
                                dadd[l] += gh * (bn * xr[p + l]);
                                const float gv = gh * add;
                                dxq[p + l] += gv * bn;
                                dbq[l] += gv * xr[p + l];
                                d[p + l] = gh * keep;
                            }
                        }
                        for (; p < p_count; ++p) {
                            const float gh = d[p] + cn * dyq[p];
                            dcq[0] += ha[p] * dyq[p];
                            dkeep[0] += gh * hb[p];
                            dadd[0] += gh * (bn * xr[p]);
                            const float gv = gh * add;
                            dxq[p] += gv * bn;
                            dbq[0] += gv * xr[p];
                            d[p] = gh * keep;
                        }
                    }
                    float sum_keep = 0.0f, sum_add = 0.0f;
                    for (int l = 0; l < 16; ++l) {
                        sum_keep += dkeep[l];
                        sum_add += dadd[l];
                    }
                    g.grad_keep[decay_at] = fresh ? 0.0f : sum_keep;
                    g.grad_add[decay_at] = sum_add;
                }
            }
            for (int q = 0; q < count; ++q) {
                float *dcq = dc.data() + static_cast<int64_t>(q) * channels;
                const float *cq = cf.data() + static_cast<int64_t>(q) * channels;
                const float *dxq = dx.data() + static_cast<int64_t>(q) * e;
                MI_VECTOR
                for (int i = 0; i < e; ++i) dcq[i] = A::x_backward(dxq[i], cq[i]);
                for (int i = 0; i < n; ++i) {
                    float b = 0.0f, cc = 0.0f;
                    for (int l = 0; l < 16; ++l) {
                        b += db[(static_cast<int64_t>(q) * n + i) * 16 + l];
                        cc += dcc[(static_cast<int64_t>(q) * n + i) * 16 + l];
                    }
                    dcq[e + i] = A::bc_backward(b, cq[e + i]);
                    dcq[e + n + i] = A::bc_backward(cc, cq[e + n + i]);
                }
            }
            for (int q = 0; q < count; ++q) {
                const int64_t at = base + q;
                const In *p = static_cast<const In *>(s.projected) + at * width + e;
                float *grad_p = g.grad_projected + at * width + e;
                const float *d0 = dc.data() + static_cast<int64_t>(q) * channels;
                MI_VECTOR
                for (int i = 0; i < channels; ++i) {
                    grad_p[i] = d0[i] * wf[3 * channels + i];
                    g_bias[i] += d0[i];
                    g_conv[3 * channels + i] += d0[i] * (static_cast<float>(p[i]) * A::kP);
                }
                for (int back = 1; back < 4; ++back) {
                    if (t0 + q + back >= s.length || s.index[at + back] < back) continue;
                    const float *d = dc.data() + static_cast<int64_t>(q + back) * channels;
                    const float *wb = wf.data() + (3 - back) * channels;
                    float *gw = g_conv + (3 - back) * channels;
                    MI_VECTOR
                    for (int i = 0; i < channels; ++i) {
                        grad_p[i] += d[i] * wb[i];
                        gw[i] += d[i] * (static_cast<float>(p[i]) * A::kP);
                    }
                }
                for (int i = 0; i < s.heads; ++i) grad_p[channels + i] = 0.0f;
            }
            std::memcpy(dc.data() + static_cast<int64_t>(kChunk) * channels, dc.data(),
                        3 * static_cast<size_t>(channels) * sizeof(float));
        }
    }
}

template <class A>
void forward_of(const mi_mixer &s, int row0, int row1) {
    return s.head_dim == 32 ? forward_rows<A, 32>(s, row0, row1) : forward_rows<A, 0>(s, row0, row1);
}

template <class A>
void backward_of(const mi_mixer &s, const mi_mixer_grads &g, int row0, int row1, float *grads) {
    return s.head_dim == 32 ? backward_rows<A, 32>(s, g, row0, row1, grads)
                            : backward_rows<A, 0>(s, g, row0, row1, grads);
}

}  // namespace

void mixer_forward(const mi_mixer &s, int row0, int row1) {
    switch (s.kind) {
        case 0:
            return forward_of<Float>(s, row0, row1);
        case 1:
            return forward_of<Integer<true, true>>(s, row0, row1);
        case 2:
            return forward_of<Integer<false, true>>(s, row0, row1);
        case 3:
            return forward_of<Integer<true, false>>(s, row0, row1);
        default:
            return forward_of<Integer<false, false>>(s, row0, row1);
    }
}

void mixer_backward(const mi_mixer &s, const mi_mixer_grads &g, int row0, int row1, float *grads) {
    switch (s.kind) {
        case 0:
            return backward_of<Float>(s, g, row0, row1, grads);
        case 1:
            return backward_of<Integer<true, true>>(s, g, row0, row1, grads);
        case 2:
            return backward_of<Integer<false, true>>(s, g, row0, row1, grads);
        case 3:
            return backward_of<Integer<true, false>>(s, g, row0, row1, grads);
        default:
            return backward_of<Integer<false, false>>(s, g, row0, row1, grads);
    }
}

// acc [rows][width] of products -> int16 Q8, and the last `heads` columns as real numbers.
void requantise(const int32_t *acc, const int32_t *mul, int shift, int16_t *out, float *dt, int64_t rows, int width,
                int heads) {
    const int64_t half = shift == 0 ? 0 : int64_t{1} << (shift - 1);
    for (int64_t r = 0; r < rows; ++r) {
        const int32_t *a = acc + r * width;
        int16_t *o = out + r * width;
        MI_VECTOR
        for (int i = 0; i < width; ++i) {
            const int64_t v = (static_cast<int64_t>(a[i]) * mul[i] + half) >> shift;
            o[i] = static_cast<int16_t>(std::min<int64_t>(std::max<int64_t>(v, -32767), 32767));
        }
        for (int i = 0; i < heads; ++i) dt[r * heads + i] = static_cast<float>(o[width - heads + i]) * (1.0f / 256);
    }
}

// r + sat16(rshift(acc * mul, shift)), saturated to 18 bits: the integer model's residual. r and out: multiples of 2^-8.
void residual_add(const float *r, const int32_t *acc, const int32_t *mul, int shift, float *out, int64_t rows,
                  int width) {
    const int64_t half = shift == 0 ? 0 : int64_t{1} << (shift - 1);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row * width;
        MI_VECTOR
        for (int i = 0; i < width; ++i) {
            const int64_t v = (static_cast<int64_t>(acc[at + i]) * mul[i] + half) >> shift;
            const int32_t x = static_cast<int32_t>(std::nearbyint(r[at + i] * 256.0f)) +
                              static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(v, -32767), 32767));
            out[at + i] = static_cast<float>(clamp(x, (1 << 17) - 1)) * (1.0f / 256);
        }
    }
}

void norm_forward(const mi_norm &s, int64_t row0, int64_t row1) {
    const int d = s.width;
    Buffer<int32_t> x(d);
    for (int64_t row = row0; row < row1; ++row) {
        const float *r = s.in + row * d;
        NormRow n;
        if (s.is_float != 0) {
            n = norm_row(r, static_cast<const float *>(s.scale), static_cast<float *>(s.out) + row * d, d);
        } else {
            MI_VECTOR
            for (int i = 0; i < d; ++i) x[i] = static_cast<int32_t>(std::nearbyint(r[i] * 256.0f));
            n = norm_row(x.data(), static_cast<const int32_t *>(s.scale), static_cast<int8_t *>(s.out) + row * d, d, 8,
                         s.mantissa);
        }
        s.norms[2 * row] = n.ratio;
        s.norms[2 * row + 1] = n.total;
    }
}

// Adds to grad_in and to grad_scale (one buffer a thread).
void norm_backward(const mi_norm &s, const float *grad_out, float *grad_in, float *grad_scale, int64_t row0,
                   int64_t row1) {
    const int d = s.width;
    Buffer<float> g(d), dx(d);
    for (int i = 0; i < d; ++i)
        g[i] = s.is_float != 0 ? static_cast<const float *>(s.scale)[i]
                               : static_cast<float>(static_cast<const int32_t *>(s.scale)[i]) * (1.0f / 64);
    const float bound = s.is_float != 0 ? 3e38f : 127.0f / 32;
    for (int64_t row = row0; row < row1; ++row) {
        norm_row_backward(grad_out + row * d, s.in + row * d, g.data(), {s.norms[2 * row], s.norms[2 * row + 1]}, bound,
                          dx.data(), grad_scale, d);
        MI_VECTOR
        for (int i = 0; i < d; ++i) grad_in[row * d + i] += dx[i];
    }
}

// Softmax cross-entropy of one block of rows. logits: int32 (times scale) or float; replaced by the gradient weight * (softmax - one-hot), as float.
void cross_entropy(void *logits, int is_float, float scale, const int64_t *target, const float *weight, float *nats,
                   int64_t row0, int64_t row1, int width) {
    for (int64_t row = row0; row < row1; ++row) {
        float *out = static_cast<float *>(logits) + row * width;
        if (is_float == 0) {
            int32_t *in = static_cast<int32_t *>(logits) + row * width;
            MI_VECTOR
            for (int i = 0; i < width; ++i) {
                int32_t v;
                std::memcpy(&v, in + i, sizeof v);
                const float f = static_cast<float>(v) * scale;
                std::memcpy(in + i, &f, sizeof f);
            }
        }
        float top = -3e38f;
        _Pragma("omp simd reduction(max : top)") for (int i = 0; i < width; ++i) top = std::max(top, out[i]);
        const float chosen = out[target[row]];
        float lanes[16] = {};
        int i = 0;
        for (; i + 16 <= width; i += 16) {
            MI_VECTOR
            for (int l = 0; l < 16; ++l) {
                const float v = exponential(out[i + l] - top);
                out[i + l] = v;
                lanes[l] += v;
            }
        }
        double sum = 0.0;
        for (; i < width; ++i) {
            out[i] = exponential(out[i] - top);
            sum += out[i];
        }
        for (float lane : lanes) sum += lane;
        nats[row] = static_cast<float>(std::log(sum)) - (chosen - top);
        if (weight == nullptr) continue;
        const float f = weight[row] / static_cast<float>(sum);
        MI_VECTOR
        for (int k = 0; k < width; ++k) out[k] *= f;
        out[target[row]] -= weight[row];
    }
}

}  // namespace MI_NAMESPACE
