// The primitives of arith.hpp against the inequalities that define them, over whole ranges.
//
//   test_arith              seconds: every place where a result changes
//   test_arith exhaustive   minutes: every input of rsqrt and isqrt

#include <cstring>
#include <initializer_list>

#include "arith.hpp"
#include "check.hpp"

namespace {

bool rsqrt_holds(uint32_t v) {
    const mi::Rsqrt r = mi::rsqrt(v);
    const uint64_t u = uint64_t{v} << (2 * (15 - r.j)), y = r.y, one = uint64_t{1} << 62;
    return r.j == (mi::bitlen(v) - 1) >> 1 && y * y * u <= one && (y + 1) * (y + 1) * u > one;
}

bool isqrt_holds(uint32_t v) {
    const uint64_t s = static_cast<uint64_t>(mi::isqrt(v));
    return s * s <= v && (s + 1) * (s + 1) > v;
}

// y changes just above u = 2^62 / y^2, for every y from 2^15 to 2^16. (A test may divide.)
void test_rsqrt() {
    for (uint64_t y = 1 << 15; y <= 1 << 16; ++y) {
        const uint64_t edge = (uint64_t{1} << 62) / (y * y);
        for (uint64_t u = edge - 2; u <= edge + 2; ++u)
            if (u >= uint64_t{1} << 30 && u < uint64_t{1} << 32) CHECK(rsqrt_holds(static_cast<uint32_t>(u)));
    }
    for (uint32_t v = 1; v < 1 << 20; ++v) CHECK(rsqrt_holds(v));
    for (int bit = 0; bit < 32; ++bit)
        for (uint32_t v : {uint32_t{1} << bit, (uint32_t{1} << bit) + 1, (uint32_t{1} << bit) - 1})
            if (v != 0) CHECK(rsqrt_holds(v));
    CHECK(rsqrt_holds(UINT32_MAX));
    static_assert(mi::rsqrt(1).y == 1 << 16 && mi::rsqrt(4).y == 1 << 16 && mi::rsqrt(4).j == 1);
}

void test_isqrt() {
    CHECK(mi::isqrt(0) == 0);
    for (uint64_t s = 1; s < 1 << 16; ++s) {
        CHECK(static_cast<uint64_t>(mi::isqrt(static_cast<uint32_t>(s * s))) == s);
        CHECK(static_cast<uint64_t>(mi::isqrt(static_cast<uint32_t>(s * s - 1))) == s - 1);
    }
    CHECK(mi::isqrt(UINT32_MAX) == 65535);
}

void test_activations() {
    for (int64_t c = -32767; c <= 32767; ++c) {
        const int32_t c32 = static_cast<int32_t>(c);
        int64_t s = mi::isqrt(static_cast<uint32_t>(c * c + (1 << 18)));
        const int64_t q = mi::sigmoid12(c32);
        CHECK(q * 2 * s <= (s + c) * 4096 && (s + c) * 4096 < (q + 1) * 2 * s);
        CHECK(q >= 0 && q <= 4095);
        CHECK(mi::squareplus(c32) == (c + s) >> 1);
        CHECK(mi::squareplus(c32) >= 0 && mi::squareplus(c32) <= 1 << 15);
    }
    static_assert(mi::sigmoid12(0) == 2048 && mi::squareplus(0) == 256);
}

void test_norm() {
    for (uint64_t S1 = 1 << 14; S1 < 1 << 16; ++S1) {  // S' takes every one of these values
        for (int j : {0, 7, 16}) {
            const uint64_t S = S1 << (2 * j);
            CHECK(mi::norm_shift(S) == j);
            const uint64_t mu = static_cast<uint64_t>(mi::norm_mantissa(S, j, 8));
            CHECK(mu * mu * S1 <= 1 << 30 && (mu + 1) * (mu + 1) * S1 > 1 << 30);
            CHECK(mu >= 128 && mu <= 256);
            CHECK(mi::norm_mantissa(S, j, 0) == 128);
        }
    }
    CHECK(mi::norm_shift((uint64_t{1} << 49) - 1) == 17);
    CHECK(mi::norm_out_shift(1) == 20 && mi::norm_out_shift(192) == 16 && mi::norm_out_shift(1 << 14) == 13);
    // d = 1, x = 131071: S is just above 2^34, so j = 10 and mu = 256; n = 2048; 2048 * 256 * 127 / 2^20 = 63.5, and
    // halves go up.
    CHECK(mi::norm_element(131071, 127, 10, 256, 20) == 64 && mi::norm_element(-131071, 127, 10, 256, 20) == -63);
}

void test_rounding() {
    static_assert(mi::rshift(3, 1) == 2 && mi::rshift(-3, 1) == -1 && mi::rshift(-1, 1) == 0 && mi::rshift(5, 0) == 5);
    static_assert(mi::rshift(-5, 2) == -1 && mi::rshift(-6, 2) == -1 && mi::rshift(-7, 2) == -2);
    static_assert(mi::sat<8>(-128) == -127 && mi::sat<8>(200) == 127 && mi::sat<16>(-32768) == -32767 &&
                  mi::sat<6>(-40) == -31);
    static_assert(mi::bitlen(0) == 0 && mi::bitlen(1) == 1 && mi::bitlen(255) == 8 && mi::bitlen(256) == 9);
}

// The hull argument of §7 at its corners: the state never leaves the values that drive it.
void test_scan() {
    constexpr int32_t V = 127 * 31 * 64;
    for (int k = 8; k <= 15; ++k)
        for (int32_t m : {1, 2, 128, 255})
            for (int32_t v : {-V, -1, 0, 1, V}) {
                int32_t h = -V;
                for (int step = 0; step < 300; ++step) {
                    const int32_t next = mi::scan_convex(h, v, m, k);
                    CHECK(next >= (h < v ? h : v) && next <= (h < v ? v : h));
                    h = next;
                }
                int32_t l = 0;
                for (int step = 0; step < 2000; ++step) l = mi::scan_literal(l, v, m, k);
                CHECK(l < 1 << 19 && l > -(1 << 19));
            }
}

void exhaustive() {
    for (uint64_t v = 1; v <= UINT32_MAX; ++v)
        CHECK(rsqrt_holds(static_cast<uint32_t>(v)) && isqrt_holds(static_cast<uint32_t>(v)));
}

}  // namespace

int main(int argc, char **argv) {
    test_rounding();
    test_rsqrt();
    test_isqrt();
    test_activations();
    test_norm();
    test_scan();
    if (argc > 1 && std::strcmp(argv[1], "exhaustive") == 0) exhaustive();
    return test::report("test_arith");
}
