// The operations that take the time, as a table of functions: one table for each instruction set, the same bits from all.
//
// ops.cpp is the reference and runs everywhere. simd.hpp writes the operations on vectors once for every machine that has
// them; ops_avx2.cpp, ops_avx512.cpp and ops_neon.cpp say what its registers are there, and have matrices of their own.
// Which table serves a process is chosen once, by the processor that it finds.
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

// All names, the fastest first; "scalar" is the last.
extern const char *const isas[5];

// The kernels of an instruction set; null where this build or this machine does not have it.
const Kernels *kernels_of(const char *isa);

// Those of this process: what the environment variable MAMBA_INTEGER_ISA names, or without it the fastest that the
// machine runs. Chosen at the first call. Null if the variable names one that cannot be used here.
const Kernels *kernels();

// Null in builds for other processors. To be run only on a processor that has them.
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();  // F, BW, VL, CD, VNNI, VBMI and GFNI: Ice Lake, Zen 4 and what came after them
const Kernels *neon_kernels();
const Kernels *neon_dotprod_kernels();  // with the dot products of Armv8.2

}  // namespace mi::ops
