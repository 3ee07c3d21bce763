// What the engine and libmamba_integer_cuda.so say to each other. The library is found at run time (device.hpp), so that the
// engine needs no CUDA; both must come of the same release.
#pragma once

#include "mamba_integer.h"
#include "model.hpp"

namespace mi {

// The parts of a model that a device needs, in the host's memory.
struct DeviceWeights {
    const Config *config;
    const int8_t *embedding;  // [V, D]
    const Layer *layers;      // [L]
    const int8_t *norm_f;     // [D]
};

// As Feed of session.hpp.
struct DeviceFeed {
    void *session;
    const uint32_t *tokens;  // [n]
    size_t n;
    int32_t *all_logits;  // [n, V] in the host's memory, or null
};

// ARITHMETIC §11 as far as it does not look at logits: C of step 3 (0 is greedy) and the random word of step 7.
struct Draw {
    uint64_t C;
    uint32_t top_k, top_p, random;
};

// What a sequence remembers, in the host's memory: the arrays of State in session.hpp.
struct HostState {
    int16_t *past;
    int32_t *h, *logits;
};

// Functions return a status, and tell more in last_error() of the same thread. What is made from a model must be freed before
// it. Sequences of one model may belong to different threads.
struct DevicePlugin {
    uint32_t version;    // plugin_version
    const char *engine;  // engine_version of the sources that it was built from
    const char *(*last_error)();
    mi_status (*model_new)(const DeviceWeights &weights, void **out);
    void (*model_free)(void *model);
    mi_status (*session_new)(void *model, void **out);
    void (*session_free)(void *session);
    mi_status (*reset)(void *session);
    mi_status (*feed)(void *model, const DeviceFeed *feeds, size_t count);
    mi_status (*logits)(void *session, int32_t *out /* [V] */);
    mi_status (*sample)(void *session, const Draw &draw, uint32_t *token);
    uint64_t (*position)(const void *session);
    mi_status (*save)(void *session, const HostState &out);
    mi_status (*restore)(void *session, const HostState &in, uint64_t position);
};

constexpr uint32_t plugin_version = 1;
constexpr const char *engine_version = "0.1.0";

// The library's one symbol, of this type.
constexpr const char *plugin_symbol = "mamba_integer_cuda_plugin";
using PluginFn = const DevicePlugin *(*)();

}  // namespace mi
