// Sequences: many fed at once are as each fed alone, whatever the threads; a saved state continues with the same bits, and
// what is not one is refused; the pool does every part once.

#include "session.hpp"

#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "mamba_integer.h"
#include "model_writer.hpp"
#include "state.hpp"

namespace {

using mi::Session;
using mi::ops::Kernels;

size_t size(int n) { return static_cast<size_t>(n); }

mi::Model load(const test::Shape &shape, uint64_t seed) {
    const test::Bytes file = test::random_model(shape, seed).bytes();
    return mi::Model(mi::copy_bytes(file.data(), file.size()), file.size());
}

std::vector<uint32_t> tokens_of(test::Random &random, const mi::Model &model, int n) {
    return random.vector<uint32_t>(size(n), 0, model.config.vocab_size - 1);
}

bool same_logits(const Session &a, const Session &b) {
    return std::equal(a.logits(), a.logits() + a.model().config.vocab_size, b.logits());
}

bool same_state(const Session &a, const Session &b) {
    return a.position() == b.position() && a.state().past == b.state().past && a.state().h == b.state().h;
}

// Modes that differ in what a sequence remembers or where it is.
std::vector<test::Shape> shapes() {
    test::Shape large{96, 2, 6, 16, 8, 200}, turned = large, ternary = large, literal;
    turned.rotation = true, ternary.ternary = true, literal.literal = true;
    return {large, turned, ternary, literal, {1, 1, 1, 1, 2, 3}};
}

void test_batches(const Kernels &kernels) {
    test::Random random{21};
    for (const test::Shape &shape : shapes()) {
        const mi::Model model = load(shape, 3);
        const size_t V = size(model.config.vocab_size);
        for (int count : {1, 2, 7, 40}) {
            for (int threads : {1, 2, 3}) {
                std::vector<Session> together, alone;
                for (int i = 0; i < count; ++i)
                    together.emplace_back(model, kernels, 8), alone.emplace_back(model, mi::ops::scalar_kernels, 1);
                together[0].pass().set_threads(threads);
                for (int round = 0; round < 3; ++round) {  // prompts, then single tokens, then anything
                    std::vector<std::vector<uint32_t>> tokens;
                    std::vector<std::vector<int32_t>> all(size(count));
                    std::vector<mi::Feed> feeds;
                    for (int i = 0; i < count; ++i)
                        tokens.push_back(tokens_of(random, model, round == 1 ? 1 : random.within(0, 19)));
                    for (int i = 0; i < count; ++i) {
                        const std::vector<uint32_t> &t = tokens[size(i)];
                        if (i % 3 == 1) all[size(i)].resize(t.size() * V);
                        feeds.push_back(
                            {&together[size(i)], t.data(), t.size(), i % 3 == 1 ? all[size(i)].data() : nullptr});
                    }
                    together[0].pass().feed(feeds.data(), feeds.size());
                    for (int i = 0; i < count; ++i) {
                        const std::vector<uint32_t> &t = tokens[size(i)];
                        std::vector<int32_t> want(t.size() * V);
                        for (size_t at = 0; at < t.size(); ++at) alone[size(i)].feed(&t[at], 1, want.data() + at * V);
                        CHECK(same_state(together[size(i)], alone[size(i)]));
                        if (together[size(i)].position() > 0) CHECK(same_logits(together[size(i)], alone[size(i)]));
                        if (i % 3 == 1) CHECK(all[size(i)] == want);
                    }
                }
            }
        }
    }
}

void test_prompts_and_threads(const Kernels &kernels) {
    test::Random random{22};
    const mi::Model model = load({192, 2, 12, 32, 16, 300}, 4);
    const std::vector<uint32_t> tokens = tokens_of(random, model, 100);
    Session want(model, mi::ops::scalar_kernels, 1);
    want.feed(tokens.data(), tokens.size(), nullptr);
    for (int rows : {1, 5, 32, 100})
        for (int threads : {1, 2, 4}) {
            Session got(model, kernels, rows);
            got.pass().set_threads(threads);
            got.feed(tokens.data(), tokens.size(), nullptr);
            CHECK(same_state(got, want) && same_logits(got, want));
        }
}

// ---- States ---------------------------------------------------------------------------------------------------------

std::vector<uint8_t> saved(const Session &session) {
    std::vector<uint8_t> bytes(mi::state_bytes(session.model()));
    mi::write_state(session.model(), session.state(), bytes.data());
    return bytes;
}

bool restored(Session &session, const std::vector<uint8_t> &bytes) {
    try {
        mi::read_state(session.model(), bytes.data(), bytes.size(), session.state());
        return true;
    } catch (const mi::FormatError &) {
        return false;
    }
}

// With the digest that its contents have.
std::vector<uint8_t> sealed(std::vector<uint8_t> bytes) {
    mi::Sha256 sha;
    sha.update(bytes.data(), bytes.size() - 32);
    const mi::Sha256::Digest digest = sha.finish();
    std::copy(digest.begin(), digest.end(), bytes.end() - 32);
    return bytes;
}

void test_states(const Kernels &kernels) {
    test::Random random{23};
    for (const test::Shape &shape : shapes()) {
        const mi::Model model = load(shape, 5);
        const std::vector<uint32_t> tokens = tokens_of(random, model, 30);
        for (size_t cut : {0u, 1u, 2u, 13u}) {
            Session whole(model, kernels), one(model, kernels), two(model, mi::ops::scalar_kernels);
            whole.feed(tokens.data(), tokens.size(), nullptr);
            one.feed(tokens.data(), cut, nullptr);
            two.feed(tokens.data(), 7, nullptr);  // something that is overwritten
            const std::vector<uint8_t> state = saved(one);
            CHECK(restored(two, state) && same_state(one, two) && saved(two) == state);
            if (cut > 0) CHECK(same_logits(one, two));
            if (cut == 0) CHECK(two.logits() == nullptr);
            two.feed(tokens.data() + cut, tokens.size() - cut, nullptr);
            CHECK(same_state(whole, two) && same_logits(whole, two));
        }
    }
}

void test_hostile_states() {
    test::Random random{24};
    const mi::Model model = load({}, 5), other = load({}, 6);
    const std::vector<uint32_t> tokens = tokens_of(random, model, 9);
    Session session(model, mi::ops::scalar_kernels), victim(model, mi::ops::scalar_kernels),
        foreign(other, mi::ops::scalar_kernels);
    session.feed(tokens.data(), tokens.size(), nullptr);
    victim.feed(tokens.data(), 4, nullptr);
    const std::vector<uint8_t> good = saved(session), before = saved(victim);
    for (size_t n = 0; n < good.size(); n += n < 70 ? 1 : 37) {
        CHECK(!restored(victim, {good.begin(), good.begin() + static_cast<ptrdiff_t>(n)}));
    }
    std::vector<uint8_t> longer = good;
    longer.push_back(0);
    CHECK(!restored(victim, longer));
    for (size_t i = 0; i < good.size(); i += i < 80 ? 1 : 11) {  // any changed byte
        std::vector<uint8_t> bad = good;
        bad[i] ^= static_cast<uint8_t>(1 << random.within(0, 7));
        CHECK(!restored(victim, bad));
        if (i < 44) CHECK(!restored(victim, sealed(bad)));  // name, version, model
    }
    CHECK(!restored(foreign, good));

    // Values that no sequence has, under a digest that is right.
    const mi::Config &c = model.config;
    const size_t position = 44, past = 52, h = past + 2 * size(c.n_layers * 3 * c.d_conv()),
                 logits = h + 4 * size(c.n_layers * c.d_inner() * c.d_state);
    const auto with = [&](size_t at, int64_t v, int bytes) {
        std::vector<uint8_t> state = good;
        for (int i = 0; i < bytes; ++i) state[at + size(i)] = static_cast<uint8_t>(v >> (8 * i));
        return sealed(state);
    };
    CHECK(restored(victim, with(h + 8, 251968, 4)) && restored(victim, with(h + 8, -251968, 4)));
    CHECK(restored(victim, with(past + 2, 32767, 2)) && restored(victim, with(past + 2, -32767, 2)));
    CHECK(restored(victim, with(logits, (1 << 30) - 1, 4)));
    CHECK(restored(victim, before));
    for (int64_t v : {251969, -251969, INT32_MAX, INT32_MIN}) CHECK(!restored(victim, with(h + 8, v, 4)));
    CHECK(!restored(victim, with(past + 2, -32768, 2)));
    CHECK(!restored(victim, with(logits, 1 << 30, 4)) && !restored(victim, with(logits, INT32_MIN, 4)));
    CHECK(!restored(victim, with(position, INT64_MIN, 8)));
    CHECK(!restored(victim, with(position, 0, 8)));  // not begun, and yet it remembers
    CHECK(saved(victim) == before);                  // nothing of all this has left a trace
}

// ---- The C interface ------------------------------------------------------------------------------------------------

void test_interface() {
    const test::Bytes file = test::random_model({}, 1).bytes(), another = test::random_model({}, 2).bytes();
    mi_model *model = nullptr, *other = nullptr;
    mi_session *a = nullptr, *b = nullptr, *foreign = nullptr;
    CHECK(mi_model_load_memory(file.data(), file.size(), &model) == MI_OK);
    CHECK(mi_model_load_memory(another.data(), another.size(), &other) == MI_OK);
    CHECK(mi_session_new(model, &a) == MI_OK && mi_session_new(model, &b) == MI_OK);
    CHECK(mi_session_new(other, &foreign) == MI_OK);
    for (uint32_t threads : {0u, 257u}) CHECK(mi_session_set_threads(a, threads) == MI_ERR_ARGUMENT);
    CHECK(mi_session_set_threads(a, 2) == MI_OK && mi_session_set_threads(nullptr, 1) == MI_ERR_ARGUMENT);

    const uint32_t tokens[3] = {1, 2, 3}, bad[1] = {40};
    const mi_feed twice[2] = {{a, tokens, 1, nullptr}, {a, tokens, 1, nullptr}};
    const mi_feed mixed[2] = {{a, tokens, 1, nullptr}, {foreign, tokens, 1, nullptr}};
    const mi_feed outside[2] = {{a, tokens, 1, nullptr}, {b, bad, 1, nullptr}};
    const mi_feed null[1] = {{a, nullptr, 1, nullptr}};
    for (const mi_feed *feeds : {twice, mixed, outside}) CHECK(mi_feed_many(feeds, 2) == MI_ERR_ARGUMENT);
    CHECK(mi_feed_many(null, 1) == MI_ERR_ARGUMENT && mi_feed_many(nullptr, 1) == MI_ERR_ARGUMENT);
    CHECK(mi_feed_many(nullptr, 0) == MI_OK && mi_session_position(a) == 0 && mi_session_position(b) == 0);
    const mi_feed good[2] = {{a, tokens, 3, nullptr}, {b, tokens, 2, nullptr}};
    CHECK(mi_session_set_trace(b, [](void *, uint64_t, const char *, const int32_t *, size_t) {}, nullptr) == MI_OK);
    CHECK(mi_feed_many(good, 2) == MI_ERR_ARGUMENT);
    CHECK(mi_session_set_trace(b, nullptr, nullptr) == MI_OK && mi_feed_many(good, 2) == MI_OK);
    CHECK(mi_session_position(a) == 3 && mi_session_position(b) == 2);
    CHECK(mi_session_feed(b, tokens + 2, 1, nullptr) == MI_OK);
    CHECK(std::memcmp(mi_session_logits(a), mi_session_logits(b), 40 * sizeof(int32_t)) == 0);

    std::vector<uint8_t> state(mi_session_state_size(a));
    CHECK(mi_session_save(a, state.data(), state.size() - 1) == MI_ERR_ARGUMENT);
    CHECK(mi_session_save(a, state.data(), state.size()) == MI_OK);
    CHECK(mi_session_restore(foreign, state.data(), state.size()) == MI_ERR_FORMAT);
    CHECK(mi_session_restore(b, state.data(), state.size()) == MI_OK &&
          mi_session_restore(b, nullptr, 0) == MI_ERR_FORMAT);
    CHECK(mi_session_position(b) == 3);
    for (mi_session *session : {a, b, foreign}) mi_session_free(session);
    mi_model_free(model), mi_model_free(other);
}

void test_pool() {
    for (int threads : {1, 2, 5}) {
        mi::Pool pool(threads);
        for (int round = 0; round < 2000; ++round) {
            const int parts = round % 23;
            std::vector<int> done(size(parts));
            pool.run(parts, [&](int i) { ++done[size(i)]; });
            CHECK(done == std::vector<int>(size(parts), 1));
        }
        for (int n : {0, 1, 15, 16, 17, 1000}) {
            std::vector<int> done(size(n));
            pool.split(n, 16, [&](int begin, int end) {
                CHECK((begin & 15) == 0 && (n == 0 || begin < end));
                for (int i = begin; i < end; ++i) ++done[size(i)];
            });
            CHECK(done == std::vector<int>(size(n), 1));
        }
    }
}

// A helper that finds a task done and its pool ended in the same moment must see the end: the last part is a helper's, and
// the caller ends the pool as soon as it is done. (A helper that misses the end is waited for without end.)
void test_pools_end() {
    for (int round = 0; round < 10000; ++round) {
        mi::Pool pool(2);
        if (pool.threads() == 1) return;  // built without threads
        std::atomic<int> begun{0};
        const std::thread::id caller = std::this_thread::get_id();
        pool.run(2, [&](int) {
            ++begun;
            while (begun < 2) std::this_thread::yield();  // so each thread has one
            for (int i = std::this_thread::get_id() != caller ? round % 128 : 0; i > 0; --i) begun.load();  // the last
        });
        CHECK(begun == 2);
    }
}

}  // namespace

int main() {
    test_pool();
    test_pools_end();
    for (const char *isa : mi::ops::isas)
        if (const Kernels *kernels = mi::ops::kernels_of(isa)) {
            test_batches(*kernels);
            test_prompts_and_threads(*kernels);
            test_states(*kernels);
        }
    test_hostile_states();
    test_interface();
    return test::report("test_session");
}
