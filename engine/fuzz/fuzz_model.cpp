// Any bytes as a model file: refused with a message, or a model that computes. The digest, which would refuse all that a
// fuzzer finds, is not compared in these builds (FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION).

#include <cstdlib>
#include <vector>

#include "mamba_integer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mi_model *model = nullptr;
    if (mi_model_load_memory(data, size, &model) != MI_OK) {
        if (model || mi_last_error()[0] == 0) std::abort();
        return 0;
    }
    mi_config config;
    mi_model_get_config(model, &config);
    mi_session *session = nullptr;
    if (mi_session_new(model, &session) != MI_OK) std::abort();
    const uint32_t tokens[3] = {config.vocab_size - 1, 0, config.vocab_size >> 1};
    if (mi_session_feed(session, tokens, 3, nullptr) != MI_OK) std::abort();
    const mi_sampling sampling = {65536, 3, 60000, 1};
    uint32_t token = 0;
    if (mi_session_sample(session, &sampling, 0, &token) != MI_OK || token >= config.vocab_size) std::abort();
    mi_session_free(session);
    mi_model_free(model);
    return 0;
}
