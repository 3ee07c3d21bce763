// Model files for tests: a GGUF writer whose every part a test may spoil before the bytes are made, and random valid
// models.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "sha256.hpp"

namespace test {

using Bytes = std::vector<uint8_t>;

inline void put(Bytes &out, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<uint8_t>(v >> (8 * i)));
}
inline void put(Bytes &out, const std::string &s) {
    put(out, s.size(), 8);
    out.insert(out.end(), s.begin(), s.end());
}
inline void pad(Bytes &out) {
    while (out.size() & 31) out.push_back(0);
}

struct Pair {
    std::string key;
    uint32_t type;
    Bytes value;

    Bytes bytes() const {
        Bytes out;
        put(out, key);
        put(out, type, 4);
        out.insert(out.end(), value.begin(), value.end());
        return out;
    }
};

struct Tensor {
    std::string name;
    uint32_t type;                // 24 I8, 25 I16, 26 I32
    std::vector<uint64_t> shape;  // row-major
    Bytes data;

    Bytes info() const {
        Bytes out;
        put(out, name);
        put(out, shape.size(), 4);
        for (size_t d = shape.size(); d-- > 0;) put(out, shape[d], 8);
        put(out, type, 4);
        return out;
    }
};

struct ModelFile {
    uint32_t version = 3;
    std::vector<Pair> pairs;
    std::vector<Tensor> tensors;

    void set(const std::string &key, uint32_t type, const Bytes &value) {
        for (Pair &pair : pairs)
            if (pair.key == key) {
                pair = {key, type, value};
                return;
            }
        pairs.push_back({key, type, value});
    }
    void set(const std::string &key, uint32_t v) {
        Bytes value;
        put(value, v, 4);
        set(key, 4, value);
    }
    void set(const std::string &key, const std::string &v) {
        Bytes value;
        put(value, v);
        set(key, 8, value);
    }
    void set(const std::string &key, const std::vector<uint32_t> &v) {
        Bytes value;
        put(value, 4, 4);
        put(value, v.size(), 8);
        for (uint32_t x : v) put(value, x, 4);
        set(key, 9, value);
    }
    Tensor &tensor(const std::string &name) {
        return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor &t) { return t.name == name; });
    }
    template <class T>
    void add(const std::string &name, uint32_t type, std::vector<uint64_t> shape, const std::vector<T> &values) {
        Tensor t{name, type, std::move(shape), {}};
        for (T v : values) put(t.data, static_cast<uint64_t>(v), static_cast<int>(sizeof(T)));
        tensors.push_back(t);
    }

    std::string digest() const {
        std::vector<Pair> by_key = pairs;
        std::sort(by_key.begin(), by_key.end(), [](const Pair &a, const Pair &b) { return a.key < b.key; });
        std::vector<Tensor> by_name = tensors;
        std::sort(by_name.begin(), by_name.end(), [](const Tensor &a, const Tensor &b) { return a.name < b.name; });
        const std::string prefix = "mamba-integer-model-1";
        Bytes all(prefix.begin(), prefix.end());
        const auto append = [&](const Bytes &b) { all.insert(all.end(), b.begin(), b.end()); };
        for (const Pair &pair : by_key)
            if (pair.key != "mamba_integer.model_digest") append(pair.bytes());
        for (const Tensor &t : by_name) {
            append(t.info());
            put(all, t.data.size(), 8);
            append(t.data);
        }
        mi::Sha256 sha;
        sha.update(all.data(), all.size());
        return mi::to_hex(sha.finish());
    }

    // The file. Its digest is made true first unless `keep_digest`.
    Bytes bytes(bool keep_digest = false) {
        if (!keep_digest) set("mamba_integer.model_digest", digest());
        Bytes out = {'G', 'G', 'U', 'F'};
        put(out, version, 4);
        put(out, tensors.size(), 8);
        put(out, pairs.size(), 8);
        for (const Pair &pair : pairs) {
            const Bytes b = pair.bytes();
            out.insert(out.end(), b.begin(), b.end());
        }
        uint64_t offset = 0;
        for (const Tensor &t : tensors) {
            const Bytes b = t.info();
            out.insert(out.end(), b.begin(), b.end());
            put(out, offset, 8);
            offset += (t.data.size() + 31) & ~uint64_t{31};
        }
        pad(out);
        for (const Tensor &t : tensors) {
            out.insert(out.end(), t.data.begin(), t.data.end());
            pad(out);
        }
        return out;
    }
};

// SplitMix64: the same numbers everywhere, unlike the library's distributions.
struct Random {
    uint64_t state;

    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    int within(int low, int high) {
        return low + static_cast<int>((next() >> 32) * static_cast<uint64_t>(high - low + 1) >> 32);
    }
    template <class T>
    std::vector<T> vector(uint64_t n, int low, int high) {
        std::vector<T> out;
        for (uint64_t i = 0; i < n; ++i) out.push_back(static_cast<T>(within(low, high)));
        return out;
    }
};

struct Shape {
    uint32_t D = 24, L = 2, H = 3, P = 8, N = 4, V = 40;
    bool literal = false, squareplus = false, rotation = false, ternary = false, scalar_norm = false;
};

inline ModelFile random_model(const Shape &s, uint64_t seed) {
    Random random{seed};
    ModelFile f;
    const std::string p = "mamba_integer.";
    f.set("general.architecture", std::string("mamba_integer"));
    f.set("general.name", std::string("random"));
    f.set(p + "format_version", 1u);
    f.set(p + "spec_version", 1u);
    f.set(p + "d_model", s.D);
    f.set(p + "n_layers", s.L);
    f.set(p + "n_heads", s.H);
    f.set(p + "head_dim", s.P);
    f.set(p + "d_state", s.N);
    f.set(p + "vocab_size", s.V);
    f.set(p + "context_length", 256u);
    f.set(p + "scan", std::string(s.literal ? "literal" : "convex"));
    f.set(p + "activation", std::string(s.squareplus ? "squareplus" : "silu"));
    f.set(p + "gate", std::string(s.squareplus ? "squareplus" : "silu"));
    f.set(p + "norm_mantissa", 8u);
    f.set(p + "rotation", static_cast<uint32_t>(s.rotation));
    f.set(p + "weights", std::string(s.ternary ? "ternary" : "int8"));
    f.set(p + "embed_mul", 64u);
    f.set(p + "logit_shift", 20u);
    f.set(p + "in_proj_shift", std::vector<uint32_t>(s.L, s.ternary ? 8 : 14));
    f.set(p + "out_proj_shift", std::vector<uint32_t>(s.L, s.ternary ? 8 : 14));
    f.set(p + "tokenizer", std::string("no tokenizer\0here", 17));

    const uint64_t E = s.H * s.P, channels = E + 2 * s.N, rows = E + channels + s.H;
    const auto matrix = [&](const std::string &name, uint64_t n, uint64_t cols) {
        if (!s.ternary) return f.add(name, 24, {n, cols}, random.vector<int8_t>(n * cols, -127, 127));
        const uint64_t stride = (cols + 3) >> 2;
        std::vector<int8_t> packed(static_cast<size_t>(n * stride));
        for (uint64_t o = 0; o < n; ++o)
            for (uint64_t k = 0; k < cols; ++k) {
                int8_t &byte = packed[static_cast<size_t>(o * stride + (k >> 2))];
                byte = static_cast<int8_t>(byte | random.within(0, 2) << (2 * (k & 3)));
            }
        f.add(name, 24, {n, stride}, packed);
    };
    const auto scale = [&](const std::string &name, uint64_t d) {
        const uint64_t n = s.scalar_norm ? 1 : d;
        f.add(name, 24, {n}, random.vector<int8_t>(n, 32, 100));
    };
    f.add("token_embd.weight", 24, {s.V, s.D}, random.vector<int8_t>(uint64_t{s.V} * s.D, -127, 127));
    scale("output_norm.scale", s.D);
    for (uint32_t i = 0; i < s.L; ++i) {
        const std::string blk = "blk." + std::to_string(i) + ".";
        scale(blk + "norm1.scale", s.D);
        matrix(blk + "in_proj.weight", rows, s.D);
        f.add(blk + "in_proj.mul", 25, {rows}, random.vector<int16_t>(rows, 100, 255));
        f.add(blk + "conv.weight", 24, {channels, 4}, random.vector<int8_t>(channels * 4, -127, 127));
        f.add(blk + "conv.bias", 25, {channels}, random.vector<int16_t>(channels, -300, 300));
        f.add(blk + "scan.k", 24, {s.H}, random.vector<int8_t>(s.H, 8, 15));
        f.add(blk + "scan.A", 26, {s.H}, random.vector<int32_t>(s.H, 1, 4000));
        f.add(blk + "scan.base", 25, {s.H}, random.vector<int16_t>(s.H, -300, 300));
        f.add(blk + "scan.skip", 24, {s.H}, random.vector<int8_t>(s.H, -127, 127));
        scale(blk + "norm2.scale", E);
        matrix(blk + "out_proj.weight", s.D, E);
        f.add(blk + "out_proj.mul", 25, {s.D}, random.vector<int16_t>(s.D, 100, 255));
    }
    return f;
}

}  // namespace test
