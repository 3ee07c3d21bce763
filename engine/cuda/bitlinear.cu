// BitLinear, ARITHMETIC section 5: matrices of int8 or packed ternary weights against int8 inputs, sums in int32. And the
// embedding, which is the logits' matrix read by rows.
//
// Few tokens: a warp takes two rows, sixteen columns a thread and step, by dp4a; all that matters is that weights are read
// once, sixteen bytes at a time (four of ternary weights). Many tokens: a block takes 64 rows x 64 tokens through shared
// memory to the tensor cores, mma.sync m16n8k32 on int8, which adds exactly.
#include "device.cuh"

namespace mi::cuda {
namespace {

constexpr int threads = 128, warps = threads / 32;
constexpr int few = 4;  // tokens up to which the dp4a kernel serves

// Where a sum goes. Each is told token, row and sum.
struct Requantised {
    const int16_t *mul;
    int shift, rows;
    int16_t *out;  // [tokens, rows]
    __device__ void operator()(int token, int row, int32_t sum) const {
        out[static_cast<size_t>(token) * static_cast<size_t>(rows) + static_cast<size_t>(row)] =
            static_cast<int16_t>(requantise(sum, mul[row], shift));
    }
};
struct Residual {
    const int16_t *mul;
    int shift, rows;
    int32_t *r;  // [tokens, rows]
    __device__ void operator()(int token, int row, int32_t sum) const {
        int32_t &at = r[static_cast<size_t>(token) * static_cast<size_t>(rows) + static_cast<size_t>(row)];
        at = added(at, requantise(sum, mul[row], shift));
    }
};
struct Logits {
    int32_t *const *out;  // [tokens] -> [rows]
    __device__ void operator()(int token, int row, int32_t sum) const { out[token][row] = sum; }
};

__device__ const uint8_t *row_of(const mi_matrix &p, int row, int column) {
    const int shift = p.ternary ? 2 : 0;
    return static_cast<const uint8_t *>(p.weight) +
           static_cast<size_t>(row) * static_cast<size_t>(padded(p.cols) >> shift) + (column >> shift);
}

// ---- Few tokens -----------------------------------------------------------------------------------------------------

// Sixteen columns of a row and of an input.
struct Int8 {
    using Weights = uint4;
    struct Input {
        uint4 x;
    };
    static constexpr int sums = 1;
    __device__ static Input input(uint4 x) { return {x}; }
    __device__ static void add(const Weights &w, const Input &in, int32_t (&sum)[sums]) {
        int32_t s = sum[0];
        s = __dp4a(static_cast<int>(w.x), static_cast<int>(in.x.x), s);
        s = __dp4a(static_cast<int>(w.y), static_cast<int>(in.x.y), s);
        s = __dp4a(static_cast<int>(w.z), static_cast<int>(in.x.z), s);
        sum[0] = __dp4a(static_cast<int>(w.w), static_cast<int>(in.x.w), s);
    }
    __device__ static int32_t total(const int32_t (&sum)[sums]) { return sum[0]; }
};

// Two bits a weight: 0, 1 and 2 for 0, +1 and -1. Byte j of a word holds columns 4j ... 4j + 3. Codes are weighed where they
// lie: masked in place, number s of every byte is worth 4^s, so each s has a sum of its own, which is shifted once at the
// end; the inputs are transposed to match.
struct Ternary {
    using Weights = uint32_t;
    struct Input {
        uint32_t x[4];  // x[s]: columns s, 4 + s, 8 + s, 12 + s
    };
    static constexpr int sums = 4;
    __device__ static Input input(uint4 v) {
        const uint32_t a = __byte_perm(v.x, v.y, 0x5140), b = __byte_perm(v.z, v.w, 0x5140);
        const uint32_t c = __byte_perm(v.x, v.y, 0x7362), d = __byte_perm(v.z, v.w, 0x7362);
        return {{__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410),
                 __byte_perm(c, d, 0x7632)}};
    }
    __device__ static void add(Weights w, const Input &in, int32_t (&sum)[sums]) {
        MI_PRAGMA(unroll)
        for (int s = 0; s < sums; ++s) {
            const uint32_t mask = 0x01010101u << (2 * s);
            sum[s] = __dp4a(static_cast<int>(w & mask), static_cast<int>(in.x[s]), sum[s]);
            sum[s] -= __dp4a(static_cast<int>(w >> 1 & mask), static_cast<int>(in.x[s]), 0);
        }
    }
    __device__ static int32_t total(const int32_t (&sum)[sums]) {
        return sum[0] + (sum[1] >> 2) + (sum[2] >> 4) + (sum[3] >> 6);  // each exactly
    }
};

template <class Form, int T /* tokens */, class Out>
__global__ void __launch_bounds__(threads) few_tokens(mi_matrix p, const int8_t *__restrict__ x, int tokens, Out out) {
    constexpr int R = 2;  // rows a warp
    const int first = (static_cast<int>(blockIdx.x) * warps + warp()) * R, stride = padded(p.cols);
    int32_t sum[R][T][Form::sums] = {};
    for (int column = 16 * lane(); column < stride; column += 16 * 32) {
        typename Form::Input in[T];
        MI_PRAGMA(unroll)
        for (int t = 0; t < T; ++t)  // beyond the last token: the first again
            in[t] = Form::input(*reinterpret_cast<const uint4 *>(x + (t < tokens ? t : 0) * stride + column));
        MI_PRAGMA(unroll)
        for (int r = 0; r < R; ++r) {
            const int row = first + r < p.rows ? first + r : p.rows - 1;
            const auto w = *reinterpret_cast<const typename Form::Weights *>(row_of(p, row, column));
            MI_PRAGMA(unroll)
            for (int t = 0; t < T; ++t) Form::add(w, in[t], sum[r][t]);
        }
    }
    MI_PRAGMA(unroll)
    for (int r = 0; r < R; ++r) MI_PRAGMA(unroll)
    for (int t = 0; t < T; ++t) {
        const int32_t all = __reduce_add_sync(whole_warp, Form::total(sum[r][t]));
        if (lane() == r * T + t && first + r < p.rows && t < tokens) out(t, first + r, all);
    }
}

// ---- Many tokens ----------------------------------------------------------------------------------------------------

constexpr int log_tile = 6, tile = 1 << log_tile;   // rows of the matrix, tokens, and bytes of their inner dimension
constexpr int words = tile / 4, pitch = words + 4;  // four words of padding: fragments then lie in different banks

// d += a b: 16 rows x 32 columns of int8 by 32 x 8. Thread 4i + q holds, word by word: of a, rows i and i + 8 at columns
// 4q ... 4q + 3, then the same 16 columns further on; of b, column i at the same places; of d, rows i and i + 8 at columns
// 2q and 2q + 1. (PTX ISA, "Matrix Fragments for mma.m16n8k32".)
__device__ void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    shim::mma_m16n8k32(d, a, b);
#endif
}

// Four codes, the bits of a byte, to four int8.
__device__ uint32_t spread(uint32_t codes) {
    uint32_t t = (codes | codes << 12) & 0x000f000f;
    t = (t | t << 6) & 0x03030303;
    return (t & 0x01010101) | (t >> 1 & 0x01010101) * 0xff;
}

// Eight words, half a row of a tile: 32 columns from `column` on, as int8.
struct Slice {
    uint4 low, high;
};
__device__ Slice slice_of(const mi_matrix &p, int row, int column) {
    if (row >= p.rows) return {};
    const uint8_t *at = row_of(p, row, column);
    if (!p.ternary) return {reinterpret_cast<const uint4 *>(at)[0], reinterpret_cast<const uint4 *>(at)[1]};
    const uint2 codes = *reinterpret_cast<const uint2 *>(at);
    const auto four = [](uint32_t w) {
        return make_uint4(spread(w & 0xff), spread(w >> 8 & 0xff), spread(w >> 16 & 0xff), spread(w >> 24));
    };
    return {four(codes.x), four(codes.y)};
}
__device__ Slice slice_of(const int8_t *x, int tokens, int stride, int token, int column) {
    if (token >= tokens) return {};
    const uint4 *at = reinterpret_cast<const uint4 *>(x + static_cast<size_t>(token) * static_cast<size_t>(stride) +
                                                      static_cast<size_t>(column));
    return {at[0], at[1]};
}

template <class Out>
__global__ void __launch_bounds__(threads) many_tokens(mi_matrix p, const int8_t *__restrict__ x, int tokens, Out out) {
    __shared__ __align__(16) uint32_t w_tile[tile][pitch];
    __shared__ __align__(16) uint32_t x_tile[tile][pitch];
    const int row = static_cast<int>(blockIdx.x) << log_tile, token = static_cast<int>(blockIdx.y) << log_tile;
    const int stride = padded(p.cols), mine = static_cast<int>(threadIdx.x) >> 1;
    const int half = static_cast<int>(threadIdx.x) & 1;
    const int i = lane() >> 2, q = lane() & 3, part = 16 * warp();  // a warp has 16 rows and all tokens

    int32_t sum[tile / 8][4] = {};
    Slice w = slice_of(p, row + mine, 32 * half), u = slice_of(x, tokens, stride, token + mine, 32 * half);
    for (int column = 0; column < stride; column += tile) {
        uint4 *w_to = reinterpret_cast<uint4 *>(&w_tile[mine][8 * half]);
        uint4 *x_to = reinterpret_cast<uint4 *>(&x_tile[mine][8 * half]);
        w_to[0] = w.low, w_to[1] = w.high, x_to[0] = u.low, x_to[1] = u.high;
        __syncthreads();
        if (column + tile < stride) {  // on their way while this tile is multiplied
            w = slice_of(p, row + mine, column + tile + 32 * half);
            u = slice_of(x, tokens, stride, token + mine, column + tile + 32 * half);
        }
        MI_PRAGMA(unroll)
        for (int k = 0; k < words; k += 8) {
            const uint32_t a[4] = {w_tile[part + i][k + q], w_tile[part + i + 8][k + q], w_tile[part + i][k + 4 + q],
                                   w_tile[part + i + 8][k + 4 + q]};
            MI_PRAGMA(unroll)
            for (int n = 0; n < tile / 8; ++n) {
                const uint32_t b[2] = {x_tile[8 * n + i][k + q], x_tile[8 * n + i][k + 4 + q]};
                mma(sum[n], a, b);
            }
        }
        __syncthreads();
    }
    MI_PRAGMA(unroll)
    for (int n = 0; n < tile / 8; ++n) MI_PRAGMA(unroll)
    for (int k = 0; k < 4; ++k) {
        const int r = row + part + i + 8 * (k >> 1), t = token + 8 * n + 2 * q + (k & 1);
        if (r < p.rows && t < tokens) out(t, r, sum[n][k]);
    }
}

// ---- Choice of a kernel ---------------------------------------------------------------------------------------------

template <class Out>
mi_status launch(const char *function, const mi_matrix &p, const int8_t *x, int tokens, Out out, void *stream) {
    if (p.rows < 1 || p.cols < 1 || p.cols > 1 << 14 || p.shift < 0 || p.shift > 24)
        return refuse(function, "rows must be at least 1, cols from 1 to 2^14, the shift from 0 to 24");
    if (tokens < 1 || tokens > 1 << 20) return refuse(function, "tokens must be from 1 to 2^20");
    if ((reinterpret_cast<uintptr_t>(p.weight) | reinterpret_cast<uintptr_t>(x)) & 15)
        return refuse(function, "weights and inputs must begin at multiples of 16 bytes");
    const dim3 by_warps(pieces(p.rows, 3)), by_tiles(pieces(p.rows, log_tile), pieces(tokens, log_tile));
    if (tokens > few) {
        MI_LAUNCH((many_tokens<Out>), by_tiles, dim3(threads), stream, p, x, tokens, out);
    } else if (tokens == 1 && !p.ternary) {
        MI_LAUNCH((few_tokens<Int8, 1, Out>), by_warps, dim3(threads), stream, p, x, tokens, out);
    } else if (tokens == 1) {
        MI_LAUNCH((few_tokens<Ternary, 1, Out>), by_warps, dim3(threads), stream, p, x, tokens, out);
    } else if (!p.ternary) {
        MI_LAUNCH((few_tokens<Int8, few, Out>), by_warps, dim3(threads), stream, p, x, tokens, out);
    } else {
        MI_LAUNCH((few_tokens<Ternary, few, Out>), by_warps, dim3(threads), stream, p, x, tokens, out);
    }
    return launched(function);
}

__global__ void __launch_bounds__(threads)
    embedding_kernel(const int8_t *__restrict__ e, int stride, const uint32_t *__restrict__ tokens, int d,
                     int embed_mul, int32_t *__restrict__ r) {
    const int8_t *row = e + static_cast<size_t>(tokens[blockIdx.x]) * static_cast<size_t>(stride);
    r += static_cast<size_t>(blockIdx.x) * static_cast<size_t>(d);
    for (int i = static_cast<int>(threadIdx.x); i < d; i += threads) r[i] = embedded(row[i], embed_mul);
}

}  // namespace
}  // namespace mi::cuda

mi_status launch_bitlinear(const mi_matrix *matrix, const int8_t *x, int32_t tokens, int16_t *out, void *stream) {
    using namespace mi::cuda;
    if (!matrix || !matrix->weight || !matrix->mul || !x || !out) return refuse(__func__, "null pointer");
    return launch(__func__, *matrix, x, tokens, Requantised{matrix->mul, matrix->shift, matrix->rows, out}, stream);
}

mi_status launch_bitlinear_residual(const mi_matrix *matrix, const int8_t *x, int32_t tokens, int32_t *r,
                                    void *stream) {
    using namespace mi::cuda;
    if (!matrix || !matrix->weight || !matrix->mul || !x || !r) return refuse(__func__, "null pointer");
    return launch(__func__, *matrix, x, tokens, Residual{matrix->mul, matrix->shift, matrix->rows, r}, stream);
}

mi_status launch_logits(const mi_matrix *embedding, const int8_t *x, int32_t tokens, int32_t *const *out,
                        void *stream) {
    using namespace mi::cuda;
    if (!embedding || !embedding->weight || !x || !out) return refuse(__func__, "null pointer");
    return launch(__func__, *embedding, x, tokens, Logits{out}, stream);
}

mi_status launch_embedding(const int8_t *e, int32_t stride, const uint32_t *tokens, int32_t rows, int32_t d,
                           int32_t embed_mul, int32_t *r, void *stream) {
    using namespace mi::cuda;
    if (!e || !tokens || !r) return refuse(__func__, "null pointer");
    if (rows < 1 || d < 1 || stride < d) return refuse(__func__, "rows and d must be at least 1, stride at least d");
    MI_LAUNCH((embedding_kernel), dim3(static_cast<unsigned>(rows)), dim3(threads), stream, e, stride, tokens, d,
              embed_mul, r);
    return launched(__func__);
}
