// Convolution step, ARITHMETIC section 6, with what follows it: activation, rotation, rounding to x, B and C.
//
// One thread an element of x, or a pair (i, i + N/2) of B or of C, which the rotation turns together. Rows are independent:
// a row's taps are the rows before it, or what the sequence remembers, and the last row of a span writes what the next
// tokens will find. Prefill and a single step are the same kernel.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int log_threads = 7, threads = 1 << log_threads;

// Threads of a row: E elements of x, N pairs, and the zeros beyond B and C.
__host__ __device__ int work(const mi_conv &p, int state_stride) {
    return p.d_inner + p.d_state + 2 * (state_stride - p.d_state);
}

__global__ void __launch_bounds__(threads)
    conv_kernel(mi_conv p, const int16_t *__restrict__ xbc, int stride, const mi_span *__restrict__ spans,
                const int32_t *__restrict__ span_of_row, uint64_t past_offset, int state_stride, int8_t *__restrict__ x,
                int8_t *__restrict__ bc) {
    const int row = static_cast<int>(blockIdx.y), i = static_cast<int>(blockIdx.x * threads + threadIdx.x);
    const int E = p.d_inner, N = p.d_state, half = N >> 1, channels = E + 2 * N;
    const Activation form = Activation{static_cast<uint32_t>(p.activation)};
    const mi_span span = spans[span_of_row[row]];
    const int t = row - span.first;
    const int16_t *past = span.past + past_offset;
    int16_t *next_past = span.next_past + past_offset;

    const auto input = [&](int time, int channel) -> int32_t {
        return time < 0 ? past[(3 + time) * channels + channel]
                        : xbc[static_cast<size_t>(span.first + time) * static_cast<size_t>(stride) +
                              static_cast<size_t>(channel)];
    };
    const auto step = [&](int channel) {
        const int32_t p0 = input(t - 3, channel), p1 = input(t - 2, channel), p2 = input(t - 1, channel),
                      p3 = input(t, channel);
        if (t == span.n - 1) {
            next_past[channel] = static_cast<int16_t>(p1);
            next_past[channels + channel] = static_cast<int16_t>(p2);
            next_past[2 * channels + channel] = static_cast<int16_t>(p3);
        }
        return conv4(p0, p1, p2, p3, p.weight + 4 * channel, p.bias[channel]);
    };

    bc += static_cast<size_t>(row) * static_cast<size_t>(2 * state_stride);
    if (i < E) {
        x[static_cast<size_t>(row) * static_cast<size_t>(E) + static_cast<size_t>(i)] =
            static_cast<int8_t>(activated(form, step(i), 5, 8));
    } else if (i < E + N) {
        const int which = i - E >= half, pair = i - E - which * half;  // 0 of B, 1 of C
        const int channel = E + which * N + pair;
        const int32_t a = step(channel), b = step(channel + half);
        const Pair turned = p.rotation ? rotated({activated(form, a, 8, 16), activated(form, b, 8, 16)},
                                                 span.position + static_cast<uint64_t>(t), pair)
                                       : Pair{activated(form, a, 3, 6), activated(form, b, 3, 6)};
        bc[which * state_stride + pair] = static_cast<int8_t>(turned.x);
        bc[which * state_stride + pair + half] = static_cast<int8_t>(turned.y);
    } else if (i < work(p, state_stride)) {
        const int beyond = state_stride - N, k = i - E - N, which = k >= beyond;
        bc[which * state_stride + N + k - which * beyond] = 0;
    }
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_conv1d_step(const mi_conv *conv, const int16_t *xbc, int32_t stride, const mi_span *spans,
                             const int32_t *span_of_row, int32_t rows, uint64_t past_offset, int8_t *x, int8_t *bc,
                             void *stream) {
    using namespace mi::cuda;
    if (!conv || !conv->weight || !conv->bias || !xbc || !spans || !span_of_row || !x || !bc)
        return refuse(__func__, "null pointer");
    if (rows < 1 || rows > 65535) return refuse(__func__, "rows must be from 1 to 65535");
    if (conv->d_inner < 1 || conv->d_state < 2 || conv->d_state > 64 || conv->d_state & 1 ||
        stride < conv->d_inner + 2 * conv->d_state)
        return refuse(__func__, "d_inner must be at least 1, d_state even and from 2 to 64, a row at least x | B | C");
    const int state_stride = launch_state_stride(conv->d_state);
    MI_LAUNCH((conv_kernel), dim3(pieces(work(*conv, state_stride), log_threads), static_cast<unsigned>(rows)),
              dim3(threads), stream, *conv, xbc, stride, spans, span_of_row, past_offset, state_stride, x, bc);
    return launched(__func__);
}
