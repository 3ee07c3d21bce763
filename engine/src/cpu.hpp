// What the processor under this process can do, as far as the engine makes use of it.
#pragma once

namespace mi {

struct Cpu {
    bool avx2 = false, avx512 = false, sha = false;  // avx512: with all that ops_avx512.cpp uses
    bool dotprod = false;
};

const Cpu &cpu();

}  // namespace mi
