// The operations that take the time, as a table of functions: one table for each instruction set, the same bits from all.
//
// ops.cpp is the reference and runs everywhere; ops_avx2.cpp runs where the processor has AVX2. Which one serves a
// process is chosen once.
#pragma once

#include "ops.hpp"

namespace mi::ops {

// Each member as the function of the same name in ops.hpp.
struct Kernels {
    const char *isa;
    decltype(&ops::norm) norm;
    decltype(&ops::linear) linear;
    decltype(&ops::conv) conv;
    decltype(&ops::activate) activate;
    decltype(&ops::scan) scan;
    decltype(&ops::gate) gate;
    decltype(&ops::add) add;
    decltype(&ops::logits) logits;
};

extern const Kernels scalar_kernels;

// The kernels of an instruction set, "scalar" or "avx2"; null where this build or this machine does not have it.
const Kernels *kernels_of(const char *isa);

// Those of this process: what the environment variable MAMBA_INTEGER_ISA names, or without it the fastest that the
// machine runs. Chosen at the first call. Null if the variable names one that cannot be used here.
const Kernels *kernels();

// ops_avx2.cpp's; null in builds for other processors. To be run only on a processor that has AVX2.
const Kernels *avx2_kernels();

}  // namespace mi::ops
