// BitShift norm, ARITHMETIC section 4: one block a row.
//
// The sum of squares is the one thing that needs the whole row: 64 bits a thread, two hardware sums a warp, one barrier.
// After it every thread finds shift and mantissa for itself, from the same numbers, which is cheaper than to wait for one.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int threads = 128, warps = threads / 32;

__global__ void __launch_bounds__(threads)
    norm_kernel(const int32_t *__restrict__ x, const int32_t *__restrict__ select, const int8_t *__restrict__ g, int d,
                int mantissa, int8_t *__restrict__ out) {
    __shared__ uint64_t partial[warps];
    const size_t row = blockIdx.x;
    x += static_cast<size_t>(select ? select[row] : row) * static_cast<size_t>(d);
    out += row * static_cast<size_t>(padded(d));
    const int first = static_cast<int>(threadIdx.x);

    uint64_t S = 0;
    for (int i = first; i < d; i += threads) {
        const uint64_t magnitude = static_cast<uint32_t>(x[i] < 0 ? -x[i] : x[i]);
        S += magnitude * magnitude;
    }
    S = warp_sum(S);
    if (lane() == 0) partial[warp()] = S;
    __syncthreads();
    S = norm_epsilon;
    for (int w = 0; w < warps; ++w) S += partial[w];

    const int j = norm_shift(S), shift = norm_out_shift(d);
    const int32_t mu = norm_mantissa(S, j, mantissa);
    for (int i = first; i < padded(d); i += threads)
        out[i] = static_cast<int8_t>(i < d ? norm_element(x[i], g[i], j, mu, shift) : 0);
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_bitshift_norm(const int32_t *x, const int32_t *select, int32_t rows, const int8_t *g, int32_t d,
                               int32_t mantissa, int8_t *out, void *stream) {
    using namespace mi::cuda;
    if (!x || !g || !out) return refuse(__func__, "null pointer");
    if (rows < 1 || d < 1 || d > 1 << 14) return refuse(__func__, "rows must be at least 1, d from 1 to 2^14");
    if (mantissa != 0 && mantissa != 8) return refuse(__func__, "mantissa must be 0 or 8");
    MI_LAUNCH((norm_kernel), dim3(static_cast<unsigned>(rows)), dim3(threads), stream, x, select, g, d, mantissa, out);
    return launched(__func__);
}
