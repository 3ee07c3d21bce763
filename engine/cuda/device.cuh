// What all kernels share: how they are launched, on a GPU or on the host that stands in for one, and the few things that
// the threads of a warp do together.
#pragma once

#include <cstdio>

#if defined(__CUDACC__)
#pragma nv_diag_suppress 20091  // arith.hpp's tables lie on the device here, and only kernels read them
#endif
#include "arith.hpp"
#pragma GCC visibility push( \
    default)  // of all that a library holds, only what this header declares is seen from outside
#include "mamba_integer_kernels.h"
#pragma GCC visibility pop

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define MI_PRAGMA(words) _Pragma(#words)
// The instances of templates hold commas, so `kernel` comes in parentheses.
#define MI_LAUNCH(kernel, grid, block, stream, ...) \
    kernel<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "host_shim.hpp"
#define MI_PRAGMA(words)
#endif

namespace mi::cuda {

constexpr unsigned whole_warp = 0xffffffff;

// Rows of matrix inputs, as ops.hpp has them.
constexpr __host__ __device__ int padded(int n) { return (n + 63) & -64; }

// ceil(n / 2^s)
constexpr __host__ __device__ unsigned pieces(int n, int s) { return static_cast<unsigned>((n + (1 << s) - 1) >> s); }

__device__ inline int lane() { return static_cast<int>(threadIdx.x & 31); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x >> 5); }

// The sum over a warp, below 2^49: two of the hardware's 32-bit sums instead of ten shuffles.
__device__ inline uint64_t warp_sum(uint64_t v) {
    const unsigned low = __reduce_add_sync(whole_warp, static_cast<unsigned>(v & 0xffffff));
    const unsigned high = __reduce_add_sync(whole_warp, static_cast<unsigned>(v >> 24));
    return (uint64_t{high} << 24) + low;
}

// Byte i of a word, as the int8 that it is.
__device__ inline int32_t int8_of(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i)); }

// ---- Errors ---------------------------------------------------------------------------------------------------------

// One message a thread, whichever of the libraries fails.
__attribute__((visibility("default"))) inline thread_local char last_launch_error[256] = "";

inline mi_status refuse(const char *function, const char *cause) {
    std::snprintf(last_launch_error, sizeof last_launch_error, "%s: %s", function, cause);
    return MI_ERR_ARGUMENT;
}

inline mi_status status_of(cudaError_t error) {
    return error == cudaSuccess ? MI_OK : error == cudaErrorMemoryAllocation ? MI_ERR_MEMORY : MI_ERR_DEVICE;
}

// To be called right after a launch.
inline mi_status launched(const char *function) {
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return MI_OK;
    std::snprintf(last_launch_error, sizeof last_launch_error, "%s: CUDA: %s", function, cudaGetErrorString(error));
    return status_of(error);
}

}  // namespace mi::cuda

// ---- What every library has, once a process -------------------------------------------------------------------------

extern "C" {
inline __attribute__((used)) const char *launch_error(void) { return mi::cuda::last_launch_error; }

inline __attribute__((used)) int32_t launch_state_stride(int32_t d_state) {
    int32_t stride = 4;
    while (stride < d_state) stride *= 2;
    return stride;
}
}
