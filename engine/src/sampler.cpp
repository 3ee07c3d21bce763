#include "sampler.hpp"

#include <algorithm>

#include "arith.hpp"

namespace mi {
namespace {

// Largest key first, ties to the lowest token: a total order, so that every way of sorting gives the same.
bool better(const Candidate &a, const Candidate &b) { return a.key != b.key ? a.key > b.key : a.token < b.token; }
bool earlier(const Candidate &a, const Candidate &b) { return a.token < b.token; }

uint32_t low(uint64_t v) { return static_cast<uint32_t>(v); }
uint32_t high(uint64_t v) { return static_cast<uint32_t>(v >> 32); }

uint64_t total(const Candidate *candidates /* [n] */, int n) {
    uint64_t sum = 0;
    for (int i = 0; i < n; ++i) sum += static_cast<uint64_t>(candidates[i].key);
    return sum;
}

}  // namespace

Block philox4x32(Block c, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xd2511f53} * c[0], b = uint64_t{0xcd9e8d57} * c[2];
        c = {high(b) ^ c[1] ^ key0, low(b), high(a) ^ c[3] ^ key1, low(a)};
        key0 += 0x9e3779b9, key1 += 0xbb67ae85;
    }
    return c;
}

uint32_t random_word(uint64_t seed, uint64_t step) {
    return philox4x32({low(step), high(step), 0, 0}, low(seed), high(seed))[0];
}

// The largest C <= 2^32 - 1 with C T <= m_e * 94548 * 2^16, bit by bit from the top (94548 = round(2^16 log2 e)).
uint64_t inverse_temperature(int embed_mul, uint32_t temperature) {
    const uint64_t limit = static_cast<uint64_t>(embed_mul) * 94548 << 16;  // < 2^43
    uint64_t C = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const uint64_t next = C | uint64_t{1} << bit;
        if (next * temperature <= limit) C = next;  // < 2^54
    }
    return C;
}

uint32_t sample(const int32_t *logits, int vocab_size, int embed_mul, int logit_shift, const Sampling &sampling,
                uint64_t step, Candidate *scratch) {
    const int32_t *largest = std::max_element(logits, logits + vocab_size);  // the first of several
    if (sampling.temperature == 0) return static_cast<uint32_t>(largest - logits);

    int n = vocab_size;
    for (int v = 0; v < n; ++v) scratch[v] = {logits[v], static_cast<uint32_t>(v)};
    if (sampling.top_k > 0 && sampling.top_k < static_cast<uint32_t>(n)) {
        n = static_cast<int>(sampling.top_k);
        std::nth_element(scratch, scratch + n, scratch + vocab_size, better);
    }

    const uint64_t C = inverse_temperature(embed_mul, sampling.temperature);
    for (int i = 0; i < n; ++i) {
        const uint32_t delta = static_cast<uint32_t>(*largest - scratch[i].key);  // < 2^31, as |logit| < 2^30
        scratch[i].key = sampling_weight(delta, C, logit_shift);
    }

    if (sampling.top_p < 1 << 16) {
        std::sort(scratch, scratch + n, better);
        const uint64_t wanted = sampling.top_p * total(scratch, n);
        uint64_t kept = 0;
        int prefix = 0;
        while (kept << 16 < wanted) kept += static_cast<uint64_t>(scratch[prefix++].key);
        n = prefix;
    }

    std::sort(scratch, scratch + n, earlier);
    const uint64_t target = sampling_target(random_word(sampling.seed, step), total(scratch, n));
    uint64_t running = 0;
    int chosen = 0;
    for (;; ++chosen) {
        running += static_cast<uint64_t>(scratch[chosen].key);
        if (running > target) return scratch[chosen].token;
    }
}

}  // namespace mi
