// The state of a sequence as bytes, spec/FORMAT.md "State": written, and read without trust.
#pragma once

#include <cstddef>
#include <cstdint>

#include "session.hpp"

namespace mi {

// What a state of this model takes; the same for every position.
size_t state_bytes(const Model &model);

void write_state(const Model &model, const State &state, uint8_t *out /* [state_bytes] */);

// Throws FormatError, and then leaves `state` as it was.
void read_state(const Model &model, const uint8_t *data /* [size] */, size_t size, State &state);

}  // namespace mi
