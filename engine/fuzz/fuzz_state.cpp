// Any bytes as a saved state of one model: refused with a message and without a trace, or a state that computes and is saved
// as the same bytes.

#include <cstdlib>
#include <cstring>
#include <vector>

#include "../tests/model_writer.hpp"
#include "mamba_integer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const mi_model *const model = [] {
        const test::Bytes file = test::random_model({6, 1, 2, 2, 2, 5}, 1).bytes();
        mi_model *loaded = nullptr;
        if (mi_model_load_memory(file.data(), file.size(), &loaded) != MI_OK) std::abort();
        return loaded;
    }();
    mi_session *session = nullptr;
    if (mi_session_new(model, &session) != MI_OK) std::abort();
    const uint32_t tokens[3] = {4, 0, 2};
    if (mi_session_feed(session, tokens, 3, nullptr) != MI_OK) std::abort();
    std::vector<uint8_t> before(mi_session_state_size(session)), after(before.size());
    if (mi_session_save(session, before.data(), before.size()) != MI_OK) std::abort();
    const bool taken = mi_session_restore(session, data, size) == MI_OK;
    if (mi_session_save(session, after.data(), after.size()) != MI_OK) std::abort();
    if (taken) {  // but for the digest at its end, which these builds do not compare
        if (size != after.size() || std::memcmp(after.data(), data, size - 32) != 0) std::abort();
        if (mi_session_feed(session, tokens, 3, nullptr) != MI_OK) std::abort();
    } else if (after != before) {
        std::abort();
    }
    mi_session_free(session);
    return 0;
}
