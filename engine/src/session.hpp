// Sequences: what each of them remembers, and how their tokens go through the model.
//
// What this file knows: the order of operations (spec/ARITHMETIC.md §8 and §9) and their places in memory. What it does not
// know: files, sampling, instruction sets (it is handed a table of operations).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "model.hpp"
#include "pool.hpp"

namespace mi {

// All that a sequence remembers; its size does not grow with length.
struct State {
    std::vector<int16_t> past;    // [L, 3, E+2N] the last three x | B | C before the convolution, oldest first
    std::vector<int32_t> h;       // [L, H, N, P] Q14
    std::vector<int32_t> logits;  // [V] after the last token
    uint64_t position = 0;        // tokens fed

    explicit State(const Config &config);  // of a sequence that has not begun
};

// As mi_trace_fn of the C interface.
using TraceFn = void (*)(void *user, uint64_t position, const char *site, const int32_t *values, size_t count);

class Session;

// Tokens for a session, each below vocab_size.
struct Feed {
    Session *session;
    const uint32_t *tokens;  // [n]
    size_t n;
    int32_t *all_logits = nullptr;  // [n, V] where the logits of every position go, or null
};

// Tokens on their way through the model, some at a time, so that a pass over the weights serves them all: the next ones of
// one sequence, or of many. Each is computed as it would be alone.
class Pass {
  public:
    // Room for `rows` tokens at a time. Allocates all that it will ever need but for set_threads and set_trace.
    Pass(const Model &model, const ops::Kernels &kernels, int rows);

    // Feeds all; what is in `feeds` is used up. The sessions are different ones of this pass's model.
    void feed(Feed *feeds, size_t count);

    void set_threads(int threads) { pool_ = std::make_unique<Pool>(threads); }
    void set_trace(TraceFn fn, void *user);

  private:
    // Tokens of one sequence: the rows first ... first + n - 1.
    struct Span {
        State *state;
        int first, n;
    };

    int gather(Feed *feeds, size_t count);  // takes the next tokens of all into rows
    void layer(int index, int n);
    void mix(int index);                              // between the projections
    void mix_heads(int index, int first, int heads);  // some heads of it, for all rows
    void convolve(int index, const Span &span, int t, int channel, int n, int16_t *out /* [n] */);
    void move_on(int index, const Span &span, int channel, int n);  // what the convolution remembers
    void read_out();

    // The trace, of one row. Layer -1 stands for the sites outside layers.
    void trace_layer(int index);
    void trace(int layer, const char *name, const int32_t *values /* [count] */, int count);
    template <class Int>
    void trace(int layer, const char *name, const Int *values /* [count] */, int count);
    void trace_norm(int layer, const char *name, const int8_t *values /* [count] */, int count);

    const Model &model_;
    const ops::Kernels &ops_;
    std::unique_ptr<Pool> pool_;
    const int rows_;
    std::vector<Span> spans_;

    // A row whose logits are wanted, and where.
    std::vector<int> wanted_;
    std::vector<int32_t *> targets_;

    // What tokens compute on their way. Nothing of it is read by the next ones.
    std::vector<ops::NormScale> scales_;  // [rows] of the last norm
    std::vector<int32_t> r_;              // [rows, D] Q8, the residual
    std::vector<int8_t> u_;               // [rows, padded(D)] Q5, the residual normed
    std::vector<int16_t> z_xbc_dt_;       // [rows, 2E+2N+H] Q8
    std::vector<int16_t> b_c_;            // [rows, 2N] B and C Q3
    std::vector<int16_t> c_;              // [E+2N] Q8, xBC after the convolution
    std::vector<int16_t> x_;              // [E] Q5
    std::vector<int32_t> m_;              // [H] share of the state that is replaced
    std::vector<int16_t> y_;              // [E] Q8
    std::vector<int16_t> g_;              // [E] Q8
    std::vector<int32_t> o_;              // [rows, E] Q10
    std::vector<int8_t> v_;               // [rows, padded(E)] Q5, o normed
    std::vector<int16_t> out_;            // [rows, D] Q8, what a layer adds to the residual

    TraceFn trace_ = nullptr;
    void *trace_user_ = nullptr;
    std::vector<int32_t> wide_;  // values on their way to the trace
};

class Session {
  public:
    // Allocates all that the sequence will ever need. The model must outlive the session.
    Session(const Model &model, const ops::Kernels &kernels, int rows = 32);

    // Back to zero state, position 0.
    void reset();

    // As Pass::feed, of this session alone.
    void feed(const uint32_t *tokens /* [n] */, size_t n, int32_t *all_logits /* [n, V] or null */);

    // [V] after the last token; null before the first.
    const int32_t *logits() const { return state_.position == 0 ? nullptr : state_.logits.data(); }

    const Model &model() const { return model_; }
    State &state() { return state_; }
    const State &state() const { return state_; }
    uint64_t position() const { return state_.position; }
    Pass &pass() { return pass_; }

  private:
    const Model &model_;
    State state_;
    Pass pass_;
};

}  // namespace mi
