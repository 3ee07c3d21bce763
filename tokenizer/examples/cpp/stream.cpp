// Encodes texts together and decodes each token by token: stream TOKENIZER TEXT...
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mamba_integer_tokenizer.h"

namespace {

void check(mi_tokenizer_status status) {
    if (status != MI_TOKENIZER_OK) throw std::runtime_error(mi_tokenizer_last_error());
}

// A tokenizer that frees itself, and so does a stream, which comes before its tokenizer.
struct Free {
    void operator()(mi_tokenizer *tokenizer) const { mi_tokenizer_free(tokenizer); }
    void operator()(mi_tokenizer_stream *stream) const { mi_tokenizer_stream_free(stream); }
};
using Tokenizer = std::unique_ptr<mi_tokenizer, Free>;
using Stream = std::unique_ptr<mi_tokenizer_stream, Free>;

Tokenizer load(const char *path) {
    mi_tokenizer *tokenizer = nullptr;
    check(mi_tokenizer_load(path, &tokenizer));
    return Tokenizer(tokenizer);
}

Stream stream_of(const Tokenizer &tokenizer) {
    mi_tokenizer_stream *stream = nullptr;
    check(mi_tokenizer_stream_new(tokenizer.get(), &stream));
    return Stream(stream);
}

void run(const char *path, const std::vector<const char *> &texts) {
    const Tokenizer tokenizer = load(path);
    std::vector<const void *> pointers(texts.begin(), texts.end());
    std::vector<size_t> sizes;
    size_t bytes = 0;
    for (const char *text : texts) {
        sizes.push_back(std::strlen(text));
        bytes += sizes.back();
    }
    // There are never more tokens than bytes.
    std::vector<uint32_t> tokens(bytes);
    std::vector<size_t> ends(texts.size());
    size_t count = 0;
    check(mi_tokenizer_encode_batch(tokenizer.get(), pointers.data(), sizes.data(), texts.size(),
                                    MI_TOKENIZER_SPECIAL_REFUSE, 2, tokens.data(), tokens.size(), ends.data(), &count));

    const Stream stream = stream_of(tokenizer);
    size_t from = 0;
    for (const size_t end : ends) {
        uint8_t text[777];
        size_t length = 0;
        std::string line;
        for (size_t i = from; i < end; ++i) {
            check(mi_tokenizer_stream_push(stream.get(), tokens[i], text, sizeof text, &length));
            line += "[" + std::string(text, text + length) + "]";
        }
        check(mi_tokenizer_stream_finish(stream.get(), text, sizeof text, &length));
        line.append(text, text + length);
        std::printf("%zu tokens: %s\n", end - from, line.c_str());
        from = end;
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::fputs("stream TOKENIZER TEXT...\n", stderr);
        return 1;
    }
    try {
        run(argv[1], std::vector<const char *>(argv + 2, argv + argc));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return 0;
}
