// Choosing a token from integer logits: spec/ARITHMETIC.md §11. The same seed gives the same token on every machine.
#pragma once

#include <array>
#include <cstdint>

namespace mi {

struct Sampling {
    uint32_t temperature;  // Q16, 0 is greedy, at most 2^22
    uint32_t top_k;        // 0 is off
    uint32_t top_p;        // Q16, 1 ... 2^16, 2^16 is off
    uint64_t seed;
};

struct Candidate {
    int32_t key;  // its logit, later its weight
    uint32_t token;
};

using Block = std::array<uint32_t, 4>;

// Philox4x32-10, the counter-based generator of Salmon et al. (2011).
Block philox4x32(Block counter, uint32_t key0, uint32_t key1);

// The word of step 7, for the token number `step` of a generation.
uint32_t random_word(uint64_t seed, uint64_t step);

// The C of step 3: what turns a distance between logits into a power of two.
uint64_t inverse_temperature(int embed_mul, uint32_t temperature);

uint32_t sample(const int32_t *logits /* [V] */, int vocab_size, int embed_mul, int logit_shift,
                const Sampling &sampling, uint64_t step, Candidate *scratch /* [V] */);

}  // namespace mi
