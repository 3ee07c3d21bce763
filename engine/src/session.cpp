#include "session.hpp"

#include <algorithm>

namespace mi {
namespace {

size_t elements(int a, int b = 1, int c = 1) {
    return static_cast<size_t>(a) * static_cast<size_t>(b) * static_cast<size_t>(c);
}

// "blk.17.norm1.mu": a name of the trace. Put together by hand because the library's conversion of numbers divides.
class SiteName {
  public:
    SiteName(int layer, const char *name, const char *suffix = "") {
        if (layer >= 0) {
            append("blk.");
            const bool hundred = layer >= 100;  // there are at most 128 layers
            if (hundred) layer -= 100;
            int tens = 0;
            for (; layer >= 10; layer -= 10) ++tens;
            if (hundred) digit(1);
            if (hundred || tens > 0) digit(tens);
            digit(layer);
            append(".");
        }
        append(name);
        append(suffix);
        *end_ = 0;
    }
    const char *text() const { return text_; }

  private:
    void digit(int d) { *end_++ = static_cast<char>('0' + d); }
    void append(const char *s) {
        while (*s) *end_++ = *s++;
    }

    char text_[32];
    char *end_ = text_;
};

}  // namespace

Session::Session(const Model &model, const ops::Kernels &kernels) : model_(model), ops_(kernels) {
    const Config &c = model.config;
    const int D = c.d_model, E = c.d_inner(), channels = c.d_conv(), T = batch;
    state_.past.resize(elements(c.n_layers, 3, channels));
    state_.h.resize(elements(c.n_layers, E, c.d_state));
    r_.resize(elements(T, D));
    u_.resize(elements(T, D));
    z_xbc_dt_.resize(elements(T, c.d_in_proj()));
    c_.resize(elements(channels));
    xbc_.resize(elements(channels));
    m_.resize(elements(c.n_heads));
    y_.resize(elements(E));
    g_.resize(elements(E));
    o_.resize(elements(E));
    v_.resize(elements(T, E));
    out_.resize(elements(T, D));
    logits_.resize(elements(c.vocab_size));
    wide_.resize(elements(std::max(D, c.d_in_proj())));
}

void Session::reset() {
    std::fill(state_.past.begin(), state_.past.end(), int16_t{0});
    std::fill(state_.h.begin(), state_.h.end(), 0);
    state_.position = 0;
}

void Session::feed(const uint32_t *tokens, size_t n, int32_t *all_logits) {
    const size_t most = trace_ ? 1 : batch;  // a trace tells of one token after the other
    while (n > 0) {
        const size_t now = std::min(n, most);
        const int count = static_cast<int>(now);
        embed(tokens, count);
        for (int l = 0; l < model_.config.n_layers; ++l) layer(l, count);
        tokens += now, n -= now;
        // Logits change nothing that follows: where nobody looks at them they are left out.
        if (all_logits) {
            read_out(0, count, all_logits);
            all_logits += now * logits_.size();
            std::copy(all_logits - logits_.size(), all_logits, logits_.begin());
        } else if (trace_ || n == 0) {
            read_out(count - 1, 1, logits_.data());
        }
        state_.position += now;
    }
}

void Session::embed(const uint32_t *tokens, int n) {
    const Config &c = model_.config;
    for (int t = 0; t < n; ++t)
        ops::embed(model_.embedding + elements(static_cast<int>(tokens[t]), c.d_model), c.embed_mul, c.d_model,
                   r_.data() + elements(t, c.d_model));
    trace(-1, "embed", r_.data(), c.d_model);
}

// §8, line by line.
void Session::layer(int l, int n) {
    const Config &config = model_.config;
    const Layer &weights = model_.layers[static_cast<size_t>(l)];
    const int D = config.d_model;

    for (int t = 0; t < n; ++t) {
        int16_t *u = u_.data() + elements(t, D);  // [D]
        const ops::NormScale scale = ops_.norm(r_.data() + elements(t, D), weights.norm1, D, config.norm_mantissa, u);
        trace_norm(l, "norm1", scale, u, D);
    }
    ops_.linear(weights.in_proj, u_.data(), n, z_xbc_dt_.data());
    for (int t = 0; t < n; ++t) mix(l, t);
    ops_.linear(weights.out_proj, v_.data(), n, out_.data());
    trace(l, "out_proj", out_.data(), D);
    ops_.add(out_.data(), n * D, r_.data());
    trace(l, "resid", r_.data(), D);
}

void Session::mix(int l, int t) {
    const Config &config = model_.config;
    const Layer &weights = model_.layers[static_cast<size_t>(l)];
    const int E = config.d_inner(), N = config.d_state, H = config.n_heads, channels = config.d_conv();

    const int16_t *z = z_xbc_dt_.data() + elements(t, config.d_in_proj()), *xbc = z + E,
                  *dt = xbc + channels;  // [E], [E+2N], [H]
    trace(l, "in_proj", z, config.d_in_proj());

    int16_t *past = state_.past.data() + elements(l, 3, channels);  // [3, E+2N]
    ops_.conv(weights, channels, past, xbc, c_.data());
    trace(l, "conv", c_.data(), channels);

    int16_t *x = xbc_.data(), *B = x + E, *C = B + N;  // [E], [N], [N]
    ops_.activate(config.activation, c_.data(), E, 5, 8, x);
    if (config.rotation) {
        const uint64_t position = state_.position + static_cast<uint64_t>(t);
        ops_.activate(config.activation, c_.data() + E, 2 * N, 8, 16, B);  // B and C at once: they lie side by side
        ops::rotate(position, N, B);
        ops::rotate(position, N, C);
    } else {
        ops_.activate(config.activation, c_.data() + E, 2 * N, 3, 6, B);
    }
    trace(l, "x", x, E);
    trace(l, "B", B, N);
    trace(l, "C", C, N);

    int32_t *h = state_.h.data() + elements(l, E, N);  // [H, P, N]
    ops_.scan(weights, {H, config.head_dim, N, config.scan}, x, B, C, dt, h, m_.data(), y_.data());
    trace(l, "m", m_.data(), H);
    trace(l, "state", h, E * N);
    trace(l, "y", y_.data(), E);

    ops_.activate(config.gate, z, E, 8, 15, g_.data());
    trace(l, "gate", g_.data(), E);
    ops_.gate(y_.data(), g_.data(), E, o_.data());
    trace(l, "gated", o_.data(), E);

    int16_t *v = v_.data() + elements(t, E);  // [E]
    const ops::NormScale scale = ops_.norm(o_.data(), weights.norm2, E, config.norm_mantissa, v);
    trace_norm(l, "norm2", scale, v, E);
}

void Session::read_out(int first, int n, int32_t *out) {
    const Config &c = model_.config;
    for (int t = 0; t < n; ++t) {
        int16_t *u = u_.data() + elements(t, c.d_model);  // [D]
        const ops::NormScale scale =
            ops_.norm(r_.data() + elements(first + t, c.d_model), model_.norm_f, c.d_model, c.norm_mantissa, u);
        trace_norm(-1, "norm_f", scale, u, c.d_model);
    }
    ops_.logits(model_.embedding, u_.data(), c.vocab_size, c.d_model, n, out);
    trace(-1, "logits", out, c.vocab_size);
}

void Session::trace(int layer, const char *name, const int32_t *values, int count) {
    if (trace_) trace_(trace_user_, state_.position, SiteName(layer, name).text(), values, elements(count));
}

void Session::trace(int layer, const char *name, const int16_t *values, int count) {
    if (!trace_) return;
    std::copy_n(values, count, wide_.data());
    trace(layer, name, wide_.data(), count);
}

void Session::trace_norm(int layer, const char *name, ops::NormScale scale, const int16_t *values, int count) {
    if (!trace_) return;
    trace_(trace_user_, state_.position, SiteName(layer, name, ".j").text(), &scale.j, 1);
    trace_(trace_user_, state_.position, SiteName(layer, name, ".mu").text(), &scale.mu, 1);
    trace(layer, name, values, count);
}

}  // namespace mi
