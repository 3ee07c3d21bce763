#include "kernels.hpp"

#include <cstdlib>
#include <cstring>

#include "cpu.hpp"

namespace mi::ops {
namespace {

const Kernels *choose() {
    const char *wanted = std::getenv("MAMBA_INTEGER_ISA");
    if (wanted && *wanted) return kernels_of(wanted);
    for (const char *isa : isas)
        if (const Kernels *fast = kernels_of(isa)) return fast;
    return &scalar_kernels;
}

}  // namespace

const Kernels scalar_kernels = {"scalar", norm, linear, conv, activate, scan, gate, add, logits};

const char *const isas[5] = {"avx512", "avx2", "neon-dotprod", "neon", "scalar"};

const Kernels *kernels_of(const char *isa) {
    const auto is = [&](const char *name) { return std::strcmp(isa, name) == 0; };
    if (is("scalar")) return &scalar_kernels;
    if (is("avx2") && cpu().avx2) return avx2_kernels();
    if (is("avx512") && cpu().avx512) return avx512_kernels();
    if (is("neon")) return neon_kernels();
    if (is("neon-dotprod") && cpu().dotprod) return neon_dotprod_kernels();
    return nullptr;
}

const Kernels *kernels() {
    static const Kernels *const chosen = choose();
    return chosen;
}

}  // namespace mi::ops
