// Every instruction set that this machine runs against the scalar reference: each operation over lengths, misalignments,
// random and extreme inputs; activations over all of theirs; whole models, fed in pieces of every size.

#include "kernels.hpp"

#include <cstdlib>
#include <cstring>

#include "check.hpp"
#include "mamba_integer.h"
#include "model_writer.hpp"
#include "session.hpp"

namespace {

using mi::ops::Kernels;
using mi::ops::scalar_kernels;

constexpr int longest = 130;

// `n` values that begin `shift` elements after an aligned address, in a block that ends with them: what reads or writes
// beyond is found by the address sanitizer, and by guards on the side that is written.
template <class T>
class Values {
  public:
    Values(size_t n, int shift) : n_(n), shift_(static_cast<size_t>(shift)), block_(shift_ + n) {}

    T *data() { return block_.data() + shift_; }
    const T *data() const { return block_.data() + shift_; }
    T &operator[](size_t i) { return data()[i]; }
    bool operator==(const Values &other) const { return std::equal(data(), data() + n_, other.data()); }

    // How: 0 random, 1 all high, 2 all low, 3 high and low by turns, 4 high and low at random, 5 zero.
    Values &fill(test::Random &random, int how, int low, int high) {
        for (size_t i = 0; i < n_; ++i)
            (*this)[i] = static_cast<T>(how == 0   ? random.within(low, high)
                                        : how == 1 ? high
                                        : how == 2 ? low
                                        : how == 3 ? (i & 1 ? low : high)
                                        : how == 4 ? (random.within(0, 1) ? low : high)
                                                   : 0);
        return *this;
    }

  private:
    size_t n_, shift_;
    std::vector<T> block_;
};

constexpr int fills = 6;

size_t size(int n) { return static_cast<size_t>(n); }

void test_activate(const Kernels &k, test::Random &random) {
    std::vector<int16_t> all, want(65536), got(65536);
    for (int c = -32768; c < 32768; ++c) all.push_back(static_cast<int16_t>(c));
    struct Use {
        int q, bits;
    };
    for (mi::Activation form : {mi::Activation::silu, mi::Activation::squareplus})
        for (Use use : {Use{5, 8}, Use{3, 6}, Use{8, 16}, Use{8, 15}}) {
            scalar_kernels.activate(form, all.data(), 65536, use.q, use.bits, want.data());
            k.activate(form, all.data(), 65536, use.q, use.bits, got.data());
            CHECK(want == got);
            for (int n = 1; n <= longest; ++n) {
                const int shift = n & 7;
                Values<int16_t> c(size(n), shift), a(size(n), shift), b(size(n), shift + 1);
                c.fill(random, 0, -32767, 32767);
                scalar_kernels.activate(form, c.data(), n, use.q, use.bits, a.data());
                k.activate(form, c.data(), n, use.q, use.bits, b.data());
                CHECK(std::equal(a.data(), a.data() + n, b.data()));
            }
        }
    // Every bit of sigmoid12 and squareplus: with q = f nothing is rounded away but by the 16 bits of the result.
    for (int c = -32767; c <= 32767; ++c) all[size(c + 32768)] = static_cast<int16_t>(c);
    for (int q = 5; q <= 20; ++q) {
        scalar_kernels.activate(mi::Activation::silu, all.data(), 65536, q, 16, want.data());
        k.activate(mi::Activation::silu, all.data(), 65536, q, 16, got.data());
        CHECK(want == got);
    }
}

void test_norm(const Kernels &k, test::Random &random, int n, int shift, int how) {
    Values<int32_t> x(size(n), shift);
    Values<int8_t> g(size(n), shift), a(size(n), shift), b(size(n), shift);
    const int top = (1 << random.within(1, 17)) - 1;
    x.fill(random, how, -top, top), g.fill(random, random.within(0, 5), -127, 127);
    for (int mantissa : {0, 8}) {
        const mi::ops::NormScale want = scalar_kernels.norm(x.data(), g.data(), n, mantissa, a.data());
        const mi::ops::NormScale got = k.norm(x.data(), g.data(), n, mantissa, b.data());
        CHECK(want.j == got.j && want.mu == got.mu && a == b);
    }
}

// Rows as a matrix wants its inputs: zero beyond their elements.
Values<int8_t> inputs(test::Random &random, int how, int tokens, int cols, int shift) {
    const size_t stride = size(mi::ops::padded(cols));
    Values<int8_t> x(size(tokens) * stride, shift);
    x.fill(random, how, -127, 127);
    for (size_t t = 0; t < size(tokens); ++t)
        std::fill(x.data() + t * stride + size(cols), x.data() + (t + 1) * stride, int8_t{0});
    return x;
}

// Some of the rows, and no others, are written.
void compare_linear(const Kernels &k, test::Random &random, const mi::Linear &p, const Values<int8_t> &x, int tokens,
                    int shift) {
    const size_t n = size(tokens) * size(p.rows);
    Values<int16_t> a(n, shift), b(n, shift + 1);
    a.fill(random, 0, -5, 5), std::copy_n(a.data(), n, b.data());
    const int first = random.within(0, p.rows - 1), last = random.within(first + 1, p.rows);
    for (auto [begin, end] : {std::pair(first, last), std::pair(0, p.rows)}) {
        scalar_kernels.linear(p, begin, end, x.data(), tokens, a.data());
        k.linear(p, begin, end, x.data(), tokens, b.data());
        CHECK(std::equal(a.data(), a.data() + n, b.data()));
    }
}

void test_matrix(const Kernels &k, test::Random &random, int cols, int rows, int tokens, int shift, int how) {
    Values<int8_t> w(size(rows) * size(cols), shift);
    w.fill(random, how, -127, 127);
    const Values<int8_t> x = inputs(random, random.within(0, 4), tokens, cols, shift);
    // As the loader has it: 127 * 127 * cols * mul + half < 2^30.
    int most = 255;
    while (most > 1 && int64_t{127} * 127 * cols * most + (1 << 23) >= 1 << 30) --most;
    Values<int16_t> mul(size(rows), shift);
    mul.fill(random, 0, 1, most);
    compare_linear(k, random, {w.data(), mul.data(), rows, cols, random.within(0, 24), false}, x, tokens, shift);

    const size_t n = size(tokens) * size(rows);
    Values<int32_t> c(n, shift), d(n, shift);
    std::vector<int32_t *> to_c, to_d;
    for (size_t t = 0; t < size(tokens); ++t)
        to_c.push_back(c.data() + t * size(rows)), to_d.push_back(d.data() + t * size(rows));
    const int first = random.within(0, rows - 1), last = random.within(first + 1, rows);
    for (auto [begin, end] : {std::pair(first, last), std::pair(0, rows)}) {
        scalar_kernels.logits(w.data(), cols, begin, end, x.data(), tokens, to_c.data());
        k.logits(w.data(), cols, begin, end, x.data(), tokens, to_d.data());
        CHECK(c == d);
    }
}

void test_ternary(const Kernels &k, test::Random &random, int cols, int rows, int tokens, int shift, int how) {
    // Codes 0, 1, 2; the extremes are all +1, all -1, and both in turn.
    const int stride = (cols + 3) >> 2;
    Values<uint8_t> w(size(rows) * size(stride), shift);
    for (int o = 0; o < rows; ++o)
        for (int i = 0; i < cols; ++i) {
            const int code = how == 0   ? random.within(0, 2)
                             : how == 1 ? 1
                             : how == 2 ? 2
                             : how == 3 ? 1 + (i & 1)
                             : how == 4 ? random.within(1, 2)
                                        : 0;
            uint8_t &byte = w[size(o) * size(stride) + size(i >> 2)];
            byte = static_cast<uint8_t>(byte | code << 2 * (i & 3));
        }
    const Values<int8_t> x = inputs(random, random.within(0, 4), tokens, cols, shift);
    Values<int16_t> mul(size(rows), shift);
    mul.fill(random, 0, 1, 255);
    compare_linear(k, random, {w.data(), mul.data(), rows, cols, random.within(0, 24), true}, x, tokens, shift);
}

void test_conv(const Kernels &k, test::Random &random, int n, int shift, int how) {
    Values<int16_t> p(4 * size(n), shift), bias(size(n), shift), a(size(n), shift), b(size(n), shift);
    Values<int8_t> w(4 * size(n), shift);
    p.fill(random, how, -32767, 32767);
    w.fill(random, random.within(0, 4), -127, 127), bias.fill(random, random.within(0, 4), -32767, 32767);
    const int16_t *const taps[4] = {p.data(), p.data() + 2 * n, p.data() + n, p.data() + 3 * n};
    scalar_kernels.conv(w.data(), bias.data(), taps, n, a.data());
    k.conv(w.data(), bias.data(), taps, n, b.data());
    CHECK(a == b);
}

void test_scan(const Kernels &k, test::Random &random, int head_dim, int d_state, mi::Scan form, int shift, int how) {
    const int first = 1, heads = 2, E = heads * head_dim, all = first + heads;
    Values<int16_t> x(size(E), shift), B(size(d_state), shift), C(size(d_state), shift), dt(2, shift),
        base(size(all), shift), y(size(E), shift), z(size(E), shift);
    Values<int8_t> share(size(all), shift), skip(size(all), shift);
    Values<int32_t> A(size(all), shift), h(size(E) * size(d_state), shift), m(2, shift), l(2, shift);
    share.fill(random, 0, 8, 15), skip.fill(random, how, -127, 127), A.fill(random, how == 1 ? 1 : 0, 1, 1 << 19);
    base.fill(random, 0, -32767, 32767), h.fill(random, how, -251968, 251968);
    mi::Layer layer{};
    layer.scan_k = share.data(), layer.scan_skip = skip.data(), layer.scan_A = A.data(), layer.scan_base = base.data();
    Values<int32_t> same = h;
    for (int step = 0; step < 4; ++step) {
        x.fill(random, how, -127, 127), B.fill(random, how, -31, 31), C.fill(random, how, -31, 31);
        dt.fill(random, 0, -1000, 1000);
        const mi::ops::ScanShape shape = {first, heads, head_dim, d_state, form};
        scalar_kernels.scan(layer, shape, x.data(), B.data(), C.data(), dt.data(), h.data(), m.data(), y.data());
        k.scan(layer, shape, x.data(), B.data(), C.data(), dt.data(), same.data(), l.data(), z.data());
        CHECK(h == same && m == l && y == z);
    }
}

void test_gate_and_add(const Kernels &k, test::Random &random, int n, int shift, int how) {
    Values<int16_t> y(size(n), shift), g(size(n), shift);
    Values<int32_t> a(size(n), shift), b(size(n), shift);
    y.fill(random, how, -32767, 32767), g.fill(random, random.within(0, 4), -16383, 16383);
    scalar_kernels.gate(y.data(), g.data(), n, a.data());
    k.gate(y.data(), g.data(), n, b.data());
    CHECK(a == b);
    a.fill(random, how, -131071, 131071), b = a;
    scalar_kernels.add(y.data(), n, a.data());
    k.add(y.data(), n, b.data());
    CHECK(a == b);
}

void test_operations(const Kernels &k) {
    test::Random random{11};
    test_activate(k, random);
    for (int n = 1; n <= longest; ++n)
        for (int how = 0; how < fills; ++how) {
            const int shift = (n + how) & 31;
            test_norm(k, random, n, shift, how);
            test_conv(k, random, n, shift, how);
            test_gate_and_add(k, random, n, shift, how);
            test_matrix(k, random, n, random.within(1, 20), random.within(1, 5), shift, how);
            test_ternary(k, random, n, random.within(1, 20), random.within(1, 5), shift, how);
            for (mi::Scan form : {mi::Scan::convex, mi::Scan::literal})
                test_scan(k, random, n <= 40 ? n : random.within(1, 40), 1 + (n + how) % 64, form, shift, how);
        }
    for (int how = 0; how < fills; ++how) {
        for (int rows = 1; rows <= 17; ++rows) {
            test_matrix(k, random, 96, rows, 2, rows, how);
            test_ternary(k, random, 300, rows, 5, rows, how);
        }
        for (int tokens = 1; tokens <= 18; ++tokens) {
            test_matrix(k, random, 8192, 3, tokens, tokens, how);
            test_ternary(k, random, 8192, 3, tokens, tokens, how);
        }
        for (int tokens : {31, 68, 131}) {  // more than are kept at a time
            test_matrix(k, random, 200, 18, tokens, 1, how);
            test_ternary(k, random, 200, 18, tokens, 1, how);
        }
        for (int cols : {2049, 4100, 8177}) {  // more than a panel holds
            test_matrix(k, random, cols, 9, 3, 1, how);
            test_matrix(k, random, cols, 17, 7, 1, how);
            test_ternary(k, random, cols, 9, 3, 1, how);
            test_ternary(k, random, cols, 17, 7, 1, how);
        }
        test_norm(k, random, 8192, 0, how);
        test_norm(k, random, 4093, 3, how);
        test_scan(k, random, 32, 16, mi::Scan::convex, 0, how);
        test_scan(k, random, 256, 64, mi::Scan::convex, 1, how);
    }
}

// ---- Whole models ---------------------------------------------------------------------------------------------------

std::string logits_digest(const mi::Model &model, const Kernels &k, const std::vector<uint32_t> &tokens, size_t piece) {
    mi::Session session(model, k);
    mi::Sha256 sha;
    const size_t V = size(model.config.vocab_size);
    std::vector<int32_t> logits(tokens.size() * V);
    for (size_t at = 0; at < tokens.size(); at += piece) {
        const size_t n = std::min(piece, tokens.size() - at);
        session.feed(tokens.data() + at, n, logits.data() + at * V);
        CHECK(std::equal(session.logits(), session.logits() + V, logits.data() + (at + n - 1) * V));
    }
    CHECK(session.position() == tokens.size());
    for (int32_t v : logits) {
        uint8_t bytes[4];
        for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(static_cast<uint32_t>(v) >> (8 * i));
        sha.update(bytes, sizeof bytes);
    }
    return mi::to_hex(sha.finish());
}

mi::Model load(const test::Shape &shape, uint64_t seed) {
    const test::Bytes file = test::random_model(shape, seed).bytes();
    return mi::Model(mi::copy_bytes(file.data(), file.size()), file.size());
}

void test_models(const std::vector<const Kernels *> &sets) {
    test::Random random{5};
    for (uint32_t i = 0; i < 40; ++i) {
        const auto within = [&](int low, int high) { return static_cast<uint32_t>(random.within(low, high)); };
        const test::Shape shape =
            i == 0
                ? test::Shape{192, 2, 12, 32, 16, 300}
                : test::Shape{within(1, 70), 2,          within(1, 5), within(1, 20), 2 * within(1, 10), within(2, 60),
                              i % 5 == 4,    i % 3 == 2, i % 2 == 1,   i % 4 == 3,    i % 7 == 6};
        const mi::Model model = load(shape, i);
        const std::vector<uint32_t> tokens = random.vector<uint32_t>(53, 0, static_cast<int>(shape.V) - 1);
        const std::string want = logits_digest(model, scalar_kernels, tokens, 1);
        for (const Kernels *k : sets) {
            for (size_t piece : {1, 2, 15, 16, 17, 53}) CHECK(logits_digest(model, *k, tokens, piece) == want);
            // Without the logits in between: those of the last token are the same.
            mi::Session one(model, scalar_kernels), other(model, *k);
            for (const uint32_t &token : tokens) one.feed(&token, 1, nullptr);
            other.feed(tokens.data(), tokens.size(), nullptr);
            CHECK(std::equal(one.logits(), one.logits() + shape.V, other.logits()));
        }
    }
}

void test_choice() {
    const char *wanted = std::getenv("MAMBA_INTEGER_ISA");
    const Kernels *fast = nullptr;
    for (const char *isa : mi::ops::isas)
        if (!fast) fast = mi::ops::kernels_of(isa);
    CHECK(mi::ops::kernels_of("scalar") == &scalar_kernels && !mi::ops::kernels_of("mmx"));
    if (!wanted || !*wanted) CHECK(std::strcmp(mi_isa(), fast->isa) == 0);
    if (wanted && std::strcmp(wanted, "scalar") == 0) CHECK(std::strcmp(mi_isa(), "scalar") == 0);
    if (wanted && std::strcmp(wanted, "none of these") == 0) {
        const test::Bytes file = test::random_model({}, 1).bytes();
        mi_model *model = nullptr;
        mi_session *session = nullptr;
        CHECK(mi_model_load_memory(file.data(), file.size(), &model) == MI_OK);
        CHECK(mi_session_new(model, &session) == MI_ERR_ARGUMENT && !session);
        CHECK(std::strcmp(mi_isa(), "none") == 0 && std::strstr(mi_last_error(), "MAMBA_INTEGER_ISA"));
        mi_model_free(model);
    }
}

}  // namespace

int main(int argc, char **argv) {
    test_choice();
    if (argc > 1 && std::strcmp(argv[1], "choice") == 0) return test::report("test_kernels choice");
    std::vector<const Kernels *> sets;
    for (const char *isa : mi::ops::isas)
        if (const Kernels *k = mi::ops::kernels_of(isa))
            sets.push_back(k);
        else
            std::printf("test_kernels: this machine does not run %s\n", isa);
    for (const Kernels *k : sets) test_operations(*k);
    test_models(sets);
    return test::report("test_kernels");
}
