// One sequence: its state, the order in which a model's operations run on a token, and the trace of what they computed.
//
// What this file knows: models and operations. What it does not know: files, text, how tokens are chosen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "model.hpp"

namespace mi {

// All that a sequence remembers; its size does not grow with length.
struct State {
    std::vector<int16_t> past;  // [L, 3, E+2N] the last three x | B | C before the convolution, oldest first
    std::vector<int32_t> h;     // [L, H, P, N] Q14
    uint64_t position = 0;      // tokens fed
};

// As mi_trace_fn of the C interface.
using TraceFn = void (*)(void *user, uint64_t position, const char *site, const int32_t *values, size_t count);

class Session {
  public:
    // Allocates all that the sequence will ever need; no other member allocates or throws. The model must outlive the
    // session.
    Session(const Model &model, const ops::Kernels &kernels);

    // Back to zero state, position 0.
    void reset();

    // Feeds tokens, each below vocab_size. The logits of every position go to `all_logits` unless it is null; those of
    // the last one are kept.
    void feed(const uint32_t *tokens /* [n] */, size_t n, int32_t *all_logits /* [n, V] or null */);

    // [V] after the last token; null before the first.
    const int32_t *logits() const { return state_.position == 0 ? nullptr : logits_.data(); }

    const Model &model() const { return model_; }
    uint64_t position() const { return state_.position; }
    void set_trace(TraceFn fn, void *user) { trace_ = fn, trace_user_ = user; }

  private:
    // Tokens that go through the model together, so that a pass over the weights serves them all.
    static constexpr size_t batch = 16;

    void embed(const uint32_t *tokens /* [n] */, int n);
    void layer(int index, int n);
    void mix(int index, int t);                                  // between the projections: one token after another
    void read_out(int first, int n, int32_t *out /* [n, V] */);  // the final norm and the logits of n tokens

    // The trace. Layer -1 stands for the sites outside layers.
    void trace(int layer, const char *name, const int32_t *values /* [count] */, int count);
    void trace(int layer, const char *name, const int16_t *values /* [count] */, int count);
    void trace_norm(int layer, const char *name, ops::NormScale scale, const int16_t *values /* [count] */, int count);

    const Model &model_;
    const ops::Kernels &ops_;
    State state_;

    // What tokens compute on their way. Nothing of it is read by the next ones; the logits stay for the caller.
    std::vector<int32_t> r_;         // [batch, D] Q8, the residual
    std::vector<int16_t> u_;         // [batch, D] Q5, the residual normed
    std::vector<int16_t> z_xbc_dt_;  // [batch, 2E+2N+H] Q8
    std::vector<int16_t> c_;         // [E+2N] Q8, xBC after the convolution
    std::vector<int16_t> xbc_;       // [E+2N] x Q5, B and C Q3
    std::vector<int32_t> m_;         // [H] share of the state that is replaced
    std::vector<int16_t> y_;         // [E] Q8
    std::vector<int16_t> g_;         // [E] Q8
    std::vector<int32_t> o_;         // [E] Q10
    std::vector<int16_t> v_;         // [batch, E] Q5, o normed
    std::vector<int16_t> out_;       // [batch, D] Q8, what a layer adds to the residual
    std::vector<int32_t> logits_;    // [V]

    TraceFn trace_ = nullptr;
    void *trace_user_ = nullptr;
    std::vector<int32_t> wide_;  // [max(D, 2E+2N+H)] int16 values on their way to the trace
};

}  // namespace mi
