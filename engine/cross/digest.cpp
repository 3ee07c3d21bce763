// What scripts/test_cross.sh builds for every machine: models with random weights, the same ones everywhere, generate tokens,
// and the digests of all logits and tokens are printed. The core alone: no C interface, no files, no exceptions needed; and
// after the models are loaded and the sequences made, nothing is allocated.

#include <cstdio>
#include <cstdlib>
#include <new>

#include "../tests/model_writer.hpp"
#include "kernels.hpp"
#include "sampler.hpp"
#include "session.hpp"

namespace {

unsigned long allocations = 0;

struct Case {
    const char *name;
    test::Shape shape;
    int tokens;
};

// Adds int32 values, little-endian whatever the machine is.
void add(mi::Sha256 &sha, const int32_t *values, int n) {
    for (int i = 0; i < n; ++i) {
        uint8_t bytes[4];
        for (int k = 0; k < 4; ++k) bytes[k] = static_cast<uint8_t>(static_cast<uint32_t>(values[i]) >> (8 * k));
        sha.update(bytes, sizeof bytes);
    }
}

void run(const Case &c) {
    const test::Bytes file = test::random_model(c.shape, 7).bytes();
    const mi::Model model(mi::copy_bytes(file.data(), file.size()), file.size());
    const int V = model.config.vocab_size;
    mi::Session session(model, *mi::ops::kernels(), 1);
    std::vector<mi::Candidate> scratch(static_cast<size_t>(V));
    mi::Sha256 logits, tokens;

    const unsigned long before = allocations;
    uint32_t token = static_cast<uint32_t>(V - 1);
    for (int step = 0; step < c.tokens; ++step) {
        session.feed(&token, 1, nullptr);
        add(logits, session.logits(), V);
        const mi::Sampling sampling = {65536, 20, 60000, 1};
        token = mi::sample(session.logits(), V, model.config.embed_mul, model.config.logit_shift, sampling,
                           static_cast<uint64_t>(step), scratch.data());
        const int32_t chosen = static_cast<int32_t>(token);
        add(tokens, &chosen, 1);
    }
    const bool none = allocations == before;
    std::printf("%s %d %s %s%s\n", c.name, c.tokens, mi::to_hex(logits.finish()).c_str(),
                mi::to_hex(tokens.finish()).c_str(), none ? "" : " ALLOCATED");
}

}  // namespace

// Every allocation is counted. (Not inlined, so that compilers do not take new and free for a mismatch.)
[[gnu::noinline]] void *operator new(std::size_t size) {
    ++allocations;
    if (void *p = std::malloc(size > 0 ? size : 1)) return p;
    std::abort();
}
[[gnu::noinline]] void operator delete(void *p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void *p, std::size_t) noexcept { std::free(p); }

int main() {
    test::Shape int8{64, 2, 4, 16, 8, 200}, ternary{48, 2, 3, 16, 8, 120}, literal{40, 1, 3, 9, 6, 90};
    ternary.ternary = ternary.rotation = true;
    literal.literal = literal.squareplus = literal.scalar_norm = true;
    for (const Case &c :
         {Case{"int8", int8, 1000}, {"ternary, rotation", ternary, 400}, {"literal, squareplus", literal, 400}})
        run(c);
    return 0;
}
