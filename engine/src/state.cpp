#include "state.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "sha256.hpp"

namespace mi {
namespace {

constexpr char magic[8] = {'M', 'I', '-', 'S', 'T', 'A', 'T', 'E'};
constexpr uint32_t version = 1;
constexpr size_t digest_bytes = 32, header_bytes = sizeof magic + 4 + digest_bytes + 8;

// Beyond these no sequence comes (ARITHMETIC §7), and within them nothing that follows overflows.
constexpr int32_t most_past = 32767, most_logit = (1 << 30) - 1;
constexpr int32_t most_h(Scan form) { return form == Scan::convex ? 251968 : 251968 + 32768; }

template <class Int>
uint8_t *put(uint8_t *out, Int v) {
    for (size_t i = 0; i < sizeof v; ++i) *out++ = static_cast<uint8_t>(static_cast<uint64_t>(v) >> (8 * i));
    return out;
}

template <class Int>
Int get(const uint8_t *p) {
    uint64_t v = 0;
    for (size_t i = 0; i < sizeof(Int); ++i) v |= uint64_t{p[i]} << (8 * i);
    return static_cast<Int>(v);
}

template <class Int>
uint8_t *put_all(uint8_t *out, const std::vector<Int> &values) {
    for (Int v : values) out = put(out, v);
    return out;
}

// Whether all are within -most ... most, and, of a sequence that has not begun, zero.
template <class Int>
bool good(const uint8_t *data, size_t n, int32_t most) {
    bool within = true;
    for (size_t i = 0; i < n; ++i) {
        const Int v = get<Int>(data + i * sizeof(Int));
        within &= v >= -most && v <= most;
    }
    return within;
}

template <class Int>
const uint8_t *get_all(const uint8_t *data, std::vector<Int> &values) {
    for (Int &v : values) v = get<Int>(data), data += sizeof(Int);
    return data;
}

std::string bytes_of(const std::string &hex) {
    std::string bytes;
    const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes += static_cast<char>(static_cast<uint8_t>(digit(hex[i]) << 4 | digit(hex[i + 1])));
    return bytes;
}

struct Sizes {
    size_t past, h, logits;  // elements

    explicit Sizes(const Config &c)
        : past(static_cast<size_t>(c.n_layers) * 3 * static_cast<size_t>(c.d_conv())),
          h(static_cast<size_t>(c.n_layers) * static_cast<size_t>(c.d_inner()) * static_cast<size_t>(c.d_state)),
          logits(static_cast<size_t>(c.vocab_size)) {}
    size_t bytes() const { return 2 * past + 4 * h + 4 * logits; }
};

Sha256::Digest digest_of(const uint8_t *data, size_t size) {
    Sha256 sha;
    sha.update(data, size);
    return sha.finish();
}

}  // namespace

size_t state_bytes(const Model &model) { return header_bytes + Sizes(model.config).bytes() + digest_bytes; }

void write_state(const Model &model, const State &state, uint8_t *out) {
    const std::string model_digest = bytes_of(model.digest);
    uint8_t *p = out;
    p = std::copy_n(reinterpret_cast<const uint8_t *>(magic), sizeof magic, p);
    p = put(p, version);
    p = std::copy_n(reinterpret_cast<const uint8_t *>(model_digest.data()), digest_bytes, p);
    p = put(p, state.position);
    p = put_all(p, state.past);
    p = put_all(p, state.h);
    if (state.position == 0)
        p = std::fill_n(p, 4 * state.logits.size(), uint8_t{0});
    else
        p = put_all(p, state.logits);
    const Sha256::Digest digest = digest_of(out, static_cast<size_t>(p - out));
    std::copy(digest.begin(), digest.end(), p);
}

void read_state(const Model &model, const uint8_t *data, size_t size, State &state) {
    const auto fail = [](const std::string &message) { refuse("state: " + message); };
    if (size < header_bytes || std::memcmp(data, magic, sizeof magic) != 0) fail("not a saved state");
    const uint8_t *p = data + sizeof magic;
    const uint32_t found = get<uint32_t>(p);
    if (found != version)
        fail("version " + std::to_string(found) + "; this release reads version " + std::to_string(version));
    p += 4;
    if (std::memcmp(p, bytes_of(model.digest).data(), digest_bytes) != 0)
        fail("it belongs to another model than " + model.digest);
    p += digest_bytes;
    const Sizes sizes(model.config);
    const size_t whole = state_bytes(model);
    if (size != whole)
        fail("it has " + std::to_string(size) + " bytes; one of this model has " + std::to_string(whole));
#if !defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)  // as in model.cpp
    const Sha256::Digest digest = digest_of(data, size - digest_bytes);
    if (!std::equal(digest.begin(), digest.end(), data + size - digest_bytes))
        fail("damaged or altered: its contents do not have the digest that it states");
#endif
    // The digest is anybody's to compute; the values must be ones that a sequence can have.
    const uint64_t position = get<uint64_t>(p);
    p += 8;
    if (position >> 63 != 0) fail("its position is beyond 2^63");
    const uint8_t *past = p, *h = past + 2 * sizes.past, *logits = h + 4 * sizes.h;
    const bool begun = position != 0;
    if (!good<int16_t>(past, sizes.past, begun ? most_past : 0) ||
        !good<int32_t>(h, sizes.h, begun ? most_h(model.config.scan) : 0) ||
        !good<int32_t>(logits, sizes.logits, begun ? most_logit : 0))
        fail("a value is outside the range that it can have");
    get_all(past, state.past);
    get_all(h, state.h);
    get_all(logits, state.logits);
    state.position = position;
}

}  // namespace mi
