// The operations on vectors, bit for bit those of ops.cpp, written once in terms of registers of int32 lanes. No file of its
// own: ops_avx2.cpp and its like include it inside their nameless namespace, after they have said what these are:
//
//   MI_TARGET               what makes the compiler use the instruction set. Every function carries it itself, so that those
//                           files need no flags of their own and the inline functions that they share with others are
//                           compiled for the baseline, whichever copy the linker keeps
//   Lanes, lanes            a register and how many int32 it holds
//   load, store             of int32; of int16 and int8 with the lanes widened and narrowed (values are in range)
//   set1, add, sub, mul     mul gives the low 32 bits
//   min, max
//   Small, small(b), mul_small(a, b)  a b where both are within int16
//   left<n>, right<n>       shifts by a constant, the second arithmetic
//   right_by, right_logical_by        each lane by its own number
//   Rshift                  rshift of arith.hpp, all lanes by one number
//   high_product(a, b)      a b / 2^16 for 0 <= a, b < 2^16
//   half_log2(v)            (bitlen(v) - 1) >> 1 for 2^18 <= v < 2^31
//   less_if_above(a, x, y)  a - 1 where x > y, else a
//   square_sum(x, n)        of n int32, n a multiple of lanes
//
// Integer instructions only.

// NOLINTBEGIN: no include guard, see above

MI_TARGET inline Lanes sat(Lanes v, int bits) {
    const int32_t top = (1 << (bits - 1)) - 1;
    return min(max(v, set1(-top)), set1(top));
}

// Runs whole(i) for every i = 0, lanes, 2 lanes, ... of which `lanes` elements are there, then one(i) for the others.
#define MI_FOR_LANES(i, n, whole, one)         \
    do {                                       \
        int i = 0;                             \
        for (; i + lanes <= (n); i += lanes) { \
            whole;                             \
        }                                      \
        for (; i < (n); ++i) {                 \
            one;                               \
        }                                      \
    } while (false)

// ---- §3 Activations -------------------------------------------------------------------------------------------------

// What sigmoid12 and squareplus share: s = isqrt(v) of v = c^2 + 2^18, j = (bitlen(v) - 1) >> 1, and Y, within 3 * 10^-4
// of 2^(16+j) / sqrt(v).
//
// Y comes from v scaled to 16 bits, U in [2^14, 2^16), by two of the three steps of arith.hpp, Y^2 U ~ 2^46. What a root
// or quotient that Y gives leaves over is multiplied by Y once more; that brings it to the integer sought or one below, and
// a comparison settles which. No product exceeds 32 bits. There are only 65,536 values of c, and test_kernels.cpp tries
// them all.
struct Roots {
    Lanes s, j, Y;
};

// (rest / 2^4) Y / 2^(13+j) ~ rest / 2s.
MI_TARGET inline Lanes divide_rest(Lanes rest, Lanes j, Lanes Y) {
    return right_by(mul(right<4>(rest), Y), add(j, set1(13)));
}

MI_TARGET inline Roots roots(Lanes c) {
    const Lanes v = add(mul(c, c), set1(1 << 18));  // < 2^31
    const Lanes j = half_log2(v);
    const Lanes U = right_logical_by(v, sub(add(j, j), set1(14)));
    Lanes Y = sub(set1(69884), high_product(U, set1(39934)));
    for (int step = 0; step < 2; ++step) {
        const Lanes rest = sub(set1(1 << 30), mul(U, high_product(Y, Y)));  // Y < 2^16
        Y = add(Y, right<16>(mul(Y, right<15>(rest))));
    }
    Lanes s = right_logical_by(mul(U, Y), sub(set1(30), j));
    s = add(s, divide_rest(sub(v, mul(s, s)), j, Y));
    const Lanes next = add(s, set1(1));  // s += (s + 1)^2 <= v
    return {less_if_above(next, mul(next, next), v), j, Y};
}

MI_TARGET inline Lanes sigmoid12(Lanes c) {
    const Roots r = roots(c);
    const Lanes sum = add(r.s, c), twice = add(r.s, r.s), target = left<12>(sum);
    Lanes q = right_logical_by(mul(sum, r.Y), add(r.j, set1(5)));
    q = add(q, divide_rest(sub(target, mul(q, twice)), r.j, r.Y));
    const Lanes next = add(q, set1(1));  // q += (q + 1) * 2s <= (s + c) * 2^12
    return less_if_above(next, mul(next, twice), target);
}

MI_TARGET inline Lanes act(Activation form, Lanes c) {
    if (form == Activation::silu) return mul(c, sigmoid12(c));
    return sub(right<1>(add(c, roots(c).s)), set1(256));
}

MI_TARGET void activate_lanes(Activation form, const int16_t *c, int n, int q, int bits, int16_t *out) {
    const Rshift rshift(act_scale(form) - q);
    const int whole = n & -lanes;
    for (int i = 0; i < whole; i += lanes) store(out + i, sat(rshift(act(form, load(c + i))), bits));
    if (whole == n) return;
    int16_t rest[lanes] = {};
    std::copy_n(c + whole, n - whole, rest);
    store(rest, sat(rshift(act(form, load(rest))), bits));
    std::copy_n(rest, n - whole, out + whole);
}

// ---- §4 BitShift norm -----------------------------------------------------------------------------------------------

MI_TARGET NormScale norm_lanes(const int32_t *x, const int8_t *g, int d, int mantissa_bits, int8_t *out) {
    const int whole = d & -lanes;
    uint64_t S = norm_epsilon + square_sum(x, whole);
    for (int i = whole; i < d; ++i) S += static_cast<uint64_t>(int64_t{x[i]} * x[i]);
    const int j = norm_shift(S), shift = norm_out_shift(d);
    const int32_t mu = norm_mantissa(S, j, mantissa_bits);
    const Rshift by_j(j), by_shift(shift);
    const Lanes mantissa = set1(mu);
    MI_FOR_LANES(i, d, store(out + i, sat(by_shift(mul(by_j(left<4>(load(x + i))), mul(mantissa, load(g + i)))), 8)),
                 out[i] = static_cast<int8_t>(norm_element(x[i], g[i], j, mu, shift)));
    return {j, mu};
}

// ---- §6 Convolution step --------------------------------------------------------------------------------------------

MI_TARGET void conv_lanes(const int8_t *w, const int16_t *bias, const int16_t *const (&p)[4], int n, int16_t *out) {
    const Rshift rshift(6);
    MI_FOR_LANES(
        c, n,
        {
            const Lanes taps = load_bytes(w + 4 * c);  // a channel's four weights in a lane, the oldest lowest
            Lanes sum = mul(load(p[0] + c), right<24>(left<24>(taps)));
            sum = add(sum, mul(load(p[1] + c), right<24>(left<16>(taps))));
            sum = add(sum, mul(load(p[2] + c), right<24>(left<8>(taps))));
            sum = add(sum, mul(load(p[3] + c), right<24>(taps)));
            store(out + c, sat(add(rshift(sum), load(bias + c)), 16));
        },
        out[c] = static_cast<int16_t>(conv4(p[0][c], p[1][c], p[2][c], p[3][c], w + 4 * c, bias[c])));
}

// ---- §7 Selective scan ----------------------------------------------------------------------------------------------

// The convex form, channels side by side. The literal one, with its 64-bit products, is for comparison; ops.cpp has it.
MI_TARGET void scan_lanes(const Layer &layer, const ScanShape &shape, const int16_t *x, const int16_t *B,
                          const int16_t *C, const int16_t *dt, int32_t *h, int32_t *m, int16_t *y) {
    if (shape.form != Scan::convex) return ops::scan(layer, shape, x, B, C, dt, h, m, y);
    const int P = shape.head_dim, N = shape.d_state;
    const Rshift to_y(9);
    for (int i = 0; i < shape.heads; ++i, x += P, y += P, h += P * N) {
        const int head = shape.first + i, k = layer.scan_k[head];
        const int32_t skip = layer.scan_skip[head];
        const int32_t share = scan_share(shape.form, dt[i], layer.scan_A[head], layer.scan_base[head], k);
        m[i] = share;
        const Rshift by_k(k);
        const Lanes wide_share = set1(share);
        int p = 0;
        for (; p + lanes <= P; p += lanes) {
            const Lanes in = load(x + p);
            Lanes sum = mul(in, set1(skip * 64));
            int32_t *state = h + p;
            for (int n = 0; n < N; ++n, state += P) {
                const Lanes old = load(state), v = mul_small(in, small(B[n] * 64));
                const Lanes now = add(old, by_k(mul(wide_share, sub(v, old))));
                store(state, now);
                sum = add(sum, mul(now, set1(C[n])));
            }
            store(y + p, sat(to_y(sum), 16));
        }
        for (; p < P; ++p) {
            int32_t sum = 0;
            for (int n = 0; n < N; ++n) {
                int32_t &state = h[n * P + p];
                state = scan_convex(state, x[p] * B[n] * 64, share, k);
                sum += C[n] * state;
            }
            y[p] = static_cast<int16_t>(scan_output(sum, skip, x[p]));
        }
    }
}

// ---- §8 One layer ---------------------------------------------------------------------------------------------------

MI_TARGET void gate_lanes(const int16_t *y, const int16_t *g, int n, int32_t *o) {
    const Rshift rshift(6);
    MI_FOR_LANES(i, n, store(o + i, sat(rshift(mul(load(y + i), load(g + i))), 18)), o[i] = gated(y[i], g[i]));
}

MI_TARGET void add_lanes(const int16_t *x, int n, int32_t *r) {
    MI_FOR_LANES(i, n, store(r + i, sat(add(load(r + i), load(x + i)), 18)), r[i] = mi::sat<18>(r[i] + x[i]));
}

#undef MI_FOR_LANES

// NOLINTEND
