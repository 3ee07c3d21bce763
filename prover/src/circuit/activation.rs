//! ARITHMETIC sections 2 and 3: an activation and its rounding, quotient and root defined by inequalities.

use super::builder::Builder;
use super::Tensor;
use crate::ir::{Linear, RANGE_ROOT};
use crate::shape::Activation;

/// sat(rshift(act(c), f − scale)) with ±limit, where f is the activation's own scale: x of scale 5, B and C of scale 3, the gate of scale 8.
pub fn activation(b: &mut Builder, name: &str, form: Activation, c: &Tensor, scale: u32, limit: i64) -> Tensor {
    let slots = (0..c.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), c.log + b.steps());
        let c = b.own(table, c.slots[block]);
        // s = isqrt(c² + 2^18): s² + rest = c² + 2^18, 0 ≤ rest ≤ 2s.
        let root = |c: i64| (c * c + (1 << 18)).isqrt();
        let (s, _) = b.commit(table, "s", (0, (1 << 15) + (1 << 13) - 1), [c], |[c]| root(c));
        b.circuit.in_range(table, s, 0, RANGE_ROOT);
        let (rest, _) = b.commit(table, "s.rest", (0, (1 << 17) - 1), [c, s], |[c, s]| {
            c * c + (1 << 18) - s * s
        });
        b.bits_of(table, "s.rest", Linear::col(rest), 17);
        b.bits_of(table, "s is the root", Linear::of(0, &[(2, s), (-1, rest)]), 17);
        b.constrain(
            table,
            "s",
            vec![(1, vec![c, c]), (1 << 18, vec![]), (-1, vec![s, s]), (-1, vec![rest])],
        );
        match form {
            Activation::Silu => {
                // q = sigmoid12(c): 2qs + rest = (s + c) · 2^12, 0 ≤ rest < 2s.
                let (q, _) = b.commit(table, "q", (0, 4095), [c, s], |[c, s]| ((s + c) << 12) / (2 * s));
                b.bits_of(table, "q", Linear::col(q), 12);
                let (rest, _) = b.commit(table, "q.rest", (0, (1 << 17) - 1), [c, s, q], |[c, s, q]| {
                    ((s + c) << 12) - 2 * q * s
                });
                b.bits_of(table, "q.rest", Linear::col(rest), 17);
                b.bits_of(table, "q is the quotient", Linear::of(-1, &[(2, s), (-1, rest)]), 17);
                b.constrain(
                    table,
                    "q",
                    vec![(4096, vec![s]), (4096, vec![c]), (-2, vec![q, s]), (-1, vec![rest])],
                );
                // a = c · q has scale 20, |a| < 2^27.
                let (shift, half) = (20 - scale, 1 << (20 - scale) >> 1);
                b.round_saturate(
                    table,
                    "out",
                    vec![(1, vec![c, q]), (half, vec![])],
                    shift,
                    limit,
                    ((1 << 27) + half) >> shift,
                )
                .1
            }
            Activation::Squareplus => {
                // a = ((c + s) >> 1) − 2^8 has scale 8; two rounded shifts are one: rshift(a, n) = (c + s − 2^9 + 2^n) >> (n + 1), the 2^n only for n > 0.
                let half = if scale == 8 { 0 } else { 1 << (8 - scale) };
                let pre = vec![(1, vec![c]), (1, vec![s]), (half - 512, vec![])];
                b.round_saturate(table, "out", pre, 9 - scale, limit, (1 << 17) >> (9 - scale))
                    .1
            }
        }
    });
    Tensor {
        slots: slots.collect(),
        log: c.log,
    }
}
