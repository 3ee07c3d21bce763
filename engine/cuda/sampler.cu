// The sampler, ARITHMETIC section 11: one block, so that logits never leave the device.
//
// Everything but the draw is one question: with keys in falling order, what is the least key of the shortest prefix whose
// weights reach a sum? The largest logit is the prefix of weight 1; top-k, with weight 1 each, that of k; top-p that of
// its share of the weight. Keys end in the index, reversed, so no two are equal and ties go to the lowest. A radix select
// answers, eight bits a pass, from the top.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int log_threads = 8, threads = 1 << log_threads, warps = threads / 32;
constexpr int index_bits = 17;  // V <= 2^17
constexpr uint32_t last_index = (1u << index_bits) - 1;

constexpr int low_bits = 9;  // of a weight

// Weights in bins lie in two halves, which 2^17 of them do not overflow: the hardware adds 32 bits, and would try 64 again
// and again.
struct Scratch {
    unsigned low[1 << 8], high[1 << 8];
    unsigned long long partial[warps];
    unsigned long long wanted;
    unsigned digit;

    __device__ unsigned long long bin(int i) const {
        return low[i] + (static_cast<unsigned long long>(high[i]) << low_bits);
    }
};

// Of the block: the sum of v over the threads before this one, and over all.
struct Sums {
    uint64_t before, all;
};
__device__ Sums block_sums(uint64_t v, Scratch &s) {
    unsigned long long running = v;
    MI_PRAGMA(unroll)
    for (unsigned apart = 1; apart < 32; apart *= 2) {
        const unsigned long long lower = __shfl_up_sync(whole_warp, running, apart);
        if (lane() >= static_cast<int>(apart)) running += lower;
    }
    if (lane() == 31) s.partial[warp()] = running;
    __syncthreads();
    uint64_t before = running - v, all = 0;
    for (int w = 0; w < warps; ++w) {
        if (w < warp()) before += s.partial[w];
        all += s.partial[w];
    }
    __syncthreads();
    return {before, all};
}

// The least key of that prefix. `wanted` is at least 1 and at most the sum of all weights.
template <class Key, class Weight>
__device__ uint64_t select(int n, int bits, Key key, Weight weight, uint64_t wanted, Scratch &s) {
    static_assert(threads == 1 << 8, "a thread clears one bin");
    uint64_t prefix = 0;
    for (int shift = bits - 8; shift >= 0; shift -= 8) {
        s.low[threadIdx.x] = s.high[threadIdx.x] = 0;
        __syncthreads();
        for (int v = static_cast<int>(threadIdx.x); v < n; v += threads)
            if (key(v) >> shift >> 8 == prefix >> shift >> 8) {
                const unsigned w = static_cast<unsigned>(weight(v)),
                               digit = static_cast<unsigned>(key(v) >> shift & 255);
                atomicAdd(&s.low[digit], w & ((1u << low_bits) - 1));
                if (w >> low_bits) atomicAdd(&s.high[digit], w >> low_bits);
            }
        __syncthreads();
        if (warp() == 0) {  // the digit at which the sum from above reaches what is wanted; a lane has eight of them
            unsigned long long own = 0;
            for (int i = 0; i < 8; ++i) own += s.bin(8 * lane() + i);
            unsigned long long from_here = own;
            MI_PRAGMA(unroll)
            for (unsigned apart = 1; apart < 32; apart *= 2) {
                const unsigned long long higher = __shfl_down_sync(whole_warp, from_here, apart);
                if (lane() + static_cast<int>(apart) < 32) from_here += higher;
            }
            unsigned long long above = from_here - own;
            if (above < wanted && wanted <= from_here) {
                int digit = 8 * lane() + 7;
                for (; above + s.bin(digit) < wanted; --digit) above += s.bin(digit);
                s.digit = static_cast<unsigned>(digit);
                s.wanted = wanted - above;
            }
        }
        __syncthreads();
        prefix |= uint64_t{s.digit} << shift;
        wanted = s.wanted;
        __syncthreads();
    }
    return prefix;
}

__global__ void __launch_bounds__(threads)
    sampler_kernel(const int32_t *__restrict__ logits, int V, uint64_t C, int logit_shift, uint32_t top_k,
                   uint32_t top_p, uint32_t random, uint32_t *__restrict__ token) {
    __shared__ Scratch scratch;
    const auto reversed = [](int v) { return last_index - static_cast<uint32_t>(v); };
    // |logit| < 2^30, so 31 bits, and with the index 48.
    const auto by_logit = [&](int v) {
        return uint64_t{static_cast<uint32_t>(logits[v] + (1 << 30))} << index_bits | reversed(v);
    };
    const auto one = [](int) { return uint64_t{1}; };

    const uint64_t largest = select(V, 48, by_logit, one, 1, scratch);
    if (C == 0) {
        if (threadIdx.x == 0) *token = last_index - static_cast<uint32_t>(largest & last_index);
        return;
    }
    const uint64_t least =
        top_k > 0 && top_k < static_cast<uint32_t>(V) ? select(V, 48, by_logit, one, top_k, scratch) : 0;
    const uint32_t top_logit = static_cast<uint32_t>(largest >> index_bits);
    const auto candidate = [&](int v) -> uint64_t {  // its weight, 17 bits
        const uint64_t key = by_logit(v);
        const uint32_t delta = top_logit - static_cast<uint32_t>(key >> index_bits);
        return key < least ? 0 : static_cast<uint64_t>(sampling_weight(delta, C, logit_shift));
    };

    // Each thread has consecutive tokens, as the draw goes by index.
    const int share = static_cast<int>(pieces(V, log_threads)), first = share * static_cast<int>(threadIdx.x);
    const int last = first + share < V ? first + share : V;
    const auto by_weight = [&](int v) { return candidate(v) << index_bits | reversed(v); };
    uint64_t least_weight = 0;
    if (top_p < 1 << 16) {
        uint64_t mine = 0;
        for (int v = first; v < last; ++v) mine += candidate(v);
        const uint64_t W = block_sums(mine, scratch).all;  // at most 2^33
        least_weight = select(V, 40, by_weight, candidate, (top_p * W + 0xffff) >> 16, scratch);
    }
    const auto kept = [&](int v) { return by_weight(v) < least_weight ? 0 : candidate(v); };

    uint64_t mine = 0;
    for (int v = first; v < last; ++v) mine += kept(v);
    const Sums sums = block_sums(mine, scratch);
    const uint64_t target = sampling_target(random, sums.all);
    if (sums.before <= target && target < sums.before + mine) {  // one thread
        uint64_t running = sums.before;
        for (int v = first; v < last; ++v) {
            running += kept(v);
            if (running > target) {
                *token = static_cast<uint32_t>(v);
                break;
            }
        }
    }
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_sampler(const int32_t *logits, int32_t vocab_size, uint64_t C, int32_t logit_shift, uint32_t top_k,
                         uint32_t top_p, uint32_t random, uint32_t *token, void *stream) {
    using namespace mi::cuda;
    if (!logits || !token) return refuse(__func__, "null pointer");
    if (vocab_size < 1 || vocab_size > 1 << index_bits || C >> 32 || logit_shift < 0 || logit_shift > 31 || top_p < 1 ||
        top_p > 1 << 16)
        return refuse(__func__,
                      "the vocabulary must be from 1 to 2^17, C below 2^32, logit_shift at most 31, "
                      "top_p from 1 to 2^16");
    MI_LAUNCH((sampler_kernel), dim3(1), dim3(threads), stream, logits, vocab_size, C, logit_shift, top_k, top_p,
              random, token);
    return launched(__func__);
}
