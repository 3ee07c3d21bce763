// The CUDA kernels without a GPU: the sources of engine/cuda, run by cuda/host_shim.hpp, against the scalar reference and the
// golden vectors, bit for bit, with the threads in several orders; whole sequences on the "device" against the CPU; devices
// that fail; and the shim itself, which must see what is wrong. Compiled by nvcc (scripts/test_gpu.sh), the same on a GPU,
// without what is about the shim.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "check.hpp"
#include "device.cuh"
#include "json.hpp"
#include "mamba_integer.h"
#include "mamba_integer_kernels.h"
#include "model_writer.hpp"
#include "sampler.hpp"
#include "session.hpp"

namespace {

namespace ops = mi::ops;
using test::Random;

size_t size(int n) { return static_cast<size_t>(n); }

// An array on the device.
template <class T>
class Array {
  public:
    explicit Array(const std::vector<T> &values) : n_(values.size()) {
        void *p = nullptr;
        CHECK(cudaMalloc(&p, std::max(n_ * sizeof(T), size_t{1})) == cudaSuccess);
        p_ = static_cast<T *>(p);
        cudaMemcpyAsync(p_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice, nullptr);
    }
    explicit Array(size_t n) : Array(std::vector<T>(n)) {}
    ~Array() { cudaFree(p_); }
    Array(const Array &) = delete;
    T *get() const { return p_; }
    std::vector<T> values() const {
        std::vector<T> out(n_);
        cudaMemcpyAsync(out.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost, nullptr);
        return out;
    }

  private:
    size_t n_;
    T *p_;
};

// How: 0 random, 1 all high, 2 all low, 3 high or low, 4 zero.
template <class T>
std::vector<T> filled(Random &random, size_t n, int how, int low, int high) {
    std::vector<T> out(n);
    for (T &v : out)
        v = static_cast<T>(how == 0   ? random.within(low, high)
                           : how == 1 ? high
                           : how == 2 ? low
                           : how == 3 ? (random.within(0, 1) ? low : high)
                                      : 0);
    return out;
}
constexpr int fills = 5;

// Rows of `width` values, each continued with zeros.
template <class T>
std::vector<T> spread(const std::vector<T> &values, size_t width, size_t stride) {
    std::vector<T> out;
    for (size_t at = 0; at < values.size(); at += width) {
        out.insert(out.end(), values.begin() + static_cast<ptrdiff_t>(at),
                   values.begin() + static_cast<ptrdiff_t>(at + width));
        out.resize(out.size() + stride - width);
    }
    return out;
}

// ---- Operations -----------------------------------------------------------------------------------------------------

void test_activations() {
    std::vector<int16_t> all, want(65536);
    for (int c = -32768; c < 32768; ++c) all.push_back(static_cast<int16_t>(c));
    const Array<int16_t> c(all), out(want);
    struct Use {
        int q, bits;
    };
    for (Use use : {Use{5, 8}, Use{3, 6}, Use{8, 16}, Use{8, 15}}) {
        ops::activate(mi::Activation::squareplus, all.data(), 65536, use.q, use.bits, want.data());
        CHECK(launch_squareplus(c.get(), 65536, use.q, use.bits, out.get(), nullptr) == MI_OK);
        CHECK(out.values() == want);
        ops::activate(mi::Activation::silu, all.data(), 65536, use.q, use.bits, want.data());
        CHECK(launch_silu(c.get(), 65536, use.q, use.bits, out.get(), nullptr) == MI_OK);
        CHECK(out.values() == want);
    }
    Random random{1};
    for (int n : {1, 2, 31, 32, 33, 255, 256, 257, 1000})
        for (int how = 0; how < fills; ++how) {
            const std::vector<int16_t> y = filled<int16_t>(random, size(n), how, -32767, 32767),
                                       g = filled<int16_t>(random, size(n), random.within(0, 4), -16383, 16383);
            std::vector<int32_t> o(size(n));
            ops::gate(y.data(), g.data(), n, o.data());
            const Array<int16_t> y_there(y), g_there(g);
            const Array<int32_t> o_there(size(n));
            CHECK(launch_gate(y_there.get(), g_there.get(), n, o_there.get(), nullptr) == MI_OK);
            CHECK(o_there.values() == o);
        }
}

void test_norm(Random &random, int d, int rows, int how) {
    const int top = (1 << random.within(1, 17)) - 1;
    const std::vector<int32_t> x = filled<int32_t>(random, size(rows * d), how, -top, top);
    const std::vector<int8_t> g = filled<int8_t>(random, size(d), random.within(0, 4), -127, 127);
    std::vector<int32_t> select;
    for (int i = 0; i < rows; ++i) select.push_back(random.within(0, rows - 1));
    const Array<int32_t> x_there(x), select_there(select);
    const Array<int8_t> g_there(g), out(size(rows * ops::padded(d)));
    for (int mantissa : {0, 8})
        for (bool selected : {false, true}) {
            std::vector<int8_t> want(size(rows * d));
            for (int i = 0; i < rows; ++i)
                ops::norm(x.data() + d * (selected ? select[size(i)] : i), g.data(), d, mantissa, want.data() + d * i);
            CHECK(launch_bitshift_norm(x_there.get(), selected ? select_there.get() : nullptr, rows, g_there.get(), d,
                                       mantissa, out.get(), nullptr) == MI_OK);
            CHECK(out.values() == spread(want, size(d), size(ops::padded(d))));
        }
}

void test_linear(Random &random, int cols, int rows, int tokens, bool ternary, int how) {
    const int stride = ops::padded(cols), packed = (cols + 3) >> 2;
    std::vector<int8_t> w = filled<int8_t>(random, size(rows * cols), how, ternary ? -1 : -127, ternary ? 1 : 127);
    std::vector<uint8_t> codes(size(rows * packed));
    for (int o = 0; o < rows; ++o)
        for (int k = 0; k < cols; ++k) {
            const int8_t v = w[size(o * cols + k)];
            uint8_t &byte = codes[size(o * packed + (k >> 2))];
            byte = static_cast<uint8_t>(byte | (v < 0 ? 2 : v) << 2 * (k & 3));
        }
    const std::vector<int16_t> mul = filled<int16_t>(random, size(rows), 0, 1, 255);
    const std::vector<int8_t> x = filled<int8_t>(random, size(tokens * cols), random.within(0, 4), -127, 127),
                              wide = spread(x, size(cols), size(stride));
    // The product with the multiplier must fit 32 bits, as a loader sees to.
    const int shift = random.within(0, 24);
    std::vector<int16_t> fit = mul;
    for (int o = 0; o < rows; ++o) {
        int64_t sum = 1;
        for (int k = 0; k < cols; ++k) sum += std::abs(w[size(o * cols + k)]);
        while (fit[size(o)] > 1 && 127 * sum * fit[size(o)] >= 1 << 29)
            fit[size(o)] = static_cast<int16_t>(fit[size(o)] >> 1);
    }
    const mi::Linear p = {
        ternary ? static_cast<const void *>(codes.data()) : w.data(), fit.data(), rows, cols, shift, ternary};
    std::vector<int16_t> want(size(tokens * rows));
    ops::linear(p, 0, rows, wide.data(), tokens, want.data());

    const Array<int8_t> x_there(wide), w_there(spread(w, size(cols), size(stride)));
    const Array<uint8_t> codes_there(spread(codes, size(packed), size(stride >> 2)));
    const Array<int16_t> mul_there(fit), out(size(tokens * rows));
    const mi_matrix matrix = {ternary ? static_cast<const void *>(codes_there.get()) : w_there.get(),
                              mul_there.get(),
                              rows,
                              cols,
                              shift,
                              ternary};
    CHECK(launch_bitlinear(&matrix, x_there.get(), tokens, out.get(), nullptr) == MI_OK);
    CHECK(out.values() == want);

    std::vector<int32_t> r = filled<int32_t>(random, size(tokens * rows), how, -131071, 131071);
    const Array<int32_t> r_there(r);
    ops::add(want.data(), tokens * rows, r.data());
    CHECK(launch_bitlinear_residual(&matrix, x_there.get(), tokens, r_there.get(), nullptr) == MI_OK);
    CHECK(r_there.values() == r);

    std::vector<int32_t> sums(size(tokens * rows));
    for (int t = 0; t < tokens; ++t)
        for (int o = 0; o < rows; ++o)
            for (int k = 0; k < cols; ++k) sums[size(t * rows + o)] += w[size(o * cols + k)] * x[size(t * cols + k)];
    const Array<int32_t> all(size(tokens * rows));
    std::vector<int32_t *> targets;
    for (int t = 0; t < tokens; ++t) targets.push_back(all.get() + t * rows);
    const Array<int32_t *> targets_there(targets);
    CHECK(launch_logits(&matrix, x_there.get(), tokens, targets_there.get(), nullptr) == MI_OK);
    CHECK(all.values() == sums);
}

// Lengths of the spans of a test, and where they begin.
struct Spans {
    std::vector<int> first, length;
    std::vector<int32_t> of_row;
    explicit Spans(const std::vector<int> &lengths) : length(lengths) {
        for (size_t i = 0; i < lengths.size(); ++i) {
            first.push_back(static_cast<int>(of_row.size()));
            of_row.insert(of_row.end(), size(lengths[i]), static_cast<int32_t>(i));
        }
    }
    int rows() const { return static_cast<int>(of_row.size()); }
};

void test_conv(Random &random, int E, int N, const Spans &spans, mi::Activation form, bool rotation, int how) {
    const int channels = E + 2 * N, extra = random.within(0, 5), stride = channels + extra, rows = spans.rows();
    const int state_stride = launch_state_stride(N), offset = channels * 3;  // the second layer
    const size_t count = spans.length.size();
    const std::vector<int8_t> w = filled<int8_t>(random, size(channels * 4), how, -127, 127);
    const std::vector<int16_t> bias = filled<int16_t>(random, size(channels), how, -32767, 32767),
                               xbc = filled<int16_t>(random, size(rows * stride), how, -32767, 32767),
                               past = filled<int16_t>(random, count * size(2 * offset), how, -32767, 32767);
    std::vector<int16_t> want_past = past;
    std::vector<int8_t> want_x(size(rows * E)), want_bc(size(rows * 2 * state_stride));
    std::vector<uint64_t> positions;
    for (size_t s = 0; s < count; ++s) {
        positions.push_back(random.next() >> 1);
        const int16_t *before = past.data() + s * size(2 * offset) + offset;
        const int16_t *rows_of = xbc.data() + spans.first[s] * stride;
        const auto input = [&](int t) { return t < 0 ? before + (3 + t) * channels : rows_of + t * stride; };
        for (int t = 0; t < spans.length[s]; ++t) {
            const int row = spans.first[s] + t;
            const int16_t *const taps[4] = {input(t - 3), input(t - 2), input(t - 1), input(t)};
            std::vector<int16_t> c(size(channels)), x(size(E)), b(size(2 * N));
            ops::conv(w.data(), bias.data(), taps, channels, c.data());
            ops::activate(form, c.data(), E, 5, 8, x.data());
            ops::activate(form, c.data() + E, 2 * N, rotation ? 8 : 3, rotation ? 16 : 6, b.data());
            if (rotation)
                for (int which : {0, 1}) ops::rotate(positions[s] + static_cast<uint64_t>(t), N, b.data() + which * N);
            for (int i = 0; i < E; ++i) want_x[size(row * E + i)] = static_cast<int8_t>(x[size(i)]);
            for (int which : {0, 1})
                for (int i = 0; i < N; ++i)
                    want_bc[size((2 * row + which) * state_stride + i)] = static_cast<int8_t>(b[size(which * N + i)]);
        }
        for (int j = 0; j < 3; ++j)
            std::copy_n(input(spans.length[s] - 3 + j), channels,
                        want_past.data() + s * size(2 * offset) + offset + j * channels);
    }
    const Array<int8_t> w_there(w), x(want_x.size()), bc(want_bc.size());
    const Array<int16_t> bias_there(bias), xbc_there(xbc), past_there(past), next_past(past);
    const Array<int32_t> of_row(spans.of_row);
    std::vector<mi_span> table;
    for (size_t s = 0; s < count; ++s)
        table.push_back({spans.first[s], spans.length[s], positions[s], past_there.get() + s * size(2 * offset),
                         next_past.get() + s * size(2 * offset), nullptr});
    const Array<mi_span> table_there(table);
    const mi_conv conv = {w_there.get(), bias_there.get(), E, N, static_cast<int32_t>(form), rotation};
    CHECK(launch_conv1d_step(&conv, xbc_there.get(), stride, table_there.get(), of_row.get(), rows,
                             static_cast<uint64_t>(offset), x.get(), bc.get(), nullptr) == MI_OK);
    CHECK(x.values() == want_x && bc.values() == want_bc && next_past.values() == want_past);
}

void test_scan(Random &random, int H, int P, int N, const Spans &spans, mi::Scan form, mi::Activation gate, bool gated,
               int how) {
    const int E = H * P, rows = spans.rows(), stride = E + H + 3, state_stride = launch_state_stride(N);
    const size_t count = spans.length.size(), states = size(E * N);
    const std::vector<int8_t> k = filled<int8_t>(random, size(H), 0, 8, 15),
                              skip = filled<int8_t>(random, size(H), how, -127, 127),
                              x = filled<int8_t>(random, size(rows * E), how, -127, 127),
                              b = filled<int8_t>(random, size(rows * 2 * N), how, -31, 31);
    const std::vector<int32_t> A = filled<int32_t>(random, size(H), how == 1 ? 1 : 0, 1, 1 << 19),
                               before = filled<int32_t>(random, count * 2 * states, how, -251968, 251968);
    const std::vector<int16_t> base = filled<int16_t>(random, size(H), 0, -1000, 1000),
                               z_dt = filled<int16_t>(random, size(rows * stride), 0, -2000, 2000);
    std::vector<int32_t> h = before, want(size(rows * E)), m(size(H));
    mi::Layer layer{};
    layer.scan_k = k.data(), layer.scan_A = A.data(), layer.scan_base = base.data(), layer.scan_skip = skip.data();
    for (size_t s = 0; s < count; ++s)
        for (int row = spans.first[s]; row < spans.first[s] + spans.length[s]; ++row) {
            std::vector<int16_t> wide_x(x.begin() + row * E, x.begin() + (row + 1) * E), y(size(E)), g(size(E));
            std::vector<int16_t> bc(b.begin() + row * 2 * N, b.begin() + (row + 1) * 2 * N);
            const int16_t *z = z_dt.data() + row * stride;
            ops::scan(layer, {0, H, P, N, form}, wide_x.data(), bc.data(), bc.data() + N, z + E,
                      h.data() + (2 * s + 1) * states, m.data(), y.data());
            ops::activate(gate, z, E, 8, 15, g.data());
            if (gated)
                ops::gate(y.data(), g.data(), E, want.data() + row * E);
            else
                std::copy(y.begin(), y.end(), want.begin() + row * E);
        }
    const Array<int8_t> k_there(k), skip_there(skip), x_there(x), bc(spread(b, size(N), size(state_stride)));
    const Array<int32_t> A_there(A), h_there(before), o(size(rows * E));
    const Array<int16_t> base_there(base), z_there(z_dt);
    std::vector<mi_span> table;
    for (size_t s = 0; s < count; ++s)
        table.push_back({spans.first[s], spans.length[s], 0, nullptr, nullptr, h_there.get() + 2 * s * states});
    const Array<mi_span> table_there(table);
    const mi_scan scan = {k_there.get(),
                          A_there.get(),
                          base_there.get(),
                          skip_there.get(),
                          H,
                          P,
                          N,
                          static_cast<int32_t>(form),
                          static_cast<int32_t>(gate)};
    CHECK(launch_dyadic_mamba(&scan, table_there.get(), static_cast<int32_t>(count), x_there.get(), bc.get(),
                              gated ? z_there.get() : nullptr, z_there.get() + E, stride, states, o.get(),
                              nullptr) == MI_OK);
    CHECK(o.values() == want && h_there.values() == h);
}

void test_embedding(Random &random) {
    for (int d : {1, 24, 64, 127, 192, 300}) {
        const int stride = ops::padded(d), V = 50;
        const std::vector<int8_t> e = filled<int8_t>(random, size(V * d), 0, -127, 127);
        const std::vector<uint32_t> tokens = {0, 49, 7, 7, 3};
        std::vector<int32_t> want(tokens.size() * size(d));
        for (size_t t = 0; t < tokens.size(); ++t)
            ops::embed(e.data() + tokens[t] * size(d), 1023, d, want.data() + t * size(d));
        const Array<int8_t> e_there(spread(e, size(d), size(stride)));
        const Array<uint32_t> tokens_there(tokens);
        const Array<int32_t> r(want.size());
        CHECK(launch_embedding(e_there.get(), stride, tokens_there.get(), 5, d, 1023, r.get(), nullptr) == MI_OK);
        CHECK(r.values() == want);
    }
}

uint32_t sampled_there(const std::vector<int32_t> &logits, int embed_mul, int logit_shift, const mi::Sampling &s,
                       uint64_t step) {
    const Array<int32_t> there(logits);
    const Array<uint32_t> token(size_t{1});
    const uint64_t C = s.temperature == 0 ? 0 : mi::inverse_temperature(embed_mul, s.temperature);
    CHECK(launch_sampler(there.get(), static_cast<int32_t>(logits.size()), C, logit_shift, s.top_k, s.top_p,
                         mi::random_word(s.seed, step), token.get(), nullptr) == MI_OK);
    return token.values()[0];
}

void test_sampler(Random &random) {
    for (int V : {1, 2, 3, 40, 255, 256, 257, 2048, 5003})
        for (int round = 0; round < 24; ++round) {
            // Few different values, many, or all alike, so that ties abound.
            const int range = round % 4 == 0 ? 3 : round % 4 == 1 ? 200000 : round % 4 == 2 ? (1 << 30) - 1 : 0;
            const std::vector<int32_t> logits = filled<int32_t>(random, size(V), 0, -range, range);
            std::vector<mi::Candidate> scratch(size(V));
            const mi::Sampling s = {
                round % 6 == 0 ? 0 : static_cast<uint32_t>(random.within(1, round & 1 ? 1 << 22 : 1 << 17)),
                static_cast<uint32_t>(round % 3 == 0 ? 0 : random.within(1, V + 2)),
                static_cast<uint32_t>(round % 5 == 0 ? 1 << 16 : random.within(1, 1 << 16)), random.next()};
            for (uint64_t step = 0; step < 3; ++step)
                CHECK(sampled_there(logits, 37, 17, s, step) ==
                      mi::sample(logits.data(), V, 37, 17, s, step, scratch.data()));
        }
}

void test_operations(bool all) {
    Random random{11};
    for (int how = 0; how < (all ? fills : 1); ++how) {
        for (int d : {1, 2, 31, 33, 63, 64, 65, 127, 128, 129, 192, 257, 1000, 4093, 8192})
            test_norm(random, d, 3, how);
        for (bool ternary : {false, true}) {
            for (int cols : {1, 3, 4, 15, 17, 63, 64, 65, 130, 192, 300, 513, 2049})
                test_linear(random, cols, random.within(1, 20), random.within(1, 6), ternary, how);
            for (int tokens : {1, 2, 3, 4, 5, 8, 9, 63, 64, 65, 131})
                test_linear(random, random.within(60, 200), random.within(60, 70), tokens, ternary, how);
            for (int rows : {1, 7, 8, 9, 63, 64, 65, 129})
                test_linear(random, 70, rows, rows & 1 ? 2 : 7, ternary, how);
        }
        for (const Spans &spans : {Spans({1}), Spans({2}), Spans({3}), Spans({4}), Spans({9, 1, 2, 5}), Spans({40})})
            for (mi::Activation form : {mi::Activation::silu, mi::Activation::squareplus}) {
                test_conv(random, random.within(1, 300), 2 * random.within(1, 32), spans, form, how & 1, how);
                for (mi::Scan scan : {mi::Scan::convex, mi::Scan::literal})
                    test_scan(random, random.within(1, 3), random.within(1, 40), random.within(1, 64), spans, scan,
                              form, random.within(0, 3) > 0, how);
            }
        for (int N : {1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64})
            test_scan(random, 2, 32, N, Spans({7, 2}), how & 1 ? mi::Scan::literal : mi::Scan::convex,
                      mi::Activation::silu, true, how);
        test_scan(random, 1, 256, 16, Spans({5}), mi::Scan::convex, mi::Activation::silu, true, how);
    }
    test_embedding(random);
    test_sampler(random);
}

// What launchers refuse, and say.
void test_refusals() {
    const Array<int32_t> x(size_t{64}), o(size_t{64});
    const Array<int8_t> g(size_t{64}), out(size_t{64});
    const Array<int16_t> c(size_t{64});
    CHECK(launch_bitshift_norm(nullptr, nullptr, 1, g.get(), 4, 8, out.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(std::strcmp(launch_error(), "launch_bitshift_norm: null pointer") == 0);
    CHECK(launch_bitshift_norm(x.get(), nullptr, 0, g.get(), 4, 8, out.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(launch_bitshift_norm(x.get(), nullptr, 1, g.get(), 1 << 15, 8, out.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(launch_bitshift_norm(x.get(), nullptr, 1, g.get(), 4, 7, out.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(launch_squareplus(c.get(), 4, 9, 8, c.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(launch_silu(c.get(), 4, 5, 17, c.get(), nullptr) == MI_ERR_ARGUMENT);
    CHECK(launch_gate(c.get(), c.get(), 0, o.get(), nullptr) == MI_ERR_ARGUMENT);
    mi_matrix matrix = {g.get() + 8, c.get(), 1, 16, 0, 0};
    CHECK(launch_bitlinear(&matrix, out.get(), 1, c.get(), nullptr) == MI_ERR_ARGUMENT);  // not at a multiple of 16
    matrix = {g.get(), c.get(), 1, 16, 25, 0};
    CHECK(launch_bitlinear(&matrix, out.get(), 1, c.get(), nullptr) == MI_ERR_ARGUMENT);
    mi_conv conv = {g.get(), c.get(), 1, 3, 0, 0};
    mi_span *spans = reinterpret_cast<mi_span *>(x.get());
    CHECK(launch_conv1d_step(&conv, c.get(), 64, spans, x.get(), 1, 0, out.get(), out.get(), nullptr) ==
          MI_ERR_ARGUMENT);
    conv.d_state = 2;
    CHECK(launch_conv1d_step(&conv, c.get(), 4, spans, x.get(), 1, 0, out.get(), out.get(), nullptr) ==
          MI_ERR_ARGUMENT);
    mi_scan scan = {g.get(), x.get(), c.get(), g.get(), 1, 257, 2, 0, 0};
    CHECK(launch_dyadic_mamba(&scan, spans, 1, g.get(), g.get(), nullptr, c.get(), 4, 0, o.get(), nullptr) ==
          MI_ERR_ARGUMENT);
    CHECK(launch_sampler(x.get(), 64, uint64_t{1} << 32, 0, 0, 1, 0, nullptr, nullptr) == MI_ERR_ARGUMENT);
}

// ---- Golden vectors -------------------------------------------------------------------------------------------------

void test_vectors(const std::string &folder) {
    const auto vectors = [&](const char *name) { return test::JsonReader::file(folder + "/" + name + ".json"); };
    const test::Json norms = vectors("norm"), linears = vectors("bitlinear"), samples = vectors("sampler");
    for (const test::Json &c : norms["cases"].array) {
        const std::vector<int32_t> x = c["x"].list<int32_t>();
        std::vector<int8_t> g = c["g"].list<int8_t>();
        if (g.size() == 1) g.resize(x.size(), g[0]);
        const int d = static_cast<int>(x.size());
        const Array<int32_t> x_there(x);
        const Array<int8_t> g_there(g), out(size(ops::padded(d)));
        CHECK(launch_bitshift_norm(x_there.get(), nullptr, 1, g_there.get(), d, c["mantissa"].as<int>(), out.get(),
                                   nullptr) == MI_OK);
        std::vector<int8_t> got = out.values();
        got.resize(x.size());
        CHECK(got == c["out"].list<int8_t>());
    }
    for (const test::Json &c : linears["cases"].array) {
        const std::vector<int8_t> x = c["x"].list<int8_t>();
        const std::vector<int16_t> mul = c["m"].list<int16_t>();
        const int cols = static_cast<int>(x.size()), rows = static_cast<int>(mul.size());
        std::vector<int8_t> w;
        for (const test::Json &row : c["W"].array)
            for (int8_t v : row.list<int8_t>()) w.push_back(v);
        const size_t stride = size(ops::padded(cols));
        const Array<int8_t> w_there(spread(w, x.size(), stride)), x_there(spread(x, x.size(), stride));
        const Array<int16_t> mul_there(mul), out(mul.size());
        const mi_matrix matrix = {w_there.get(), mul_there.get(), rows, cols, c["s"].as<int>(), 0};
        CHECK(launch_bitlinear(&matrix, x_there.get(), 1, out.get(), nullptr) == MI_OK);
        CHECK(out.values() == c["out"].list<int16_t>());
    }
    for (const test::Json &c : samples["sample"].array) {
        const mi::Sampling s = {c["temperature"].as<uint32_t>(), c["top_k"].as<uint32_t>(), c["top_p"].as<uint32_t>(),
                                c["seed"].word()};
        CHECK(sampled_there(c["logits"].list<int32_t>(), c["embed_mul"].as<int>(), c["logit_shift"].as<int>(), s,
                            c["step"].word()) == c["token"].as<uint32_t>());
    }
    // Whole models, with the digest of all their logits.
    const test::Json models = vectors("model");
    for (const test::Json &c : models["cases"].array) {
        std::vector<uint8_t> bytes;
        const std::string &hex = c["file"].string;
        for (size_t i = 0; i + 1 < hex.size(); i += 2)
            bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
        mi_model *model = nullptr;
        mi_session *session = nullptr;
        CHECK(mi_model_load_memory(bytes.data(), bytes.size(), &model) == MI_OK);
        if (!CHECK(mi_session_new_on(model, "cuda", &session) == MI_OK)) {
            std::fprintf(stderr, "%s\n", mi_last_error());
            std::exit(1);
        }
        const std::vector<uint32_t> tokens = c["tokens"].list<uint32_t>();
        mi_config config;
        mi_model_get_config(model, &config);
        std::vector<int32_t> logits(tokens.size() * config.vocab_size);
        CHECK(mi_session_feed(session, tokens.data(), tokens.size(), logits.data()) == MI_OK);
        mi::Sha256 sha;
        for (int32_t v : logits)
            for (int i = 0; i < 4; ++i) {
                const uint8_t byte = static_cast<uint8_t>(static_cast<uint32_t>(v) >> (8 * i));
                sha.update(&byte, 1);
            }
        CHECK(mi::to_hex(sha.finish()) == c["logits_sha256"].string);
        mi_session_reset(session);
        const std::vector<uint32_t> prompt = c["prompt"].list<uint32_t>(), sampled = c["sampled"].list<uint32_t>();
        const mi_sampling sampling = {c["temperature"].as<uint32_t>(), c["top_k"].as<uint32_t>(),
                                      c["top_p"].as<uint32_t>(), c["seed"].word()};
        CHECK(mi_session_feed(session, prompt.data(), prompt.size(), nullptr) == MI_OK);
        for (size_t step = 0; step < sampled.size(); ++step) {
            uint32_t token = 0;
            CHECK(mi_session_sample(session, &sampling, step, &token) == MI_OK && token == sampled[step]);
            CHECK(mi_session_feed(session, &token, 1, nullptr) == MI_OK);
        }
        mi_session_free(session);
        mi_model_free(model);
    }
}

// ---- Whole sequences ------------------------------------------------------------------------------------------------

struct Loaded {
    mi_model *model = nullptr;
    explicit Loaded(const test::Bytes &file) { CHECK(mi_model_load_memory(file.data(), file.size(), &model) == MI_OK); }
    ~Loaded() { mi_model_free(model); }
    Loaded(const Loaded &) = delete;
    mi_session *session(const char *device) const {
        mi_session *out = nullptr;
        if (!CHECK(mi_session_new_on(model, device, &out) == MI_OK)) std::fprintf(stderr, "%s\n", mi_last_error());
        return out;
    }
};

std::vector<uint8_t> saved(const mi_session *session) {
    std::vector<uint8_t> state(mi_session_state_size(session));
    CHECK(mi_session_save(session, state.data(), state.size()) == MI_OK);
    return state;
}

// Every mode, odd sizes, and the shape of the shipped model.
std::vector<test::Shape> shapes() {
    std::vector<test::Shape> out = {{192, 2, 12, 32, 16, 300}, {1, 1, 1, 1, 2, 3}, {96, 3, 5, 7, 34, 97}};
    for (int mode = 0; mode < 32; ++mode) {
        test::Shape s{24, 2, 3, 8, 4, 40};
        s.literal = mode & 1, s.squareplus = mode & 2, s.rotation = mode & 4, s.ternary = mode & 8;
        s.scalar_norm = mode & 16;
        out.push_back(s);
    }
    for (bool literal : {false, true}) out.push_back({67, 2, 3, 19, 18, 131, literal, !literal, true, literal, false});
    return out;
}

void test_sequences(bool all) {
    Random random{31};
    int number = 0;
    for (const test::Shape &shape : shapes()) {
        if (!all && number++ % 7 != 2) continue;
        const Loaded loaded(test::random_model(shape, random.next()).bytes());
        const int V = static_cast<int>(shape.V);
        mi_session *cpu = loaded.session("cpu"), *gpu = loaded.session("cuda");
        // A prompt, single tokens, more at once than the device takes, all logits of each.
        for (int n : {70, 1, 1, 1, 300, 1, 2, 5}) {
            const std::vector<uint32_t> tokens = random.vector<uint32_t>(size(n), 0, V - 1);
            std::vector<int32_t> want(size(n * V)), got(size(n * V));
            CHECK(mi_session_feed(cpu, tokens.data(), tokens.size(), want.data()) == MI_OK);
            CHECK(mi_session_feed(gpu, tokens.data(), tokens.size(), got.data()) == MI_OK);
            CHECK(want == got);
        }
        CHECK(saved(cpu) == saved(gpu));
        CHECK(mi_session_position(cpu) == mi_session_position(gpu));
        // Generation: the sampler where the logits are.
        const mi_sampling sampling = {60000, static_cast<uint32_t>(random.within(0, 10)),
                                      static_cast<uint32_t>(random.within(30000, 65536)), random.next()};
        for (uint64_t step = 0; step < 20; ++step) {
            uint32_t want = 0, got = 0;
            CHECK(mi_session_sample(cpu, &sampling, step, &want) == MI_OK);
            CHECK(mi_session_sample(gpu, &sampling, step, &got) == MI_OK && got == want);
            CHECK(mi_session_feed(cpu, &want, 1, nullptr) == MI_OK && mi_session_feed(gpu, &want, 1, nullptr) == MI_OK);
        }
        CHECK(std::equal(mi_session_logits(cpu), mi_session_logits(cpu) + V, mi_session_logits(gpu)));
        // A state moves between devices.
        const std::vector<uint8_t> state = saved(gpu);
        CHECK(state == saved(cpu));
        mi_session_reset(gpu), mi_session_reset(cpu);
        CHECK(mi_session_position(gpu) == 0 && !mi_session_logits(gpu) && saved(gpu) == saved(cpu));
        CHECK(mi_session_restore(gpu, state.data(), state.size()) == MI_OK && saved(gpu) == state);
        CHECK(mi_session_restore(cpu, state.data(), state.size()) == MI_OK);
        const uint32_t token = 0;
        CHECK(mi_session_feed(gpu, &token, 1, nullptr) == MI_OK && mi_session_feed(cpu, &token, 1, nullptr) == MI_OK);
        CHECK(saved(gpu) == saved(cpu));
        mi_session_free(cpu), mi_session_free(gpu);
    }
}

// Many at once, each its own number of tokens.
void test_batches() {
    Random random{32};
    for (const test::Shape &shape :
         {test::Shape{96, 2, 6, 16, 8, 70}, test::Shape{40, 2, 2, 20, 6, 50, true, true, true, true, false}}) {
        const Loaded loaded(test::random_model(shape, 7).bytes());
        const size_t V = shape.V;
        std::vector<mi_session *> cpu, gpu;
        for (int i = 0; i < 9; ++i) cpu.push_back(loaded.session("cpu")), gpu.push_back(loaded.session("cuda"));
        for (int round = 0; round < 3; ++round) {
            std::vector<std::vector<uint32_t>> tokens;
            std::vector<std::vector<int32_t>> want(9), got(9);
            std::vector<mi_feed> here, there;
            for (size_t i = 0; i < 9; ++i) {
                tokens.push_back(
                    random.vector<uint32_t>(size(round == 1 ? 1 : random.within(0, 60)), 0, static_cast<int>(V) - 1));
                want[i].resize(tokens[i].size() * V), got[i].resize(tokens[i].size() * V);
            }
            for (size_t i = 0; i < 9; ++i) {
                const bool all = i % 3 == 1;
                here.push_back({cpu[i], tokens[i].data(), tokens[i].size(), all ? want[i].data() : nullptr});
                there.push_back({gpu[i], tokens[i].data(), tokens[i].size(), all ? got[i].data() : nullptr});
            }
            CHECK(mi_feed_many(here.data(), 9) == MI_OK && mi_feed_many(there.data(), 9) == MI_OK);
            for (size_t i = 0; i < 9; ++i) {
                CHECK(want[i] == got[i]);
                CHECK(saved(cpu[i]) == saved(gpu[i]));
            }
        }
        const mi_feed mixed[2] = {{cpu[0], nullptr, 0, nullptr}, {gpu[0], nullptr, 0, nullptr}};
        CHECK(mi_feed_many(mixed, 2) == MI_ERR_ARGUMENT);
        for (mi_session *s : cpu) mi_session_free(s);
        for (mi_session *s : gpu) mi_session_free(s);
    }
}

#if !defined(__CUDACC__)

// A device that fails at any of its calls: a status and a message, never a wrong token, and all is well after it.
void test_failures() {
    const test::Bytes file = test::random_model({}, 1).bytes();
    const std::vector<uint32_t> tokens = {1, 2, 3};
    const mi_sampling sampling = {60000, 5, 60000, 1};
    uint32_t want = 0;
    const Loaded here(file);
    mi_session *cpu = here.session("cpu");
    mi_session_feed(cpu, tokens.data(), 3, nullptr);
    CHECK(mi_session_sample(cpu, &sampling, 0, &want) == MI_OK);
    mi_session_free(cpu);
    int failed = 0;
    for (long calls = 0; calls < 200; ++calls) {
        const Loaded loaded(file);
        mi_session *session = nullptr;
        uint32_t got = 0;
        const auto story = [&] {
            mi_status status = mi_session_new_on(loaded.model, "cuda", &session);
            if (!status) status = mi_session_feed(session, tokens.data(), 1, nullptr);
            for (size_t i = 1; i < 3 && !status; ++i) status = mi_session_feed(session, &tokens[i], 1, nullptr);
            if (!status) status = mi_session_sample(session, &sampling, 0, &got);
            return status;
        };
        shim::machine().calls_to_failure = calls;
        const mi_status status = story();
        shim::machine().calls_to_failure = -1;
        if (status == MI_OK) {
            CHECK(got == want && failed > 40);
            mi_session_free(session);
            break;
        }
        ++failed;
        CHECK(status == MI_ERR_DEVICE && std::strncmp(mi_last_error(), "device cuda: ", 13) == 0);
        mi_session_free(session), session = nullptr;
        CHECK(story() == MI_OK && got == want);
        mi_session_free(session);
    }
    CHECK(failed < 199);
    // What is lost stays lost until it begins anew.
    const Loaded loaded(file);
    mi_session *session = loaded.session("cuda");
    shim::machine().calls_to_failure = 3;
    CHECK(mi_session_feed(session, tokens.data(), 3, nullptr) == MI_ERR_DEVICE);
    shim::machine().calls_to_failure = -1;
    CHECK(mi_session_feed(session, tokens.data(), 3, nullptr) == MI_ERR_DEVICE && std::strstr(mi_last_error(), "lost"));
    mi_session_reset(session);
    uint32_t got = 0;
    CHECK(mi_session_feed(session, tokens.data(), 3, nullptr) == MI_OK);
    CHECK(mi_session_sample(session, &sampling, 0, &got) == MI_OK && got == want);
    CHECK(mi_session_set_trace(
              session, [](void *, uint64_t, const char *, const int32_t *, size_t) {}, nullptr) == MI_ERR_ARGUMENT);
    CHECK(mi_session_set_threads(session, 3) == MI_OK && mi_session_set_threads(session, 0) == MI_ERR_ARGUMENT);
    const uint32_t outside = 1000;
    CHECK(mi_session_feed(session, &outside, 1, nullptr) == MI_ERR_ARGUMENT);
    mi_session_free(session);
    CHECK(mi_session_new_on(loaded.model, "tpu", &session) == MI_ERR_ARGUMENT && !session);

    const Array<int16_t> c(size_t{4});
    const Array<int32_t> o(size_t{4});
    shim::machine().calls_to_failure = 0;
    CHECK(launch_gate(c.get(), c.get(), 4, o.get(), nullptr) == MI_ERR_DEVICE);
    CHECK(std::strcmp(launch_error(), "launch_gate: CUDA: unspecified launch failure") == 0);
    shim::machine().calls_to_failure = -1;
}

// ---- The shim -------------------------------------------------------------------------------------------------------

constexpr int n = 64;

__global__ void reverse(const int *x, int *out, bool with_barrier) {
    __shared__ int all[n];
    const int i = static_cast<int>(threadIdx.x);
    all[i] = x[i];
    if (with_barrier) __syncthreads();
    out[i] = all[n - 1 - i];
}

__global__ void half_of_them() {
    if (threadIdx.x < n / 2) __syncthreads();
}

__global__ void two_ways(int *out) {
    const int i = static_cast<int>(threadIdx.x);
    *out = i & 1 ? __reduce_add_sync(0xffffffffu, i) : __shfl_xor_sync(0xffffffffu, i, 1);
}

__global__ void nothing(int *p) { *p = 0; }

// Whether a program that does this ends by itself.
template <class Body>
bool survives(Body body) {
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
        body();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void test_shim() {
    std::vector<int> x, reversed;
    for (int i = 0; i < n; ++i) x.push_back(i), reversed.push_back(n - 1 - i);
    const Array<int> x_there(x), out(x.size());
    const int *from = x_there.get();
    int *to = out.get();
    for (bool with_barrier : {true, false}) {
        MI_LAUNCH((reverse), dim3(1), dim3(n), nullptr, from, to, with_barrier);
        CHECK((out.values() == reversed) == with_barrier);
    }
    CHECK(survives([&] { MI_LAUNCH((reverse), dim3(1), dim3(n), nullptr, from, to, true); }));
    CHECK(!survives([] { MI_LAUNCH((half_of_them), dim3(1), dim3(n), nullptr); }));
    CHECK(!survives([&] { MI_LAUNCH((two_ways), dim3(1), dim3(n), nullptr, to); }));
    CHECK(!survives([&] { *to = 1; }));  // device memory is not the host's
    int *beyond = to + n;
    CHECK(!survives([&] {
        MI_LAUNCH((nothing), dim3(1), dim3(32), nullptr, beyond);
        cudaFree(to);
    }));
    MI_LAUNCH((half_of_them), dim3(1, 65536), dim3(n), nullptr);  // more than hardware takes
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
}

#endif

void test_all(const std::string &folder, bool all) {
    if (all) test_activations();
    test_operations(all);
    test_vectors(folder);
    test_sequences(all);
    if (all) test_batches();
}

}  // namespace

// test_cuda VECTORS LIBRARY [quick]
int main(int argc, char **argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: test_cuda VECTORS LIBRARY [quick]\n");
        return 2;
    }
    setenv("MAMBA_INTEGER_CUDA", argv[2], 1);
#if defined(__CUDACC__)
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) {
        std::fprintf(stderr, "test_cuda: no GPU: %s\n", cudaGetErrorString(error));
        return 3;
    }
    test_all(argv[1], true);
#else
    // Everything in one order of the threads; in the others what shows how threads act together. Quick is for the sanitizers.
    using shim::Schedule;
    const bool quick = argc > 3;
    for (Schedule schedule : {Schedule::forwards, Schedule::backwards, Schedule::shuffled}) {
        if (quick && schedule != Schedule::shuffled) continue;
        shim::machine().schedule = schedule;
        test_shim();
        test_all(argv[1], schedule == Schedule::shuffled && !quick);
    }
    test_failures();
#endif
    test_refusals();
    return test::report("test_cuda");
}
