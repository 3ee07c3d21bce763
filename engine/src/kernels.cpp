#include "kernels.hpp"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mi::ops {
namespace {

// Whether the processor has AVX2 and the operating system keeps its registers. Asked of the processor itself: the
// compiler's __builtin_cpu_supports needs a part of libgcc that not every linker command brings in.
bool has_avx2() {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    constexpr unsigned osxsave = 1u << 27, avx = 1u << 28, avx2 = 1u << 5;
    if ((c & osxsave) == 0 || (c & avx) == 0) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return false;  // the lower and the upper halves of the registers
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & avx2) != 0;
#else
    return false;
#endif
}

const Kernels *choose() {
    const char *wanted = std::getenv("MAMBA_INTEGER_ISA");
    if (wanted && *wanted) return kernels_of(wanted);
    const Kernels *fast = kernels_of("avx2");
    return fast ? fast : &scalar_kernels;
}

}  // namespace

const Kernels scalar_kernels = {"scalar", norm, linear, conv, activate, scan, gate, add, logits};

const Kernels *kernels_of(const char *isa) {
    if (std::strcmp(isa, "scalar") == 0) return &scalar_kernels;
    if (std::strcmp(isa, "avx2") == 0 && has_avx2()) return avx2_kernels();
    return nullptr;
}

const Kernels *kernels() {
    static const Kernels *const chosen = choose();
    return chosen;
}

}  // namespace mi::ops
