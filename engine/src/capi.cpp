// The C interface: arguments are checked here, and here exceptions become a status and a message. Nothing else happens
// in this file.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "file.hpp"
#pragma GCC visibility push( \
    default)  // of all that the library holds, only what this header declares is seen from outside
#include "mamba_integer.h"
#pragma GCC visibility pop
#include "device.hpp"
#include "kernels.hpp"
#include "model.hpp"
#include "pool.hpp"
#include "sampler.hpp"
#include "session.hpp"
#include "sha256.hpp"
#include "state.hpp"

struct mi_model {
    mi::Model model;
    // The same on a device, from its first session there.
    mutable std::mutex device_lock;
    mutable std::shared_ptr<mi::DeviceModel> device;

    mi_model(mi::Bytes bytes, size_t size) : model(std::move(bytes), size) {}
};

// On the CPU or on a device.
struct mi_session {
    const mi::Model &model;
    std::optional<mi::Session> host;
    std::optional<mi::DeviceSession> device;
    std::vector<mi::Candidate> candidates;  // [V], for the CPU's sampler
    bool traced = false;

    mi_session(const mi::Model &m, const mi::ops::Kernels &kernels)
        : model(m), candidates(static_cast<size_t>(m.config.vocab_size)) {
        host.emplace(m, kernels);
    }
    explicit mi_session(std::shared_ptr<mi::DeviceModel> m) : model(m->model()) { device.emplace(std::move(m)); }
};

namespace {

// Of fixed size, so that telling of an error cannot fail.
thread_local char last_error[512] = "";

mi_status fail(mi_status status, const char *message) {
    std::strncpy(last_error, message, sizeof last_error - 1);
    return status;
}

// Runs `body`, which returns a status, and lets no exception out.
template <class Body>
mi_status guarded(Body body) noexcept {
    try {
        return body();
    } catch (const mi::FormatError &error) {
        return fail(MI_ERR_FORMAT, error.what());
    } catch (const mi::FileError &error) {
        return fail(MI_ERR_IO, error.what());
    } catch (const mi::DeviceError &error) {
        return fail(error.status, error.what());
    } catch (const std::bad_alloc &) {
        return fail(MI_ERR_MEMORY, "out of memory");
    } catch (const std::exception &error) {  // std::length_error and the like: a size that cannot be had
        return fail(MI_ERR_MEMORY, error.what());
    }
}

mi_status check_tokens(const mi::Model &model, const uint32_t *tokens /* [n] */, size_t n) {
    const uint32_t vocab_size = static_cast<uint32_t>(model.config.vocab_size);
    for (size_t i = 0; i < n; ++i)
        if (tokens[i] >= vocab_size) {
            char message[64];
            std::snprintf(message, sizeof message, "token %u is outside the vocabulary of %u",
                          static_cast<unsigned>(tokens[i]), static_cast<unsigned>(vocab_size));
            return fail(MI_ERR_ARGUMENT, message);
        }
    return MI_OK;
}

}  // namespace

const char *mi_last_error(void) { return last_error; }

const char *mi_version(void) { return mi::engine_version; }

const char *mi_isa(void) {
    const mi::ops::Kernels *kernels = mi::ops::kernels();
    return kernels ? kernels->isa : "none";
}

mi_status mi_model_load(const char *path, mi_model **out) {
    if (!path || !out) return fail(MI_ERR_ARGUMENT, "mi_model_load: null pointer");
    *out = nullptr;
    return guarded([&] {
        size_t size = 0;
        mi::Bytes bytes = mi::map_file(path, size);
        try {
            *out = new mi_model(std::move(bytes), size);
        } catch (const mi::FormatError &error) {
            return fail(MI_ERR_FORMAT, (std::string(path) + ": " + error.what()).c_str());
        }
        return MI_OK;
    });
}

mi_status mi_model_load_memory(const void *data, size_t size, mi_model **out) {
    if ((!data && size > 0) || !out) return fail(MI_ERR_ARGUMENT, "mi_model_load_memory: null pointer");
    *out = nullptr;
    return guarded([&] {
        *out = new mi_model(mi::copy_bytes(data, size), size);
        return MI_OK;
    });
}

void mi_model_free(mi_model *model) { delete model; }

void mi_model_get_config(const mi_model *model, mi_config *out) {
    if (!model || !out) return;
    const mi::Config &c = model->model.config;
    const auto u32 = [](int v) { return static_cast<uint32_t>(v); };
    *out = {};
    out->d_model = u32(c.d_model);
    out->n_layers = u32(c.n_layers);
    out->n_heads = u32(c.n_heads);
    out->head_dim = u32(c.head_dim);
    out->d_state = u32(c.d_state);
    out->vocab_size = u32(c.vocab_size);
    out->context_length = c.context_length;
    out->scan = static_cast<uint32_t>(c.scan);
    out->activation = static_cast<uint32_t>(c.activation);
    out->gate = static_cast<uint32_t>(c.gate);
    out->norm_mantissa = u32(c.norm_mantissa);
    out->rotation = c.rotation;
    out->ternary = c.ternary;
    out->embed_mul = u32(c.embed_mul);
    out->logit_shift = u32(c.logit_shift);
}

const char *mi_model_name(const mi_model *model) { return model ? model->model.name.c_str() : ""; }

const char *mi_model_digest(const mi_model *model) { return model ? model->model.digest.c_str() : ""; }

const char *mi_model_tokenizer(const mi_model *model, size_t *size) {
    if (size) *size = model ? model->model.tokenizer_size : 0;
    return model ? model->model.tokenizer : "";
}

mi_status mi_session_new(const mi_model *model, mi_session **out) {
    if (!model || !out) return fail(MI_ERR_ARGUMENT, "mi_session_new: null pointer");
    *out = nullptr;
    const mi::ops::Kernels *kernels = mi::ops::kernels();
    if (!kernels)
        return fail(MI_ERR_ARGUMENT,
                    "MAMBA_INTEGER_ISA names an instruction set that this machine does not run; it may be scalar or, "
                    "where the processor has it, avx2, avx512, neon or neon-dotprod");
    return guarded([&] {
        *out = new mi_session(model->model, *kernels);
        return MI_OK;
    });
}

mi_status mi_session_new_on(const mi_model *model, const char *device, mi_session **out) {
    if (!model || !device || !out) return fail(MI_ERR_ARGUMENT, "mi_session_new_on: null pointer");
    *out = nullptr;
    if (std::strcmp(device, "cpu") == 0) return mi_session_new(model, out);
    if (std::strcmp(device, "cuda") != 0) return fail(MI_ERR_ARGUMENT, "the device must be cpu or cuda");
    return guarded([&] {
        const std::lock_guard<std::mutex> hold(model->device_lock);
        if (!model->device) model->device = std::make_shared<mi::DeviceModel>(model->model);
        *out = new mi_session(model->device);
        return MI_OK;
    });
}

void mi_session_free(mi_session *session) { delete session; }

void mi_session_reset(mi_session *session) {
    if (!session) return;
    if (session->host) return session->host->reset();
    guarded([&] {  // what fails here leaves the state lost, which the next call tells
        session->device->reset();
        return MI_OK;
    });
}

uint64_t mi_session_position(const mi_session *session) {
    if (!session) return 0;
    return session->host ? session->host->position() : session->device->position();
}

mi_status mi_session_set_threads(mi_session *session, uint32_t threads) {
    if (!session) return fail(MI_ERR_ARGUMENT, "mi_session_set_threads: null pointer");
    if (threads < 1 || threads > 256) return fail(MI_ERR_ARGUMENT, "threads must be from 1 to 256");
    return guarded([&] {
        if (session->host) session->host->pass().set_threads(static_cast<int>(threads));
        return MI_OK;
    });
}

mi_status mi_session_feed(mi_session *session, const uint32_t *tokens, size_t n, int32_t *all_logits) {
    if (!session || (!tokens && n > 0)) return fail(MI_ERR_ARGUMENT, "mi_session_feed: null pointer");
    if (const mi_status bad = check_tokens(session->model, tokens, n)) return bad;
    return guarded([&] {
        if (session->host) {
            session->host->feed(tokens, n, all_logits);
        } else {
            const mi::DeviceSession::Tokens feed = {&*session->device, tokens, n, all_logits};
            mi::DeviceSession::feed(&feed, 1);
        }
        return MI_OK;
    });
}

mi_status mi_feed_many(const mi_feed *feeds, size_t count) {
    if (!feeds && count > 0) return fail(MI_ERR_ARGUMENT, "mi_feed_many: null pointer");
    if (count == 0) return MI_OK;
    for (size_t i = 0; i < count; ++i) {
        const mi_feed &feed = feeds[i];
        if (!feed.session || (!feed.tokens && feed.n > 0)) return fail(MI_ERR_ARGUMENT, "mi_feed_many: null pointer");
        if (&feed.session->model != &feeds[0].session->model)
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: the sessions are of different models");
        if (feed.session->host.has_value() != feeds[0].session->host.has_value())
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: the sessions are on different devices");
        if (count > 1 && feed.session->traced)
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: a session with a trace can only be fed alone");
        if (const mi_status bad = check_tokens(feed.session->model, feed.tokens, feed.n)) return bad;
    }
    return guarded([&] {
        std::vector<mi_session *> sessions;
        for (size_t i = 0; i < count; ++i) sessions.push_back(feeds[i].session);
        std::sort(sessions.begin(), sessions.end(), std::less<>());
        if (std::adjacent_find(sessions.begin(), sessions.end()) != sessions.end())
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: a session is there twice");
        if (feeds[0].session->host) {
            std::vector<mi::Feed> all;
            for (size_t i = 0; i < count; ++i)
                all.push_back({&*feeds[i].session->host, feeds[i].tokens, feeds[i].n, feeds[i].all_logits});
            feeds[0].session->host->pass().feed(all.data(), count);
        } else {
            std::vector<mi::DeviceSession::Tokens> all;
            for (size_t i = 0; i < count; ++i)
                all.push_back({&*feeds[i].session->device, feeds[i].tokens, feeds[i].n, feeds[i].all_logits});
            mi::DeviceSession::feed(all.data(), count);
        }
        return MI_OK;
    });
}

size_t mi_session_state_size(const mi_session *session) { return session ? mi::state_bytes(session->model) : 0; }

mi_status mi_session_save(const mi_session *session, void *out, size_t size) {
    if (!session || !out) return fail(MI_ERR_ARGUMENT, "mi_session_save: null pointer");
    if (size != mi_session_state_size(session))
        return fail(MI_ERR_ARGUMENT, "mi_session_save: the buffer must have mi_session_state_size bytes");
    return guarded([&] {
        uint8_t *bytes = static_cast<uint8_t *>(out);
        if (session->host)
            mi::write_state(session->model, session->host->state(), bytes);
        else
            mi::write_state(session->model, session->device->save(), bytes);
        return MI_OK;
    });
}

mi_status mi_session_restore(mi_session *session, const void *data, size_t size) {
    if (!session || (!data && size > 0)) return fail(MI_ERR_ARGUMENT, "mi_session_restore: null pointer");
    return guarded([&] {
        const uint8_t *bytes = static_cast<const uint8_t *>(data);
        if (session->host) {
            mi::read_state(session->model, bytes, size, session->host->state());
        } else {
            mi::State state(session->model.config);
            mi::read_state(session->model, bytes, size, state);
            session->device->restore(state);
        }
        return MI_OK;
    });
}

const int32_t *mi_session_logits(const mi_session *session) {
    if (!session) return nullptr;
    if (session->host) return session->host->logits();
    const int32_t *logits = nullptr;
    guarded([&] {
        logits = session->device->logits();
        return MI_OK;
    });
    return logits;
}

mi_status mi_session_sample(mi_session *session, const mi_sampling *sampling, uint64_t step, uint32_t *token) {
    if (!session || !sampling || !token) return fail(MI_ERR_ARGUMENT, "mi_session_sample: null pointer");
    if (sampling->temperature > uint32_t{1} << 22)
        return fail(MI_ERR_ARGUMENT, "temperature must be at most 64 (2^22 in Q16)");
    if (sampling->top_p < 1 || sampling->top_p > uint32_t{1} << 16)
        return fail(MI_ERR_ARGUMENT, "top_p must be above 0 and at most 1 (1 ... 2^16 in Q16)");
    if (mi_session_position(session) == 0) return fail(MI_ERR_ARGUMENT, "mi_session_sample: no token was fed yet");
    const mi::Config &c = session->model.config;
    const mi::Sampling s = {sampling->temperature, sampling->top_k, sampling->top_p, sampling->seed};
    return guarded([&] {
        *token = session->host ? mi::sample(session->host->logits(), c.vocab_size, c.embed_mul, c.logit_shift, s, step,
                                            session->candidates.data())
                               : session->device->sample(s, step);
        return MI_OK;
    });
}

mi_status mi_session_set_trace(mi_session *session, mi_trace_fn fn, void *user) {
    if (!session) return fail(MI_ERR_ARGUMENT, "mi_session_set_trace: null pointer");
    if (!session->host)
        return fn ? fail(MI_ERR_ARGUMENT, "a trace is of the CPU; this session is on another device") : MI_OK;
    return guarded([&] {
        session->host->pass().set_trace(fn, user);
        session->traced = fn != nullptr;
        return MI_OK;
    });
}

void mi_sha256(const void *data, size_t size, uint8_t out[32]) {
    mi::Sha256 sha;
    sha.update(data, size);
    const mi::Sha256::Digest digest = sha.finish();
    std::memcpy(out, digest.data(), digest.size());
}
