// Selective scan, ARITHMETIC section 7, with the gate of section 8: sequential in time, parallel over channel x state x
// sequence.
//
// The states of a channel are shared by `lanes` threads of a warp, four each, in registers from the first token of a span
// to its last: the state is read and written once a launch, whatever the number of tokens. Inside a warp the channel runs
// fastest, so that eight neighbours (N = 16) read one sector of h. Step by step each thread moves its states on; shuffles
// add up C h over the lanes. The nonlinear rest, the gate, is not recurrent: the lanes take turns, lane g finishing the
// g-th of every `lanes` tokens, so that none of them idles.
//
// B and C have zeros beyond N (conv1d_step.cu): a state there is 0 for ever and adds 0.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int threads = 128, warps = threads / 32;
constexpr int held = 4;  // states a thread

constexpr int channels_of(int lanes) { return 32 / lanes * warps; }  // of a block

template <Scan form, int lanes>
__global__ void __launch_bounds__(threads)
    scan_kernel(mi_scan s, const mi_span *__restrict__ spans, const int8_t *__restrict__ x,
                const int8_t *__restrict__ bc, const int16_t *__restrict__ z, const int16_t *__restrict__ dt,
                int stride, uint64_t h_offset, int32_t *__restrict__ o) {
    constexpr int together = 32 / lanes;  // channels of a warp
    const int head = static_cast<int>(blockIdx.y), P = s.head_dim, N = s.d_state, E = s.heads * P;
    const int g = lane() / together;  // which of the lanes
    int p = (static_cast<int>(blockIdx.x) * warps + warp()) * together + (lane() & (together - 1));
    const bool live = p < P;
    if (!live) p = P - 1;  // does what a neighbour does, and writes nothing: all of a warp take part in its shuffles
    const int e = head * P + p;

    const mi_span span = spans[blockIdx.z];
    const int32_t A = s.A[head], base = s.base[head], k = s.k[head], skip = s.skip[head];
    const Activation gate = Activation{static_cast<uint32_t>(s.gate)};

    int32_t *state = span.h + h_offset + static_cast<size_t>((head * N + held * g) * P + p);
    int32_t h[held];
    MI_PRAGMA(unroll)
    for (int n = 0; n < held; ++n) h[n] = held * g + n < N ? state[n * P] : 0;

    const int8_t *b_word = bc + held * g, *c_word = b_word + lanes * held;
    for (int start = 0; start < span.n; start += lanes) {
        int32_t mine = 0;
        MI_PRAGMA(unroll 4)
        for (int i = 0; i < lanes; ++i) {
            // Beyond the last token: the last again with m = 0, which in both forms leaves a state as it is. Without a
            // branch the loads of several tokens are under way at once.
            const bool there = start + i < span.n;
            const size_t row = static_cast<size_t>(span.first + (there ? start + i : span.n - 1));
            const uint32_t B = *reinterpret_cast<const uint32_t *>(b_word + row * (2 * lanes * held));
            const uint32_t C = *reinterpret_cast<const uint32_t *>(c_word + row * (2 * lanes * held));
            const int32_t wide_x = x[row * static_cast<size_t>(E) + static_cast<size_t>(e)] * 64;
            const int32_t step = dt[row * static_cast<size_t>(stride) + static_cast<size_t>(head)];
            const int32_t m = there ? scan_share(form, step, A, base, k) : 0;
            int32_t sum = 0;
            MI_PRAGMA(unroll)
            for (int n = 0; n < held; ++n) {
                const int32_t v = wide_x * int8_of(B, n);
                h[n] = form == Scan::convex ? scan_convex(h[n], v, m, k) : scan_literal(h[n], v, m, k);
                sum += int8_of(C, n) * h[n];
            }
            MI_PRAGMA(unroll)
            for (int apart = together; apart < 32; apart *= 2) sum += __shfl_xor_sync(whole_warp, sum, apart);
            if (i == g) mine = sum;
        }
        if (live && start + g < span.n) {
            const size_t row = static_cast<size_t>(span.first + start + g);
            const size_t at = row * static_cast<size_t>(E) + static_cast<size_t>(e);
            const int32_t y = scan_output(mine, skip, x[at]);
            o[at] =
                z ? gated(y, activated(gate, z[row * static_cast<size_t>(stride) + static_cast<size_t>(e)], 8, 15)) : y;
        }
    }

    MI_PRAGMA(unroll)
    for (int n = 0; n < held; ++n)
        if (live && held * g + n < N) state[n * P] = h[n];
}

template <Scan form, int lanes>
void launch(const mi_scan &s, const mi_span *spans, int count, const int8_t *x, const int8_t *bc, const int16_t *z,
            const int16_t *dt, int stride, uint64_t h_offset, int32_t *o, void *stream) {
    unsigned blocks = 1;  // of a head: head_dim / channels_of(lanes), rounded up
    while (static_cast<int>(blocks) * channels_of(lanes) < s.head_dim) ++blocks;
    MI_LAUNCH((scan_kernel<form, lanes>), dim3(blocks, static_cast<unsigned>(s.heads), static_cast<unsigned>(count)),
              dim3(threads), stream, s, spans, x, bc, z, dt, stride, h_offset, o);
}

template <Scan form, class... Rest>
void launch_lanes(int lanes, Rest... rest) {
    switch (lanes) {
        case 1:
            return launch<form, 1>(rest...);
        case 2:
            return launch<form, 2>(rest...);
        case 4:
            return launch<form, 4>(rest...);
        case 8:
            return launch<form, 8>(rest...);
        default:
            return launch<form, 16>(rest...);
    }
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_dyadic_mamba(const mi_scan *scan, const mi_span *spans, int32_t count, const int8_t *x,
                              const int8_t *bc, const int16_t *z, const int16_t *dt, int32_t stride, uint64_t h_offset,
                              int32_t *o, void *stream) {
    using namespace mi::cuda;
    if (!scan || !scan->k || !scan->A || !scan->base || !scan->skip || !spans || !x || !bc || !dt || !o)
        return refuse(__func__, "null pointer");
    if (count < 1 || count > 65535) return refuse(__func__, "count must be from 1 to 65535");
    if (scan->heads < 1 || scan->heads > 1024 || scan->head_dim < 1 || scan->head_dim > 256 || scan->d_state < 1 ||
        scan->d_state > 64)
        return refuse(__func__, "heads must be from 1 to 1024, head_dim from 1 to 256, d_state from 1 to 64");
    if (reinterpret_cast<uintptr_t>(bc) & 3) return refuse(__func__, "bc must begin at a multiple of 4 bytes");
    const int lanes = launch_state_stride(scan->d_state) >> 2;
    if (scan->form == 0)
        launch_lanes<mi::Scan::convex>(lanes, *scan, spans, count, x, bc, z, dt, stride, h_offset, o, stream);
    else
        launch_lanes<mi::Scan::literal>(lanes, *scan, spans, count, x, bc, z, dt, stride, h_offset, o, stream);
    return launched(__func__);
}
