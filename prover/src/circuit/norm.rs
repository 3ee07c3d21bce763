//! ARITHMETIC section 4. The sum of squares is the one quantity wider than the field: it is summed in limbs.

use super::builder::{as_case, Builder};
use super::Tensor;
use crate::ir::{bit_length, Bind, ColId, Factor, Factor64, Kernel, Linear, SlotId, Term, Terms};

/// |n| ≤ 2^12 + 1.
const MAX_N: i64 = (1 << 12) + 1;

/// What a norm finds for each step, as slots of time alone.
struct Scale {
    /// 2^j, its half (0 for j = 0), and j.
    pow: SlotId,
    half: SlotId,
    j: SlotId,
    /// None: 128.
    mu: Option<SlotId>,
    max_j: usize,
}

/// norm(x, g) of vectors of `size` channels, |x| < 2^17; padded channels are zero.
pub fn norm(b: &mut Builder, name: &str, x: &Tensor, g: &[SlotId], size: usize, mantissa: u32) -> Tensor {
    let log = x.log + b.steps();
    // x = lo + 2^9 · hi.
    let low: Vec<SlotId> = (0..x.slots.len())
        .map(|block| {
            let table = b.table(format!("{name}.limbs.{block}"), log);
            let value = b.own(table, x.slots[block]);
            let (lo, slot) = b.commit(table, "lo", (0, 511), [value], |[x]| x & 511);
            b.bits_of(table, "lo", Linear::col(lo), 9);
            let hi = Linear::of(1 << 17, &[(1, value), (-1, lo)]).over(9);
            b.circuit.lookup(table, "hi", hi, Linear::constant(9));
            slot
        })
        .collect();
    let scale = scale(b, name, x, &low, mantissa);
    let e = bit_length(size as i64) as u32 >> 1;
    let slots = (0..x.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), log);
        let (value, g) = (b.own(table, x.slots[block]), b.constant(table, g[block]));
        let [pow, half, j] = [scale.pow, scale.half, scale.j].map(|slot| b.over_time(table, slot));
        // n = rshift(16 x, j): 16 x + half = pow · n + rem, 0 ≤ rem < 2^j.
        let (n, _) = b.commit(
            table,
            "n",
            (-1 << 13, (1 << 13) - 1),
            [value, half, pow],
            |[x, half, pow]| ((x << 4) + half).div_euclid(pow),
        );
        b.bits_of(table, "n", Linear::of(1 << 13, &[(1, n)]), 14);
        let top = (1 << scale.max_j) - 1;
        let (rem, _) = b.commit(table, "rem", (0, top), [value, half, pow], |[x, half, pow]| {
            ((x << 4) + half).rem_euclid(pow)
        });
        b.circuit.lookup(table, "rem", Linear::col(rem), Linear::col(j));
        b.constrain(
            table,
            "n is shifted by j",
            vec![(16, vec![value]), (1, vec![half]), (-1, vec![pow, n]), (-1, vec![rem])],
        );
        let shift = 20 - e;
        let product = match scale.mu {
            Some(mu) => (1, vec![n, b.over_time(table, mu), g]),
            None => (128, vec![n, g]),
        };
        let half = 1 << (shift - 1);
        b.round_saturate(
            table,
            "out",
            vec![product, (half, vec![])],
            shift,
            127,
            (MAX_N * 256 * 127 + half) >> shift,
        )
        .1
    });
    Tensor {
        slots: slots.collect(),
        log: x.log,
    }
}

/// Steps 1 to 3, a row for every step.
fn scale(b: &mut Builder, name: &str, x: &Tensor, low: &[SlotId], mantissa: u32) -> Scale {
    let steps = b.steps();
    let table = b.table(format!("{name}.scale"), steps);
    let channels = (x.slots.len() << x.log) as i64;

    // Σ lo², Σ lo · hi, Σ hi²: x² = lo² + 2^10 · lo · hi + 2^18 · hi².
    let binds: Vec<Bind> = (0..x.log + steps).map(Bind::Var).collect();
    let slots = |parts: Vec<(i64, SlotId)>, shift| Factor::Slots {
        constant: 0,
        parts,
        shift,
        binds: binds.clone(),
    };
    let mut squares = |name: &str, limbs: [bool; 2], range: (i64, i64)| {
        let term = |block: usize| {
            let limb = |high: bool| {
                if high {
                    slots(vec![(1, x.slots[block]), (-1, low[block])], 9)
                } else {
                    slots(vec![(1, low[block])], 0)
                }
            };
            Term {
                coef: 1,
                vars: x.log + steps,
                factors: vec![Factor::Kernel(Kernel::Lag(0)), limb(limbs[0]), limb(limbs[1])],
            }
        };
        b.sum(table, name, (0..low.len()).map(term).collect(), vec![], range).0
    };
    let p0 = squares("P0", [false, false], (0, channels * 511 * 511));
    let p1 = squares("P1", [false, true], (-channels * 511 * 256, channels * 511 * 255));
    let p2 = squares("P2", [true, true], (0, channels << 16));

    // S = 2^14 + P0 + 2^10 · P1 + 2^18 · P2 = low16 + 2^16 · Q2 with low16 = a0 + 2^10 · b0 and Q2 = 4 · P2 + b1.
    let a1_bits = bit_length((channels * 511 * 511) >> 10);
    let (a0, _) = b.commit(table, "a0", (0, 1023), [p0], |[p]| p & 1023);
    let (a1, _) = b.commit(table, "a1", (0, (1 << a1_bits) - 1), [p0], |[p]| p >> 10);
    b.bits_of(table, "a0", Linear::col(a0), 10);
    b.bits_of(table, "a1", Linear::col(a1), a1_bits);
    b.constrain(
        table,
        "P0 in limbs",
        vec![(1, vec![p0]), (-1, vec![a0]), (-1024, vec![a1])],
    );
    let b1_bits = bit_length(((channels * 511 * 256) >> 6) + 1);
    let (b0, _) = b.commit(table, "b0", (0, 63), [a1, p1], |[a, p]| (a + p + 16) & 63);
    let (b1, _) = b.commit(table, "b1", (-1 << b1_bits, (1 << b1_bits) - 1), [a1, p1], |[a, p]| {
        (a + p + 16) >> 6
    });
    b.bits_of(table, "b0", Linear::col(b0), 6);
    b.bits_of(table, "b1", Linear::of(1 << b1_bits, &[(1, b1)]), b1_bits + 1);
    let carry = vec![
        (1, vec![a1]),
        (1, vec![p1]),
        (16, vec![]),
        (-1, vec![b0]),
        (-64, vec![b1]),
    ];
    b.constrain(table, "P1 and the carry in limbs", carry);
    let low16: Terms = vec![(1, vec![a0]), (1024, vec![b0])];
    let q2: Terms = vec![(4, vec![p2]), (1, vec![b1])];

    // j = (bitlen(S) − 15) >> 1 as a one-hot vector: S' = S >> 2j, 2^14 ≤ S' < 2^16.
    let max_s = (1 << 14) + i128::from(channels) * 131_071 * 131_071;
    let max_j = (128 - max_s.leading_zeros() as usize - 15) >> 1;
    let from = [a0, b0, p2, b1];
    let s_of = |[a0, b0, p2, b1]: [i64; 4]| a0 + (b0 << 10) + (((p2 << 2) + b1) << 16);
    let j_of = |cells| (bit_length(s_of(cells)) - 15) >> 1;
    let e: Vec<ColId> = (0..=max_j)
        .map(|j| {
            let (e, _) = b.commit(table, &format!("e{j}"), (0, 1), from, |cells| (j_of(cells) == j).into());
            b.boolean(table, e);
            e
        })
        .collect();
    let mut one: Terms = e.iter().map(|&e| (1, vec![e])).collect();
    one.push((-1, vec![]));
    b.constrain(table, "one j", one);

    // 2j = cut + deep: low16 = x0 + 2^cut · x1, Q2 = y0 + 2^deep · y1, S' = x1 + 2^(16 − cut) · y1 (deep > 0: x1 = 0 and S' = y1).
    // y1 < 2^cut where deep = 0, as S' < 2^16; there y1 = Q2 and x1 < 2^(16 − cut).
    let (cut, deep) = (|j: usize| (2 * j).min(16), |j: usize| (2 * j).saturating_sub(16));
    let derive = |b: &mut Builder, name: &str, weight: &dyn Fn(usize) -> i64| {
        let weights: Vec<i64> = (0..=max_j).map(weight).collect();
        let range = (*weights.iter().min().unwrap(), *weights.iter().max().unwrap());
        b.derive(
            table,
            name,
            range,
            weights.iter().zip(&e).map(|(&w, &e)| (w, vec![e])).collect(),
        )
    };
    let (cut_col, _) = derive(b, "cut", &|j| cut(j) as i64);
    let (deep_col, _) = derive(b, "deep", &|j| deep(j) as i64);
    let limb = |b: &mut Builder, name: &str, bits: Linear, top: usize, cell: &dyn Fn([i64; 4]) -> i64| {
        let (col, _) = b.commit(table, name, (0, (1 << top) - 1), from, cell);
        b.circuit.lookup(table, name, Linear::col(col), bits);
        col
    };
    let x0 = limb(b, "x0", Linear::col(cut_col), cut(max_j), &|v| {
        s_of(v) & ((1 << cut(j_of(v))) - 1)
    });
    let x1 = limb(b, "x1", Linear::of(16, &[(-1, cut_col)]), 16, &|v| {
        (s_of(v) & 65535) >> cut(j_of(v))
    });
    let y0 = limb(b, "y0", Linear::col(deep_col), deep(max_j), &|v| {
        (s_of(v) >> 16) & ((1 << deep(j_of(v))) - 1)
    });
    let y1 = limb(b, "y1", Linear::col(cut_col), cut(max_j), &|v| {
        s_of(v) >> 16 >> deep(j_of(v))
    });
    let (s, _) = b.commit(table, "S'", (1 << 14, 65535), from, |v| s_of(v) >> (2 * j_of(v)));
    b.between(table, "S'", s, 1 << 14, 65535);
    // rest = Σ_j e_j · 2^weight(j) · limb; the identity of a row has one j.
    let mut split =
        |name: &str, rest: Terms, limb: ColId, weight: &dyn Fn(usize) -> usize, bits: &dyn Fn(usize) -> usize| {
            let cases = (0..=max_j).flat_map(|j| {
                let extreme =
                    |value: i64| [as_case(&rest), vec![(-1 << weight(j), vec![Factor64::Const(value)])]].concat();
                [extreme(0), extreme((1 << bits(j)) - 1)]
            });
            let mut terms = rest.clone();
            terms.extend(e.iter().enumerate().map(|(j, &e)| (-1 << weight(j), vec![e, limb])));
            b.constrain_cases(table, name, terms, cases.collect());
        };
    let minus = |mut terms: Terms, col: ColId| {
        terms.push((-1, vec![col]));
        terms
    };
    split("low16 is cut at 2j", minus(low16, x0), x1, &cut, &|j| 16 - cut(j));
    split("Q2 is cut at 2j - 16", minus(q2, y0), y1, &deep, &cut);
    split(
        "S' is what is left",
        minus(vec![(1, vec![s])], x1),
        y1,
        &|j| 16 - cut(j),
        &cut,
    );

    let (_, pow) = derive(b, "pow", &|j| 1 << j);
    let (_, half) = derive(b, "half", &|j| 1 << j >> 1);
    let (_, j) = derive(b, "j", &|j| j as i64);
    Scale {
        pow,
        half,
        j,
        mu: (mantissa > 0).then(|| self::mantissa(b, table, s)),
        max_j,
    }
}

/// μ² · S' ≤ 2^30 < (μ + 1)² · S' with all products in limbs of 12 bits.
fn mantissa(b: &mut Builder, table: usize, s: ColId) -> SlotId {
    let limb = |b: &mut Builder, name: &str, bits: usize, from: [ColId; 2], cell: &dyn Fn([i64; 2]) -> i64| {
        let (col, slot) = b.commit(table, name, (0, (1 << bits) - 1), from, cell);
        b.bits_of(table, name, Linear::col(col), bits);
        (col, slot)
    };
    let low = |v: i64| v & 4095;
    let (mu, slot) = limb(b, "mu", 9, [s, s], &|[s, _]| ((1i64 << 30) / s).isqrt());
    // w = μ · S'.
    let (w0, _) = limb(b, "w0", 12, [mu, s], &|[mu, s]| low(mu * s));
    let (w1, _) = limb(b, "w1", 13, [mu, s], &|[mu, s]| (mu * s) >> 12);
    b.constrain(table, "w", vec![(1, vec![mu, s]), (-1, vec![w0]), (-4096, vec![w1])]);
    // μ² · S' = c0 + 2^12 · (c1 + μ · w1).
    let (c0, _) = limb(b, "c0", 12, [mu, w0], &|[mu, w]| low(mu * w));
    let (c1, _) = limb(b, "c1", 9, [mu, w0], &|[mu, w]| (mu * w) >> 12);
    b.constrain(table, "c", vec![(1, vec![mu, w0]), (-1, vec![c0]), (-4096, vec![c1])]);
    // R = 2^30 − μ² · S' = R0 + 2^12 · R1 ≥ 0.
    let rest = |[mu, s]: [i64; 2]| (1 << 30) - mu * mu * s;
    let (r0, _) = limb(b, "R0", 12, [mu, s], &|v| low(rest(v)));
    let (r1, _) = limb(b, "R1", 14, [mu, s], &|v| rest(v) >> 12);
    let (carry, _) = b.commit(table, "carry", (0, 1), [c0, r0], |[c, r]| (c + r) >> 12);
    b.boolean(table, carry);
    b.constrain(
        table,
        "low limb of 2^30",
        vec![(1, vec![c0]), (1, vec![r0]), (-4096, vec![carry])],
    );
    let high = vec![
        (1, vec![mu, w1]),
        (1, vec![c1]),
        (1, vec![r1]),
        (1, vec![carry]),
        (-1 << 18, vec![]),
    ];
    b.constrain(table, "high limb of 2^30", high);
    // (2μ + 1) · S' − 1 − R ≥ 0.
    let over = Linear::of(-1, &[(2, w0), (2 << 12, w1), (1, s), (-1, r0), (-4096, r1)]);
    b.bits_of(table, "over", over, 26);
    slot
}
