//! ARITHMETIC section 5: matrix products, and their scaling to int16.

use super::builder::Builder;
use super::{factor, slots, Tensor};
use crate::ir::{Bind, Factor, Kernel, SlotId, Term, Terms};
use crate::shape::ROW_BOUND;

/// Σ_d W[o, d] · u[d, t] over the blocks of d, as the terms of a sum in a table whose variables are (o, t).
pub fn product(weights: &[SlotId], log_out: usize, u: &Tensor, steps: usize) -> Vec<Term> {
    let term = |(&w, &slot): (&SlotId, &SlotId)| {
        let vars = u.log + steps;
        let factors = vec![
            Factor::Kernel(Kernel::Lag(0)),
            factor(w, 0..log_out, 0..u.log),
            factor(slot, 0..0, 0..vars),
        ];
        Term { coef: 1, vars, factors }
    };
    weights.iter().zip(&u.slots).map(term).collect()
}

/// bitlinear(u, W, m, s): `log` variables in each block of the result.
pub fn linear(b: &mut Builder, name: &str, w: &slots::Projection, log: usize, u: &Tensor, shift: u32) -> Tensor {
    let half = 1 << shift >> 1;
    // The registered bound of a row: |m · acc| + 2^(s − 1) < 2^29. With m ≥ 1 it bounds acc; padded rows are zero.
    let bound = ROW_BOUND - half - 1;
    let slots = w
        .weights
        .iter()
        .zip(&w.mul)
        .enumerate()
        .map(|(block, (weights, &mul))| {
            let table = b.table(format!("{name}.{block}"), log + b.steps());
            let (acc, _) = b.sum(
                table,
                "acc",
                product(weights, log, u, b.steps()),
                vec![],
                (-bound, bound),
            );
            let m = b.constant(table, mul);
            b.circuit.tables[table].products.push((m, acc, bound));
            let pre: Terms = vec![(1, vec![m, acc]), (half, vec![])];
            b.round_saturate(table, "out", pre, shift, 32767, (ROW_BOUND - 1) >> shift)
                .1
        });
    Tensor {
        slots: slots.collect(),
        log,
    }
}

/// r ← sat18(r + added).
pub fn residual(b: &mut Builder, name: &str, r: &Tensor, added: &Tensor) -> Tensor {
    let slots = (0..r.slots.len()).map(|block| {
        let table = b.table(format!("{name}.{block}"), r.log + b.steps());
        let pre = vec![
            (1, vec![b.own(table, r.slots[block])]),
            (1, vec![b.own(table, added.slots[block])]),
        ];
        b.round_saturate(table, "r", pre, 0, super::MAX_RESIDUAL, super::MAX_RESIDUAL + 32767)
            .1
    });
    Tensor {
        slots: slots.collect(),
        log: r.log,
    }
}

/// r = m_e · e[token]: linear in the embedding, so that it needs no range of its own.
pub fn embed(b: &mut Builder, embedding: &[Vec<SlotId>], log_vocab: usize, log: usize, multiplier: i64) -> Tensor {
    let slots = (0..embedding[0].len()).map(|block| {
        let table = b.table(format!("embed.{block}"), log + b.steps());
        let terms = embedding.iter().enumerate().map(|(v, blocks)| {
            let binds = (0..log_vocab).map(Bind::Var).chain((0..log).map(Bind::Point)).collect();
            let e = Factor::Slots {
                constant: 0,
                parts: vec![(1, blocks[block])],
                shift: 0,
                binds,
            };
            Term {
                coef: 1,
                vars: log_vocab,
                factors: vec![Factor::Kernel(Kernel::Fed { base: v << log_vocab }), e],
            }
        });
        let (e, _) = b.sum(table, "e", terms.collect(), vec![], (-127, 127));
        b.derive(
            table,
            "r",
            (-127 * multiplier, 127 * multiplier),
            vec![(multiplier, vec![e])],
        )
        .1
    });
    Tensor {
        slots: slots.collect(),
        log,
    }
}
