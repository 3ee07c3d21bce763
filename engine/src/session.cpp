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

// Rows of a matrix that are worth another thread's while: 16 KiB of weights.
int grain_of(int row_bytes) {
    int rows = 16;
    while (rows * row_bytes < 1 << 14) rows *= 2;
    return rows;
}

int grain_of(const Linear &p) { return grain_of(p.ternary ? (p.cols + 3) >> 2 : p.cols); }

// Heads that are computed together, at most 256 channels, so that all they need stays in the first cache.
int heads_at_once(const Config &c) {
    int heads = 1;
    while (2 * heads <= c.n_heads && 2 * heads * c.head_dim <= 256) heads *= 2;
    return heads;
}

}  // namespace

// ---- A session ------------------------------------------------------------------------------------------------------

State::State(const Config &c)
    : past(elements(c.n_layers, 3, c.d_conv())),
      h(elements(c.n_layers, c.d_inner(), c.d_state)),
      logits(elements(c.vocab_size)) {}

Session::Session(const Model &model, const ops::Kernels &kernels, int rows)
    : model_(model), state_(model.config), pass_(model, kernels, rows) {}

void Session::reset() {
    std::fill(state_.past.begin(), state_.past.end(), int16_t{0});
    std::fill(state_.h.begin(), state_.h.end(), 0);
    state_.position = 0;
}

void Session::feed(const uint32_t *tokens, size_t n, int32_t *all_logits) {
    Feed feed{this, tokens, n, all_logits};
    pass_.feed(&feed, 1);
}

// ---- A pass ---------------------------------------------------------------------------------------------------------

Pass::Pass(const Model &model, const ops::Kernels &kernels, int rows)
    : model_(model), ops_(kernels), pool_(std::make_unique<Pool>(1)), rows_(rows) {
    const Config &c = model.config;
    const int D = c.d_model, E = c.d_inner();
    spans_.reserve(elements(rows));
    scales_.resize(elements(rows));
    wanted_.reserve(elements(rows));
    targets_.reserve(elements(rows));
    r_.resize(elements(rows, D));
    u_.resize(elements(rows, ops::padded(D)));
    z_xbc_dt_.resize(elements(rows, c.d_in_proj()));
    b_c_.resize(elements(rows, 2 * c.d_state));
    c_.resize(elements(c.d_conv()));
    x_.resize(elements(E));
    m_.resize(elements(c.n_heads));
    y_.resize(elements(E));
    g_.resize(elements(E));
    o_.resize(elements(rows, E));
    v_.resize(elements(rows, ops::padded(E)));
    out_.resize(elements(rows, D));
}

void Pass::set_trace(TraceFn fn, void *user) {
    const Config &c = model_.config;
    if (fn) wide_.resize(elements(std::max({c.d_model, c.d_in_proj(), c.d_inner() * c.d_state})));
    trace_ = fn, trace_user_ = user;
}

void Pass::feed(Feed *feeds, size_t count) {
    while (const int n = gather(feeds, count)) {
        trace(-1, "embed", r_.data(), model_.config.d_model);
        for (int l = 0; l < model_.config.n_layers; ++l) layer(l, n);
        read_out();
        for (const Span &span : spans_) span.state->position += static_cast<uint64_t>(span.n);
    }
}

// Takes tokens of the feeds in their order, and notes which logits are wanted: all, or those of a feed's last token. Logits
// change nothing that follows; where nobody looks at them they are left out.
int Pass::gather(Feed *feeds, size_t count) {
    const Config &c = model_.config;
    const int most = trace_ ? 1 : rows_;  // a trace tells of one token after the other
    int n = 0;
    spans_.clear(), wanted_.clear(), targets_.clear();
    for (Feed *feed = feeds; feed != feeds + count && n < most; ++feed) {
        if (feed->n == 0) continue;
        State &state = feed->session->state();
        const int taken = static_cast<int>(std::min(feed->n, static_cast<size_t>(most - n)));
        spans_.push_back({&state, n, taken});
        for (int t = 0; t < taken; ++t, ++n) {
            ops::embed(model_.embedding + elements(static_cast<int>(feed->tokens[t]), c.d_model), c.embed_mul,
                       c.d_model, r_.data() + elements(n, c.d_model));
            const bool last = static_cast<size_t>(t) + 1 == feed->n;
            if (!feed->all_logits && !last && !trace_) continue;
            wanted_.push_back(n);
            targets_.push_back(feed->all_logits ? feed->all_logits : state.logits.data());
            if (feed->all_logits) feed->all_logits += state.logits.size();
        }
        feed->tokens += taken, feed->n -= static_cast<size_t>(taken);
    }
    return n;
}

// §8, line by line.
void Pass::layer(int l, int n) {
    const Config &config = model_.config;
    const Layer &weights = model_.layers[static_cast<size_t>(l)];
    const int D = config.d_model, E = config.d_inner();

    pool_->split(n, 4, [&](int begin, int end) {
        for (int t = begin; t < end; ++t)
            scales_[static_cast<size_t>(t)] = ops_.norm(r_.data() + elements(t, D), weights.norm1, D,
                                                        config.norm_mantissa, u_.data() + elements(t, ops::padded(D)));
    });
    trace_norm(l, "norm1", u_.data(), D);
    pool_->split(config.d_in_proj(), grain_of(weights.in_proj),
                 [&](int begin, int end) { ops_.linear(weights.in_proj, begin, end, u_.data(), n, z_xbc_dt_.data()); });
    mix(l);
    pool_->split(n, 4, [&](int begin, int end) {
        for (int t = begin; t < end; ++t)
            scales_[static_cast<size_t>(t)] = ops_.norm(o_.data() + elements(t, E), weights.norm2, E,
                                                        config.norm_mantissa, v_.data() + elements(t, ops::padded(E)));
    });
    trace_norm(l, "norm2", v_.data(), E);
    pool_->split(D, grain_of(weights.out_proj), [&](int begin, int end) {
        ops_.linear(weights.out_proj, begin, end, v_.data(), n, out_.data());
        for (int t = 0; t < n; ++t)
            ops_.add(out_.data() + elements(t, D) + begin, end - begin, r_.data() + elements(t, D) + begin);
    });
    trace(l, "out_proj", out_.data(), D);
    trace(l, "resid", r_.data(), D);
}

void Pass::mix(int l) {
    const Config &config = model_.config;
    const int E = config.d_inner(), N = config.d_state;
    int16_t *c = c_.data() + E;  // [2N]
    for (const Span &span : spans_) {
        for (int t = 0; t < span.n; ++t) {
            int16_t *B = b_c_.data() + elements(span.first + t, 2 * N);  // B and C at once: they lie side by side
            convolve(l, span, t, E, 2 * N, c);
            if (config.rotation) {
                const uint64_t position = span.state->position + static_cast<uint64_t>(t);
                ops_.activate(config.activation, c, 2 * N, 8, 16, B);
                ops::rotate(position, N, B);
                ops::rotate(position, N, B + N);
            } else {
                ops_.activate(config.activation, c, 2 * N, 3, 6, B);
            }
        }
        move_on(l, span, E, 2 * N);
    }
    const int at_once = heads_at_once(config);
    int parts = 0;
    for (int head = 0; head < config.n_heads; head += at_once) ++parts;
    pool_->run(parts, [&](int i) {
        const int first = i * at_once;
        mix_heads(l, first, std::min(at_once, config.n_heads - first));
    });
    if (trace_) trace_layer(l);
}

// One row after the other: what one writes, the next one's read from the nearest cache.
void Pass::mix_heads(int l, int first, int heads) {
    const Config &config = model_.config;
    const Layer &weights = model_.layers[static_cast<size_t>(l)];
    const int E = config.d_inner(), N = config.d_state, H = config.n_heads, P = config.head_dim;
    const int begin = first * P, n = heads * P;  // the channels
    int16_t *c = c_.data() + begin, *x = x_.data() + begin, *y = y_.data() + begin, *g = g_.data() + begin;  // [n]
    for (const Span &span : spans_) {
        int32_t *h = span.state->h.data() + elements(l, E, N) + elements(begin, N);  // [heads, N, P]
        for (int t = 0; t < span.n; ++t) {
            const int row = span.first + t;
            const int16_t *z = z_xbc_dt_.data() + elements(row, config.d_in_proj());
            const int16_t *B = b_c_.data() + elements(row, 2 * N), *dt = z + config.d_in_proj() - H + first;
            convolve(l, span, t, begin, n, c);
            ops_.activate(config.activation, c, n, 5, 8, x);
            ops_.scan(weights, {first, heads, P, N, config.scan}, x, B, B + N, dt, h, m_.data() + first, y);
            ops_.activate(config.gate, z + begin, n, 8, 15, g);
            ops_.gate(y, g, n, o_.data() + elements(row, E) + begin);
        }
        move_on(l, span, begin, n);
    }
}

// Channels of row t of a span: the rows before it are there, and what came before the span is remembered.
void Pass::convolve(int l, const Span &span, int t, int channel, int n, int16_t *out) {
    const Config &config = model_.config;
    const Layer &weights = model_.layers[static_cast<size_t>(l)];
    const int channels = config.d_conv();
    const int16_t *past = span.state->past.data() + elements(l, 3, channels) + channel;
    const int16_t *xbc = z_xbc_dt_.data() + elements(span.first, config.d_in_proj()) + config.d_inner() + channel;
    const auto input = [&](int i) { return i < 0 ? past + (3 + i) * channels : xbc + elements(i, config.d_in_proj()); };
    const int16_t *const taps[4] = {input(t - 3), input(t - 2), input(t - 1), input(t)};
    ops_.conv(weights.conv_weight + 4 * channel, weights.conv_bias + channel, taps, n, out);
}

void Pass::move_on(int l, const Span &span, int channel, int n) {
    const Config &config = model_.config;
    const int channels = config.d_conv();
    int16_t *past = span.state->past.data() + elements(l, 3, channels) + channel;
    const int16_t *xbc = z_xbc_dt_.data() + elements(span.first, config.d_in_proj()) + config.d_inner() + channel;
    for (int j = 0; j < 3; ++j) {
        const int i = span.n - 3 + j;  // the new j-th is the span's i-th, or one that was there before, further on
        std::copy_n(i < 0 ? past + (3 + i) * channels : xbc + elements(i, config.d_in_proj()), n, past + j * channels);
    }
}

void Pass::read_out() {
    const Config &c = model_.config;
    const int n = static_cast<int>(wanted_.size()), D = c.d_model;
    if (n == 0) return;
    for (int i = 0; i < n; ++i)
        scales_[static_cast<size_t>(i)] =
            ops_.norm(r_.data() + elements(wanted_[static_cast<size_t>(i)], D), model_.norm_f, D, c.norm_mantissa,
                      u_.data() + elements(i, ops::padded(D)));
    trace_norm(-1, "norm_f", u_.data(), D);
    pool_->split(c.vocab_size, grain_of(D), [&](int begin, int end) {
        ops_.logits(model_.embedding, D, begin, end, u_.data(), n, targets_.data());
    });
    trace(-1, "logits", targets_[0], c.vocab_size);
    // Where all were wanted, the last ones are also kept.
    for (int i = 0; i < n; ++i)
        for (const Span &span : spans_) {
            int32_t *kept = span.state->logits.data();
            if (wanted_[static_cast<size_t>(i)] == span.first + span.n - 1 && targets_[static_cast<size_t>(i)] != kept)
                std::copy_n(targets_[static_cast<size_t>(i)], c.vocab_size, kept);
        }
}

// ---- The trace ------------------------------------------------------------------------------------------------------

// All between the projections, after it was computed: a trace is of one row, of which everything is still there.
void Pass::trace_layer(int l) {
    const Config &config = model_.config;
    const int E = config.d_inner(), N = config.d_state, H = config.n_heads, P = config.head_dim;
    trace(l, "in_proj", z_xbc_dt_.data(), config.d_in_proj());
    trace(l, "conv", c_.data(), config.d_conv());
    trace(l, "x", x_.data(), E);
    trace(l, "B", b_c_.data(), N);
    trace(l, "C", b_c_.data() + N, N);
    trace(l, "m", m_.data(), H);
    const int32_t *h = spans_[0].state->h.data() + elements(l, E, N);  // [H, N, P]; told as [H, P, N]
    int32_t *told = wide_.data();
    for (int i = 0; i < H; ++i, h += N * P)
        for (int p = 0; p < P; ++p)
            for (int n = 0; n < N; ++n) *told++ = h[n * P + p];
    trace(l, "state", wide_.data(), E * N);
    trace(l, "y", y_.data(), E);
    trace(l, "gate", g_.data(), E);
    trace(l, "gated", o_.data(), E);
}

void Pass::trace(int layer, const char *name, const int32_t *values, int count) {
    if (trace_) trace_(trace_user_, spans_[0].state->position, SiteName(layer, name).text(), values, elements(count));
}

template <class Int>
void Pass::trace(int layer, const char *name, const Int *values, int count) {
    if (!trace_) return;
    std::copy_n(values, count, wide_.data());
    trace(layer, name, static_cast<const int32_t *>(wide_.data()), count);
}

void Pass::trace_norm(int layer, const char *name, const int8_t *values, int count) {
    if (!trace_) return;
    const uint64_t position = spans_[0].state->position;
    trace_(trace_user_, position, SiteName(layer, name, ".j").text(), &scales_[0].j, 1);
    trace_(trace_user_, position, SiteName(layer, name, ".mu").text(), &scales_[0].mu, 1);
    trace(layer, name, values, count);
}

}  // namespace mi
