// A model in memory, and the strict reader of spec/FORMAT.md that makes one.
//
// What this file knows: the container, its limits, its digest. What it does not know: arithmetic (ops.hpp) and
// sequences (session.hpp). A Model is immutable once read, so threads may share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arith.hpp"
#include "bytes.hpp"
#include "error.hpp"

namespace mi {

struct Config {
    int d_model = 0;     // D
    int n_layers = 0;    // L
    int n_heads = 0;     // H
    int head_dim = 0;    // P
    int d_state = 0;     // N
    int vocab_size = 0;  // V
    uint32_t context_length = 0;
    Scan scan = Scan::convex;
    Activation activation = Activation::silu;  // after the convolution
    Activation gate = Activation::silu;
    int norm_mantissa = 8;
    bool rotation = false;
    bool ternary = false;  // whether projections are packed, four weights a byte
    int embed_mul = 1;     // m_e
    int logit_shift = 0;

    int d_inner() const { return n_heads * head_dim; }                // E
    int d_conv() const { return d_inner() + 2 * d_state; }            // E+2N, the channels x | B | C
    int d_in_proj() const { return d_inner() + d_conv() + n_heads; }  // 2E+2N+H, the rows z | x | B | C | dt
};

// A projection: out_o = sat16(rshift(mul_o * sum_k weight[o,k] x_k, shift)). Its weights are as the file has them: int8, or
// ternary in codes of two bits, the first of a byte lowest: 0, 1 and 2 for 0, +1 and -1.
struct Linear {
    const void *weight;  // int8 [rows, cols], or packed: uint8 [rows, ceil(cols/4)]
    const int16_t *mul;  // [rows]
    int rows, cols, shift;
    bool ternary;
};

struct Layer {
    const int8_t *norm1;        // [D] Q6
    Linear in_proj;             // [2E+2N+H, D]
    const int8_t *conv_weight;  // [E+2N, 4] Q6, oldest tap first
    const int16_t *conv_bias;   // [E+2N] Q8
    const int8_t *scan_k;       // [H]
    const int32_t *scan_A;      // [H] Q4 relative to 2^-k
    const int16_t *scan_base;   // [H] Q8
    const int8_t *scan_skip;    // [H] Q6
    const int8_t *norm2;        // [E] Q6
    Linear out_proj;            // [D, E]
};

class Model {
  public:
    // Reads a model file that lies in memory and takes the bytes over: weights are used where they lie. Throws FormatError or
    // std::bad_alloc; allocates nothing that is larger than a small multiple of `size`.
    Model(Bytes bytes /* [size] */, size_t size);

    Config config;
    const int8_t *embedding;  // [V, D]
    std::vector<Layer> layers;
    const int8_t *norm_f;  // [D] Q6

    std::string name;
    std::string digest;     // 64 hexadecimal digits
    const char *tokenizer;  // [tokenizer_size] inside the file's bytes
    size_t tokenizer_size;

  private:
    friend class ModelReader;
    Bytes bytes_;
    // Tensors that cannot be used where they lie: 16 and 32-bit ones (byte order, alignment), scales of one element.
    std::vector<std::unique_ptr<std::byte[]>> owned_;
};

}  // namespace mi
