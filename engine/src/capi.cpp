// The C interface: arguments are checked here, and here exceptions become a status and a message. Nothing else happens
// in this file.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "file.hpp"
#pragma GCC visibility push( \
    default)  // of all that the library holds, only what this header declares is seen from outside
#include "mamba_integer.h"
#pragma GCC visibility pop
#include "kernels.hpp"
#include "model.hpp"
#include "pool.hpp"
#include "sampler.hpp"
#include "session.hpp"
#include "sha256.hpp"
#include "state.hpp"

struct mi_model {
    mi::Model model;
};

struct mi_session {
    mi::Session session;
    std::vector<mi::Candidate> candidates;  // [V], for the sampler
    bool traced = false;

    mi_session(const mi::Model &model, const mi::ops::Kernels &kernels)
        : session(model, kernels), candidates(static_cast<size_t>(model.config.vocab_size)) {}
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

const char *mi_version(void) { return "0.1.0"; }

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
            *out = new mi_model{mi::Model(std::move(bytes), size)};
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
        *out = new mi_model{mi::Model(mi::copy_bytes(data, size), size)};
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

void mi_session_free(mi_session *session) { delete session; }

void mi_session_reset(mi_session *session) {
    if (session) session->session.reset();
}

uint64_t mi_session_position(const mi_session *session) { return session ? session->session.position() : 0; }

mi_status mi_session_set_threads(mi_session *session, uint32_t threads) {
    if (!session) return fail(MI_ERR_ARGUMENT, "mi_session_set_threads: null pointer");
    if (threads < 1 || threads > 256) return fail(MI_ERR_ARGUMENT, "threads must be from 1 to 256");
    return guarded([&] {
        session->session.pass().set_threads(static_cast<int>(threads));
        return MI_OK;
    });
}

mi_status mi_session_feed(mi_session *session, const uint32_t *tokens, size_t n, int32_t *all_logits) {
    if (!session || (!tokens && n > 0)) return fail(MI_ERR_ARGUMENT, "mi_session_feed: null pointer");
    if (const mi_status bad = check_tokens(session->session.model(), tokens, n)) return bad;
    session->session.feed(tokens, n, all_logits);
    return MI_OK;
}

mi_status mi_feed_many(const mi_feed *feeds, size_t count) {
    if (!feeds && count > 0) return fail(MI_ERR_ARGUMENT, "mi_feed_many: null pointer");
    if (count == 0) return MI_OK;
    for (size_t i = 0; i < count; ++i) {
        const mi_feed &feed = feeds[i];
        if (!feed.session || (!feed.tokens && feed.n > 0)) return fail(MI_ERR_ARGUMENT, "mi_feed_many: null pointer");
        if (&feed.session->session.model() != &feeds[0].session->session.model())
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: the sessions are of different models");
        if (count > 1 && feed.session->traced)
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: a session with a trace can only be fed alone");
        if (const mi_status bad = check_tokens(feed.session->session.model(), feed.tokens, feed.n)) return bad;
    }
    return guarded([&] {
        std::vector<mi_session *> sessions;
        std::vector<mi::Feed> all;
        for (size_t i = 0; i < count; ++i) {
            sessions.push_back(feeds[i].session);
            all.push_back({&feeds[i].session->session, feeds[i].tokens, feeds[i].n, feeds[i].all_logits});
        }
        std::sort(sessions.begin(), sessions.end(), std::less<>());
        if (std::adjacent_find(sessions.begin(), sessions.end()) != sessions.end())
            return fail(MI_ERR_ARGUMENT, "mi_feed_many: a session is there twice");
        feeds[0].session->session.pass().feed(all.data(), count);
        return MI_OK;
    });
}

size_t mi_session_state_size(const mi_session *session) {
    return session ? mi::state_bytes(session->session.model()) : 0;
}

mi_status mi_session_save(const mi_session *session, void *out, size_t size) {
    if (!session || !out) return fail(MI_ERR_ARGUMENT, "mi_session_save: null pointer");
    if (size != mi_session_state_size(session))
        return fail(MI_ERR_ARGUMENT, "mi_session_save: the buffer must have mi_session_state_size bytes");
    return guarded([&] {
        mi::write_state(session->session.model(), session->session.state(), static_cast<uint8_t *>(out));
        return MI_OK;
    });
}

mi_status mi_session_restore(mi_session *session, const void *data, size_t size) {
    if (!session || (!data && size > 0)) return fail(MI_ERR_ARGUMENT, "mi_session_restore: null pointer");
    return guarded([&] {
        mi::read_state(session->session.model(), static_cast<const uint8_t *>(data), size, session->session.state());
        return MI_OK;
    });
}

const int32_t *mi_session_logits(const mi_session *session) { return session ? session->session.logits() : nullptr; }

mi_status mi_session_sample(mi_session *session, const mi_sampling *sampling, uint64_t step, uint32_t *token) {
    if (!session || !sampling || !token) return fail(MI_ERR_ARGUMENT, "mi_session_sample: null pointer");
    if (sampling->temperature > uint32_t{1} << 22)
        return fail(MI_ERR_ARGUMENT, "temperature must be at most 64 (2^22 in Q16)");
    if (sampling->top_p < 1 || sampling->top_p > uint32_t{1} << 16)
        return fail(MI_ERR_ARGUMENT, "top_p must be above 0 and at most 1 (1 ... 2^16 in Q16)");
    const int32_t *logits = session->session.logits();
    if (!logits) return fail(MI_ERR_ARGUMENT, "mi_session_sample: no token was fed yet");
    const mi::Config &c = session->session.model().config;
    const mi::Sampling s = {sampling->temperature, sampling->top_k, sampling->top_p, sampling->seed};
    *token = mi::sample(logits, c.vocab_size, c.embed_mul, c.logit_shift, s, step, session->candidates.data());
    return MI_OK;
}

mi_status mi_session_set_trace(mi_session *session, mi_trace_fn fn, void *user) {
    if (!session) return fail(MI_ERR_ARGUMENT, "mi_session_set_trace: null pointer");
    return guarded([&] {
        session->session.pass().set_trace(fn, user);
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
