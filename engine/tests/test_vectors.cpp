// The examples of the spec, spec/vectors/*.json: what every implementation must give.

#include <algorithm>
#include <cstring>

#include "arith.hpp"
#include "check.hpp"
#include "json.hpp"
#include "mamba_integer.h"
#include "ops.hpp"
#include "sampler.hpp"
#include "sha256.hpp"

namespace {

using test::Json;

std::string folder;

Json vectors(const char *name) { return test::JsonReader::file(folder + "/" + name + ".json"); }

// As the vectors have it: over int32, little-endian.
class Digest {
  public:
    void add(int64_t v) {
        uint8_t bytes[4];
        for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(v >> (8 * i));
        sha_.update(bytes, 4);
    }
    std::string hex() { return mi::to_hex(sha_.finish()); }

  private:
    mi::Sha256 sha_;
};

template <class F>
std::string digest(int low, int high, F f) {
    Digest d;
    for (int i = low; i <= high; ++i) d.add(f(i));
    return d.hex();
}

void test_shift() {
    const Json file = vectors("shift");
    const Json &r = file["rshift"], &s = file["sat"], &b = file["bitlen"];
    for (size_t i = 0; i < r["x"].size(); ++i)
        CHECK(mi::rshift<int64_t>(r["x"][i].number, r["s"][i].as<int>()) == r["out"][i]);
    for (size_t i = 0; i < s["x"].size(); ++i) {
        const int32_t x = s["x"][i].as<int32_t>();
        if (x != s["x"][i].number) continue;  // wider than anything that the engine saturates
        CHECK(mi::sat<6>(x) == s["sat6"][i] && mi::sat<8>(x) == s["sat8"][i] && mi::sat<16>(x) == s["sat16"][i] &&
              mi::sat<18>(x) == s["sat18"][i]);
    }
    for (size_t i = 0; i < b["v"].size(); ++i) CHECK(mi::bitlen(b["v"][i].as<uint64_t>()) == b["out"][i]);
}

void test_roots() {
    const Json file = vectors("roots");
    const Json &r = file["rsqrt"], &s = file["isqrt"], &sigmoid = file["sigmoid12"], &plus = file["squareplus"];
    for (size_t i = 0; i < r["v"].size(); ++i) {
        const mi::Rsqrt got = mi::rsqrt(r["v"][i].as<uint32_t>());
        CHECK(got.y == r["y"][i] && got.j == r["j"][i]);
    }
    for (size_t i = 0; i < s["v"].size(); ++i) CHECK(mi::isqrt(s["v"][i].as<uint32_t>()) == s["out"][i]);
    for (size_t i = 0; i < sigmoid["c"].size(); ++i)
        CHECK(mi::sigmoid12(sigmoid["c"][i].as<int>()) == sigmoid["out"][i]);
    for (size_t i = 0; i < plus["c"].size(); ++i) CHECK(mi::squareplus(plus["c"][i].as<int>()) == plus["out"][i]);
    CHECK(digest(-32767, 32767, mi::sigmoid12) == file["sigmoid12_all"]["sha256"].string);
    CHECK(digest(-32767, 32767, mi::squareplus) == file["squareplus_all"]["sha256"].string);
}

void test_activations() {
    const Json file = vectors("activations");
    const std::pair<mi::Activation, std::string> forms[] = {{mi::Activation::silu, "silu"},
                                                            {mi::Activation::squareplus, "squareplus"}};
    for (const auto &[form, name] : forms) {
        const Json &group = file[name];
        CHECK(mi::act_scale(form) == group["f"]);
        for (size_t i = 0; i < group["c"].size(); ++i) CHECK(mi::act(form, group["c"][i].as<int>()) == group["a"][i]);
        CHECK(digest(-32767, 32767, [&](int c) { return mi::act(form, c); }) == file[name + "_all"]["sha256"].string);
    }
}

void test_norm() {
    const Json file = vectors("norm");
    for (const Json &c : file["cases"].array) {
        const std::vector<int32_t> x = c["x"].list<int32_t>();
        std::vector<int8_t> g = c["g"].list<int8_t>();
        if (g.size() == 1) g.resize(x.size(), g[0]);
        std::vector<int8_t> out(x.size());
        const mi::ops::NormScale scale =
            mi::ops::norm(x.data(), g.data(), static_cast<int>(x.size()), c["mantissa"].as<int>(), out.data());
        CHECK(scale.j == c["j"] && scale.mu == c["mu"] && out == c["out"].list<int8_t>());
    }
}

void test_bitlinear() {
    const Json file = vectors("bitlinear");
    for (const Json &c : file["cases"].array) {
        std::vector<int8_t> x = c["x"].list<int8_t>(), weight;
        const std::vector<int16_t> mul = c["m"].list<int16_t>();
        const int rows = static_cast<int>(mul.size()), cols = static_cast<int>(x.size());
        x.resize(static_cast<size_t>(mi::ops::padded(cols)));
        for (const Json &row : c["W"].array)
            for (int8_t w : row.list<int8_t>()) weight.push_back(w);
        std::vector<int16_t> out(mul.size());
        mi::ops::linear({weight.data(), mul.data(), rows, cols, c["s"].as<int>(), false}, 0, rows, x.data(), 1,
                        out.data());
        CHECK(out == c["out"].list<int16_t>());
    }
}

void test_conv() {
    const Json file = vectors("conv");
    const Json &c = file["conv4"];
    for (size_t i = 0; i < c["b"].size(); ++i) {
        const std::vector<int32_t> p = c["p"][i].list<int32_t>();
        const std::vector<int8_t> w = c["w"][i].list<int8_t>();
        CHECK(mi::conv4(p[0], p[1], p[2], p[3], w.data(), c["b"][i].as<int32_t>()) == c["out"][i]);
    }
}

void test_scan() {
    const Json file = vectors("scan");
    const Json &mod = file["modulation"];
    for (size_t i = 0; i < mod["dt"].size(); ++i)
        for (const auto &[form, name] :
             {std::pair(mi::Scan::convex, "convex"), std::pair(mi::Scan::literal, "literal")})
            CHECK(mi::scan_share(form, mod["dt"][i].as<int>(), mod["A"][i].as<int>(), mod["base"][i].as<int>(),
                                 mod["k"][i].as<int>()) == mod[name][i]);
    for (const Json &c : file["cases"].array) {
        const int k = c["k"].as<int>(), skip = c["skip"].as<int>();
        const size_t P = c["x"][0].size(), N = c["B"][0].size();
        std::vector<int32_t> h(P * N);
        for (size_t t = 0; t < c["m"].size(); ++t)
            for (size_t p = 0; p < P; ++p) {
                const int32_t x = c["x"][t][p].as<int>(), m = c["m"][t].as<int>();
                int32_t sum = 0;
                for (size_t n = 0; n < N; ++n) {
                    const int32_t v = x * c["B"][t][n].as<int>() * 64;
                    int32_t &state = h[p * N + n];
                    state = c["scan"].string == "convex" ? mi::scan_convex(state, v, m, k)
                                                         : mi::scan_literal(state, v, m, k);
                    CHECK(state == c["h"][t][p][n]);
                    sum += c["C"][t][n].as<int>() * state;
                }
                CHECK(mi::scan_output(sum, skip, x) == c["y"][t][p]);
            }
    }
}

void test_rotation() {
    const Json file = vectors("rotation");
    for (int b : {13, 30}) {
        const Json &r = file["rotate_" + std::to_string(b)];
        for (size_t i = 0; i < r["angle"].size(); ++i) {
            const mi::Rotation rotation(r["angle"][i].as<uint32_t>(), b);
            const mi::Pair in = {r["x"][i].as<int32_t>(), r["y"][i].as<int32_t>()}, out = rotation.turn(in),
                           back = rotation.turn_back(out);
            CHECK(out.x == r["out_x"][i] && out.y == r["out_y"][i] && back.x == in.x && back.y == in.y);
        }
    }
    for (const Json &c : file["heads"].array) {
        const size_t half = c["v"].size() / 2;
        for (size_t i = 0; i < half; ++i) {
            const mi::Pair out = mi::rotation_at(c["position"].as<uint64_t>(), static_cast<int>(i))
                                     .turn({c["v"][i].as<int>(), c["v"][i + half].as<int>()});
            CHECK(out.x == c["out"][i] && out.y == c["out"][i + half]);
        }
    }
}

void test_transform() {
    const Json file = vectors("transform");
    for (const Json &c : file["cases"].array) {
        const std::vector<int32_t> re = c["re"].list<int32_t>(), im = c["im"].list<int32_t>();
        const int m = mi::bitlen(re.size()) - 1;
        std::vector<int32_t> out_re = re, out_im = im;
        mi::ops::cayley_transform(out_re.data(), out_im.data(), m);
        if (c.has("sha256")) {
            Digest d;
            for (int32_t v : out_re) d.add(v);
            for (int32_t v : out_im) d.add(v);
            CHECK(d.hex() == c["sha256"].string);
        } else {
            CHECK(out_re == c["out_re"].list<int32_t>() && out_im == c["out_im"].list<int32_t>());
        }
        mi::ops::cayley_transform_inverse(out_re.data(), out_im.data(), m);
        CHECK(out_re == re && out_im == im);
    }
}

void test_sampler() {
    const Json file = vectors("sampler");
    for (const Json &c : file["philox"].array) {
        const std::vector<uint32_t> in = c["counter"].list<uint32_t>(), key = c["key"].list<uint32_t>(),
                                    want = c["out"].list<uint32_t>();
        const mi::Block out = mi::philox4x32({in[0], in[1], in[2], in[3]}, key[0], key[1]);
        CHECK(std::equal(out.begin(), out.end(), want.begin()));
    }
    const Json &inverse = file["inverse_temperature"];
    for (size_t i = 0; i < inverse["C"].size(); ++i)
        CHECK(mi::inverse_temperature(inverse["embed_mul"][i].as<int>(), inverse["temperature"][i].as<uint32_t>()) ==
              inverse["C"][i].as<uint64_t>());
    const Json &pow = file["pow2neg"];
    for (size_t i = 0; i < pow["F"].size(); ++i) CHECK(mi::pow2neg(pow["F"][i].as<uint32_t>()) == pow["out"][i]);
    CHECK(digest(0, 65535, [](int F) { return mi::pow2neg(static_cast<uint32_t>(F)); }) ==
          file["pow2neg_all"]["sha256"].string);
    for (const Json &c : file["sample"].array) {
        const std::vector<int32_t> logits = c["logits"].list<int32_t>();
        std::vector<mi::Candidate> scratch(logits.size());
        const mi::Sampling s = {c["temperature"].as<uint32_t>(), c["top_k"].as<uint32_t>(), c["top_p"].as<uint32_t>(),
                                c["seed"].word()};
        CHECK(mi::sample(logits.data(), static_cast<int>(logits.size()), c["embed_mul"].as<int>(),
                         c["logit_shift"].as<int>(), s, c["step"].word(), scratch.data()) == c["token"].as<uint32_t>());
    }
}

std::vector<uint8_t> unhex(const std::string &hex) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    return bytes;
}

void test_model() {
    const Json file = vectors("model");
    for (const Json &c : file["cases"].array) {
        const std::vector<uint8_t> bytes = unhex(c["file"].string);
        mi_model *model = nullptr;
        if (!CHECK(mi_model_load_memory(bytes.data(), bytes.size(), &model) == MI_OK)) {
            std::fprintf(stderr, "  %s: %s\n", c["name"].string.c_str(), mi_last_error());
            continue;
        }
        CHECK(c["digest"].string == mi_model_digest(model));
        mi_config config;
        mi_model_get_config(model, &config);
        mi_session *session = nullptr;
        CHECK(mi_session_new(model, &session) == MI_OK);

        const std::vector<uint32_t> tokens = c["tokens"].list<uint32_t>();
        std::vector<int32_t> logits(tokens.size() * config.vocab_size);
        CHECK(mi_session_feed(session, tokens.data(), tokens.size(), logits.data()) == MI_OK);
        Digest d;
        for (int32_t v : logits) d.add(v);
        CHECK(d.hex() == c["logits_sha256"].string);
        const std::vector<int32_t> first = c["first_logits"].list<int32_t>(), last = c["last_logits"].list<int32_t>();
        CHECK(std::equal(first.begin(), first.end(), logits.begin()));
        CHECK(std::equal(last.begin(), last.end(), logits.end() - config.vocab_size));

        mi_session_reset(session);
        const std::vector<uint32_t> prompt = c["prompt"].list<uint32_t>(), sampled = c["sampled"].list<uint32_t>();
        const mi_sampling sampling = {c["temperature"].as<uint32_t>(), c["top_k"].as<uint32_t>(),
                                      c["top_p"].as<uint32_t>(), c["seed"].word()};
        CHECK(mi_session_feed(session, prompt.data(), prompt.size(), nullptr) == MI_OK);
        for (size_t step = 0; step < sampled.size(); ++step) {
            uint32_t token = 0;
            CHECK(mi_session_sample(session, &sampling, step, &token) == MI_OK && token == sampled[step]);
            CHECK(mi_session_feed(session, &token, 1, nullptr) == MI_OK);
        }
        mi_session_free(session);
        mi_model_free(model);
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: test_vectors FOLDER\n");
        return 2;
    }
    folder = argv[1];
    test_shift();
    test_roots();
    test_activations();
    test_norm();
    test_bitlinear();
    test_conv();
    test_scan();
    test_rotation();
    test_transform();
    test_sampler();
    test_model();
    return test::report("test_vectors");
}
