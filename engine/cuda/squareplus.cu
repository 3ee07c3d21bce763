// The activations of ARITHMETIC section 3 and the gate of section 8, one thread an element.
//
// Inside a model they are parts of conv1d_step.cu and dyadic_mamba.cu, where their inputs are in registers already.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int log_threads = 8, threads = 1 << log_threads;

__device__ int element() { return static_cast<int>(blockIdx.x * threads + threadIdx.x); }

template <Activation form>
__global__ void __launch_bounds__(threads)
    activation_kernel(const int16_t *__restrict__ c, int n, int q, int bits, int16_t *__restrict__ out) {
    const int i = element();
    if (i < n) out[i] = static_cast<int16_t>(activated(form, c[i], q, bits));
}

__global__ void __launch_bounds__(threads)
    gate_kernel(const int16_t *__restrict__ y, const int16_t *__restrict__ g, int n, int32_t *__restrict__ o) {
    const int i = element();
    if (i < n) o[i] = gated(y[i], g[i]);
}

template <Activation form>
mi_status launch(const char *function, const int16_t *c, int n, int q, int bits, int16_t *out, void *stream) {
    if (!c || !out) return refuse(function, "null pointer");
    if (n < 1 || q < 0 || q > act_scale(form) || bits < 2 || bits > 16)
        return refuse(function, "n must be at least 1, q from 0 to the scale of the activation, bits from 2 to 16");
    MI_LAUNCH((activation_kernel<form>), dim3(pieces(n, log_threads)), dim3(threads), stream, c, n, q, bits, out);
    return launched(function);
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_squareplus(const int16_t *c, int32_t n, int32_t q, int32_t bits, int16_t *out, void *stream) {
    return mi::cuda::launch<mi::Activation::squareplus>(__func__, c, n, q, bits, out, stream);
}

mi_status launch_silu(const int16_t *c, int32_t n, int32_t q, int32_t bits, int16_t *out, void *stream) {
    return mi::cuda::launch<mi::Activation::silu>(__func__, c, n, q, bits, out, stream);
}

mi_status launch_gate(const int16_t *y, const int16_t *g, int32_t n, int32_t *o, void *stream) {
    using namespace mi::cuda;
    if (!y || !g || !o) return refuse(__func__, "null pointer");
    if (n < 1) return refuse(__func__, "n must be at least 1");
    MI_LAUNCH((gate_kernel), dim3(pieces(n, log_threads)), dim3(threads), stream, y, g, n, o);
    return launched(__func__);
}
