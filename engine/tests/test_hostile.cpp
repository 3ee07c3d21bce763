// Model files made to hurt: each must be refused with MI_ERR_FORMAT and a message that names the cause, and nothing
// else may happen. Run it under the sanitizers too (-DMI_SANITIZE=ON).

#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

#include "check.hpp"
#include "mamba_integer.h"
#include "model_writer.hpp"

namespace {

using test::Bytes;
using test::ModelFile;

// Bytes of exactly this size on the heap, so that the address sanitizer sees a read beyond them.
mi_status load(const Bytes &bytes, mi_model **model) { return mi_model_load_memory(bytes.data(), bytes.size(), model); }

bool refused(const Bytes &bytes) {
    mi_model *model = nullptr;
    const mi_status status = load(bytes, &model);
    mi_model_free(model);
    return status == MI_ERR_FORMAT && model == nullptr && mi_last_error()[0] != 0;
}

// Refused, for the reason that `cause` is a part of.
void expect(const char *cause, const Bytes &bytes) {
    if (!CHECK(refused(bytes)))
        std::fprintf(stderr, "  not refused: %s\n", cause);
    else if (!CHECK(std::strstr(mi_last_error(), cause)))
        std::fprintf(stderr, "  expected: %s\n  message:  %s\n", cause, mi_last_error());
}

// A valid file, spoilt in one place, with a digest that is right all the same.
void expect_edit(const char *cause, const std::function<void(ModelFile &)> &edit, test::Shape shape = {}) {
    ModelFile file = test::random_model(shape, 1);
    edit(file);
    expect(cause, file.bytes());
}

void test_valid() {
    for (bool ternary : {false, true})
        for (bool scalar_norm : {false, true}) {
            test::Shape shape;
            shape.ternary = ternary, shape.scalar_norm = scalar_norm;
            ModelFile file = test::random_model(shape, 2);
            mi_model *model = nullptr;
            if (!CHECK(load(file.bytes(), &model) == MI_OK)) {
                std::fprintf(stderr, "  %s\n", mi_last_error());
                continue;
            }
            mi_config config;
            mi_model_get_config(model, &config);
            CHECK(config.d_model == shape.D && config.d_state == shape.N && config.ternary == ternary);
            CHECK(file.digest() == mi_model_digest(model));
            size_t size = 0;
            const char *tokenizer = mi_model_tokenizer(model, &size);
            CHECK(size == 17 && std::memcmp(tokenizer, "no tokenizer\0here", 17) == 0);
            mi_model_free(model);
        }
    // The order of pairs and of tensors is free.
    ModelFile file = test::random_model({}, 3);
    const std::string digest = file.digest();
    std::reverse(file.pairs.begin() + 4, file.pairs.end());
    std::reverse(file.tensors.begin(), file.tensors.end());
    mi_model *model = nullptr;
    CHECK(load(file.bytes(), &model) == MI_OK && digest == mi_model_digest(model));
    mi_model_free(model);
}

void test_damage() {
    test::Shape small;
    small.D = 5, small.L = 1, small.H = 2, small.P = 3, small.N = 2, small.V = 7;
    const Bytes whole = test::random_model(small, 4).bytes();
    for (size_t size = 0; size < whole.size(); ++size)
        CHECK(refused(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size))));
    Bytes longer = whole;
    longer.push_back(0);
    expect("goes on after its last tensor", longer);
    for (size_t at = 0; at < whole.size(); ++at) {
        Bytes flipped = whole;
        flipped[at] = static_cast<uint8_t>(flipped[at] ^ 1 << ((at * 5) & 7));
        CHECK(refused(flipped));
    }
    test::Random random{5};
    for (int i = 0; i < 2000; ++i) {  // several bytes at once, anywhere
        Bytes noisy = whole;
        for (int n = random.within(2, 9); n > 0; --n) noisy[random.next() & 1023] = static_cast<uint8_t>(random.next());
        mi_model *model = nullptr;
        load(noisy, &model);
        mi_model_free(model);
    }
}

void test_claims() {
    expect("not a GGUF file", Bytes(100, 0x55));
    expect_edit("GGUF version 2", [](ModelFile &f) { f.version = 2; });
    expect_edit("GGUF version 50331648", [](ModelFile &f) { f.version = 3 << 24; });  // a big-endian file
    const uint64_t huge[] = {1000, uint64_t{1} << 32, uint64_t{1} << 61, uint64_t{1} << 63,
                             std::numeric_limits<uint64_t>::max()};
    const Bytes whole = test::random_model({}, 6).bytes();
    const auto with = [&](size_t at, uint64_t v) {
        Bytes bytes = whole, value;
        test::put(value, v, 8);
        std::copy(value.begin(), value.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
        return bytes;
    };
    for (uint64_t n : huge) {
        expect("tensors; a model of 2 layers has 26", with(8, n));
        expect("", with(16, n));                                         // pairs: reads on into the tensor list
        expect(n == 1000 ? "unknown key" : "ends inside", with(24, n));  // length of the first key
    }
    for (uint64_t n : huge) {
        Bytes array;
        test::put(array, 4, 4);
        test::put(array, n, 8);
        expect_edit(n == 1000 ? "ends inside" : "longer than the file", [&](ModelFile &f) {
            f.tensors.clear();
            f.set("mamba_integer.in_proj_shift", 9, array);
            std::swap(f.pairs.back(),
                      *std::find_if(f.pairs.begin(), f.pairs.end(), [](auto &p) { return p.type == 9; }));
        });
        expect_edit("must have the shape", [&](ModelFile &f) { f.tensor("token_embd.weight").shape[0] = n; });
    }
    expect_edit("200 dimensions", [](ModelFile &f) { f.tensor("blk.0.scan.k").shape.assign(200, 1); });
    expect_edit("0 dimensions", [](ModelFile &f) { f.tensor("blk.0.scan.k").shape.clear(); });
}

void test_versions_and_keys() {
    const std::string p = "mamba_integer.";
    expect_edit("architecture 'llama'", [](ModelFile &f) { f.set("general.architecture", std::string("llama")); });
    expect_edit("format version 2; this release reads format version 1",
                [&](ModelFile &f) { f.set(p + "format_version", 2u); });
    expect_edit("spec version 0; this release reads spec version 1",
                [&](ModelFile &f) { f.set(p + "spec_version", 0u); });
    expect_edit("unknown key 'general.alignment'", [](ModelFile &f) { f.set("general.alignment", 32u); });
    expect_edit("appears twice", [](ModelFile &f) { f.pairs.push_back(f.pairs[3]); });
    expect_edit("must be u32; the file has string", [&](ModelFile &f) { f.set(p + "d_model", std::string("24")); });
    expect_edit("'mamba_integer.d_model' is missing",
                [&](ModelFile &f) { std::erase_if(f.pairs, [&](auto &pair) { return pair.key == p + "d_model"; }); });
    expect_edit("scan is 'conv?x'", [&](ModelFile &f) { f.set(p + "scan", std::string("conv\nx")); });
    expect_edit("general.name is not UTF-8", [](ModelFile &f) { f.set("general.name", std::string("\xff")); });
    expect_edit("general.name is not UTF-8", [](ModelFile &f) { f.set("general.name", std::string("a\0b", 3)); });
    expect_edit("must have one element a layer",
                [&](ModelFile &f) { f.set(p + "in_proj_shift", std::vector<uint32_t>{14}); });
    expect_edit("shift of 25", [&](ModelFile &f) { f.set(p + "out_proj_shift", std::vector<uint32_t>{14, 25}); });
    const struct {
        const char *key;
        uint32_t value;
    } out_of_range[] = {{"d_model", 0},          {"d_model", 4097},
                        {"d_model", UINT32_MAX}, {"n_layers", 129},
                        {"n_heads", 1025},       {"head_dim", 0},
                        {"head_dim", 257},       {"d_state", 5},
                        {"d_state", 66},         {"vocab_size", (1 << 17) + 1},
                        {"embed_mul", 1024},     {"logit_shift", 32},
                        {"norm_mantissa", 4},    {"rotation", 2},
                        {"vocab_size", 0}};
    for (const auto &bad : out_of_range)
        expect_edit((p + bad.key + " is " + std::to_string(bad.value)).c_str(),
                    [&](ModelFile &f) { f.set(p + bad.key, bad.value); });
    expect_edit("n_heads * head_dim", [&](ModelFile &f) { f.set(p + "n_heads", 1024u), f.set(p + "head_dim", 256u); });
}

void test_tensors() {
    const auto poke = [](const char *tensor, size_t at, int v) {
        return [=](ModelFile &f) { f.tensor(tensor).data[at] = static_cast<uint8_t>(v); };
    };
    expect_edit("unknown tensor 'blk.0.norm3.scale'",
                [](ModelFile &f) { f.tensor("blk.0.norm1.scale").name = "blk.0.norm3.scale"; });
    expect_edit("appears twice", [](ModelFile &f) { f.tensor("blk.1.norm1.scale") = f.tensor("blk.0.norm1.scale"); });
    expect_edit("tensors; a model", [](ModelFile &f) { f.tensors.pop_back(); });
    expect_edit("must be I8; the file has I16", [](ModelFile &f) { f.tensor("blk.0.scan.k").type = 25; });
    expect_edit("must be I8; the file has of another type", [](ModelFile &f) { f.tensor("blk.0.scan.k").type = 0; });
    expect_edit("must have the shape [24]", [](ModelFile &f) { f.tensor("output_norm.scale").shape = {2}; });
    expect_edit("-128 is outside -127 ... 127", poke("token_embd.weight", 3, -128));
    expect_edit("-128 is outside", poke("blk.1.in_proj.weight", 700, -128));
    expect_edit("-128 is outside", poke("blk.1.conv.weight", 3, -128));
    expect_edit("-128 is outside", poke("blk.0.norm2.scale", 23, -128));
    expect_edit("-128 is outside", poke("blk.0.scan.skip", 0, -128));
    expect_edit("7 is outside 8 ... 15", poke("blk.0.scan.k", 1, 7));
    expect_edit("outside 1 ... 524288", poke("blk.0.scan.A", 3, 0x10));
    expect_edit("outside 1 ... 255", poke("blk.0.in_proj.mul", 1, 1));
    expect_edit("outside 1 ... 255", [](ModelFile &f) { f.tensor("blk.0.out_proj.mul").data[0] = 0; });
    expect_edit("-32768 is outside", [](ModelFile &f) {
        f.tensor("blk.0.conv.bias").data[0] = 0, f.tensor("blk.0.conv.bias").data[1] = 0x80;
    });
    expect_edit("beyond 2^30",
                [](ModelFile &f) {  // 127 * (24 * 127) * 255 is below 2^30: only a wide row can break the bound
                    (void)f;
                    f = test::random_model({.D = 320, .L = 1, .H = 2, .P = 4, .N = 2, .V = 3}, 7);
                    std::fill_n(f.tensor("blk.0.in_proj.weight").data.begin(), 320, uint8_t{127});
                    f.tensor("blk.0.in_proj.mul").data[0] = 255;
                });
    test::Shape ternary;
    ternary.D = 23, ternary.ternary = true;
    expect_edit("code 3 stands for nothing", poke("blk.0.in_proj.weight", 8, 0x0c), ternary);
    expect_edit("the padding is not zero", poke("blk.0.in_proj.weight", 5, 0x40), ternary);
}

void test_digest_and_padding() {
    ModelFile file = test::random_model({}, 8);
    file.set("mamba_integer.model_digest", std::string(64, '0'));
    expect("damaged or altered", file.bytes(true));
    Bytes bytes = test::random_model({}, 8).bytes();
    bytes.back() = 1;  // the last tensor, out_proj.mul, has 48 bytes
    expect("padding at byte", bytes);
}

// Arguments of the C interface.
void test_arguments() {
    mi_model *model = nullptr;
    CHECK(mi_model_load(nullptr, &model) == MI_ERR_ARGUMENT &&
          mi_model_load_memory(nullptr, 5, &model) == MI_ERR_ARGUMENT);
    CHECK(mi_model_load("no/such/file", &model) == MI_ERR_IO && std::strstr(mi_last_error(), "no such file"));
    CHECK(mi_model_load("/", &model) == MI_ERR_IO && std::strstr(mi_last_error(), "not a regular file"));
    CHECK(mi_session_new(nullptr, nullptr) == MI_ERR_ARGUMENT);
    CHECK(load(test::random_model({}, 9).bytes(), &model) == MI_OK);
    mi_session *session = nullptr;
    CHECK(mi_session_new(model, &session) == MI_OK && mi_session_logits(session) == nullptr);
    uint32_t token = 0;
    mi_sampling sampling = {0, 0, 65536, 0};
    CHECK(mi_session_sample(session, &sampling, 0, &token) == MI_ERR_ARGUMENT);
    const uint32_t outside[] = {1, 40};
    CHECK(mi_session_feed(session, outside, 2, nullptr) == MI_ERR_ARGUMENT && mi_session_position(session) == 0);
    CHECK(std::strstr(mi_last_error(), "token 40 is outside the vocabulary of 40"));
    CHECK(mi_session_feed(session, outside, 0, nullptr) == MI_OK && mi_session_logits(session) == nullptr);
    CHECK(mi_session_feed(session, outside, 1, nullptr) == MI_OK && mi_session_position(session) == 1);
    for (const mi_sampling &bad :
         {mi_sampling{(1 << 22) + 1, 0, 65536, 0}, mi_sampling{1, 0, 0, 0}, mi_sampling{1, 0, 65537, 0}})
        CHECK(mi_session_sample(session, &bad, 0, &token) == MI_ERR_ARGUMENT);
    CHECK(mi_session_sample(session, &sampling, 0, &token) == MI_OK && token < 40);
    mi_session_reset(session);
    CHECK(mi_session_position(session) == 0 && mi_session_logits(session) == nullptr);
    mi_session_free(session);
    mi_model_free(model);
    mi_session_free(nullptr);
    mi_model_free(nullptr);
}

}  // namespace

int main() {
    test_valid();
    test_damage();
    test_claims();
    test_versions_and_keys();
    test_tensors();
    test_digest_and_padding();
    test_arguments();
    return test::report("test_hostile");
}
