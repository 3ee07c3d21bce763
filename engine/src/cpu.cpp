#include "cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mi {
namespace {

#if defined(__x86_64__)

constexpr bool has(unsigned bits, int bit) { return (bits >> bit & 1) != 0; }

// Asked of the processor itself: the compiler's __builtin_cpu_supports needs a part of libgcc that not every linker
// command brings in. Vector registers also need the operating system, which saves them (xgetbv).
Cpu look() {
    Cpu found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool ssse3_and_sse41 = has(c, 9) && has(c, 19), osxsave = has(c, 27), avx = has(c, 28);
    unsigned b7, c7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return found;
    found.sha = has(b7, 29) && ssse3_and_sse41;
    if (!osxsave || !avx) return found;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    found.avx2 = (low & 0x06) == 0x06 && has(b7, 5);
    // F, CD, BW and VL; VBMI, GFNI and VNNI; and the upper registers and masks.
    found.avx512 = found.avx2 && (low & 0xe6) == 0xe6 && has(b7, 16) && has(b7, 28) && has(b7, 30) && has(b7, 31) &&
                   has(c7, 1) && has(c7, 8) && has(c7, 11);
    return found;
}

#elif defined(__aarch64__)

Cpu look() {
    Cpu found;
#if defined(__linux__)
    found.dotprod = (getauxval(AT_HWCAP) & 1ul << 20) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    found.dotprod = true;  // every Apple processor of this architecture but the first ones, which ran no macOS
#endif
    return found;
}

#else

Cpu look() { return {}; }

#endif

}  // namespace

const Cpu &cpu() {
    static const Cpu found = look();
    return found;
}

}  // namespace mi
