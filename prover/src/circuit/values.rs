//! What columns and sums are on the cube of their table, computed from the slots by the definitions in `ir.rs`; fast where a circuit of the model needs it.

use std::sync::Arc;

use crate::ir::{Bind, Circuit, Factor, Kernel, Linear, Public, Sum, Term, Terms, Tokens, P};

pub type Values = Arc<Vec<i32>>;

/// For every row of a cube of `log` variables, Σ weight(variable) over its variables that are 1.
fn offsets(log: usize, weight: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut all = vec![0];
    for variable in 0..log {
        let w = weight(variable);
        all = all.iter().flat_map(|&at| [at, at + w]).collect();
    }
    all
}

/// Values over the variables `vars` of a table of `log` variables, in every row of it.
pub fn broadcast<V: Copy>(values: &[V], log: usize, vars: &[usize]) -> Vec<V> {
    let weight = |v: usize| {
        vars.iter()
            .rposition(|&x| x == v)
            .map_or(0, |i| 1 << (vars.len() - 1 - i))
    };
    offsets(log, weight).iter().map(|&at| values[at]).collect()
}

fn tokens(circuit: &Circuit, which: Tokens) -> &[usize] {
    match which {
        Tokens::Fed => &circuit.fed,
        Tokens::Chosen => &circuit.chosen,
    }
}

pub fn public(circuit: &Circuit, public: &Public, log: usize) -> Vec<i32> {
    let steps = circuit.log_steps;
    let rows = |holds: &dyn Fn(usize, usize) -> bool| -> Vec<i32> {
        (0..1 << log)
            .map(|row| holds(row >> steps, row & ((1 << steps) - 1)).into())
            .collect()
    };
    match public {
        Public::Dense { vars, values } => broadcast(values, log, vars)
            .iter()
            .map(|&v| i32::try_from(v).expect("a small value"))
            .collect(),
        Public::TokenAt { which, base } => {
            let tokens = tokens(circuit, *which);
            rows(&|v, t| tokens[t] != usize::MAX && base + v == tokens[t])
        }
        Public::TokenBelow { which, base } => {
            let tokens = tokens(circuit, *which);
            rows(&|v, t| tokens[t] != usize::MAX && base + v < tokens[t])
        }
    }
}

/// Σ coefficient · Π columns in every row.
pub fn terms(columns: &[Values], terms: &Terms, rows: usize) -> Vec<i64> {
    let mut out = vec![0i64; rows];
    for (c, factors) in terms {
        let column = |i: usize| columns[factors[i]].iter().map(|&v| i64::from(v));
        match factors.len() {
            0 => out.iter_mut().for_each(|o| *o += c),
            1 => out.iter_mut().zip(column(0)).for_each(|(o, a)| *o += c * a),
            2 => out
                .iter_mut()
                .zip(column(0))
                .zip(column(1))
                .for_each(|((o, a), b)| *o += c * a * b),
            3 => {
                let all = column(0).zip(column(1)).zip(column(2));
                out.iter_mut().zip(all).for_each(|(o, ((a, b), d))| *o += c * a * b * d);
            }
            n => panic!("degree {n}"),
        }
    }
    out
}

/// The number nearest to zero that is the same modulo p.
pub fn least(v: i64) -> i64 {
    let v = v.rem_euclid(P);
    if v > P / 2 {
        v - P
    } else {
        v
    }
}

/// A number, or, where it has more than 32 bits, as only a liar's has, the least that is the same modulo p.
pub fn residue(v: i64) -> i32 {
    i32::try_from(v).unwrap_or_else(|_| least(v) as i32)
}

/// A linear form in every row, divided in the field where 2^shift does not divide it.
pub fn linear(columns: &[Values], form: &Linear, rows: usize) -> Vec<i64> {
    let mut list: Terms = form.terms.iter().map(|&(c, col)| (c, vec![col])).collect();
    list.push((form.constant, vec![]));
    let mut out = terms(columns, &list, rows);
    for v in &mut out {
        *v = if *v & ((1 << form.shift) - 1) == 0 {
            *v >> form.shift
        } else {
            let halves = (0..form.shift).fold(v.rem_euclid(P), |v, _| if v % 2 == 0 { v / 2 } else { (v + P) / 2 });
            least(halves)
        };
    }
    out
}

/// A sum in every row of its table.
pub fn sum(circuit: &Circuit, slots: &[Values], sum: &Sum) -> Vec<i32> {
    let log = circuit.tables[sum.table].log;
    let mut out = vec![0i64; 1 << log];
    for term in &sum.terms {
        add_term(circuit, slots, log, term, &mut out);
    }
    for carry in &sum.carries {
        let values = broadcast(&slots[carry.slot], log, &carry.vars);
        let mask = (1 << circuit.log_steps) - 1;
        for (row, (o, v)) in out.iter_mut().zip(values).enumerate() {
            if carry.at_step.is_none_or(|step| step == row & mask) {
                *o += carry.coef * i64::from(v);
            }
        }
    }
    out.into_iter().map(residue).collect()
}

/// A factor of a term: its value at a point and an x lies at `point[..] + x[..]`.
struct Resolved {
    values: Values,
    point: Vec<usize>,
    x: Vec<usize>,
    time: Time,
}

#[derive(Clone, Copy, PartialEq)]
enum Time {
    None,
    Point,
    Var,
}

/// `steps`: the last variables of the point and of x that are left out of the offsets.
fn resolve(slots: &[Values], log: usize, term: &Term, steps: usize) -> Vec<Resolved> {
    let (log, vars) = (log - steps, term.vars.max(steps) - steps);
    let resolve = |factor: &Factor| {
        let Factor::Slots {
            constant,
            parts,
            shift,
            binds,
        } = factor
        else {
            return None;
        };
        let values = match parts[..] {
            [(1, slot)] if (*constant, *shift) == (0, 0) => slots[slot].clone(),
            _ => {
                let columns: Vec<Values> = parts.iter().map(|&(_, slot)| slots[slot].clone()).collect();
                let terms = parts.iter().enumerate().map(|(i, &(c, _))| (c, i)).collect();
                let form = Linear {
                    constant: *constant,
                    terms,
                    shift: *shift,
                };
                Arc::new(
                    linear(&columns, &form, 1 << binds.len())
                        .iter()
                        .map(|&v| residue(v))
                        .collect(),
                )
            }
        };
        let weight = |bind: Bind| -> usize {
            binds
                .iter()
                .enumerate()
                .filter(|(_, b)| **b == bind)
                .map(|(i, _)| 1 << (binds.len() - 1 - i))
                .sum()
        };
        let time = match binds.last() {
            Some(Bind::Point(v)) if *v >= log => Time::Point,
            Some(Bind::Var(v)) if *v >= vars => Time::Var,
            _ => Time::None,
        };
        let tail = &binds[binds.len() - if time == Time::None { 0 } else { steps }..];
        let late = |b: &Bind| matches!(b, Bind::Point(v) if *v >= log) || matches!(b, Bind::Var(v) if *v >= vars);
        assert_eq!(
            binds.iter().filter(|b| late(b)).count(),
            tail.len(),
            "time in the last variables or not at all"
        );
        let point = offsets(log, |v| weight(Bind::Point(v)));
        Some(Resolved {
            values,
            point,
            x: offsets(vars, |v| weight(Bind::Var(v))),
            time,
        })
    };
    term.factors.iter().filter_map(resolve).collect()
}

fn add_term(circuit: &Circuit, slots: &[Values], log: usize, term: &Term, out: &mut [i64]) {
    let kernels: Vec<Kernel> = term
        .factors
        .iter()
        .filter_map(|f| if let Factor::Kernel(k) = f { Some(*k) } else { None })
        .collect();
    let (steps, t_mask) = (circuit.log_steps, (1 << circuit.log_steps) - 1);
    match kernels[..] {
        [Kernel::Lag(lag)] => add_lagged(steps, &resolve(slots, log, term, steps), term.coef, lag, out),
        [Kernel::Fed { base }] => {
            let factors = resolve(slots, log, term, 0);
            for (row, o) in out.iter_mut().enumerate() {
                let x = circuit.fed[row & t_mask].wrapping_sub(base);
                if x < 1 << term.vars {
                    *o += term.coef * product(&factors, row, x);
                }
            }
        }
        _ => {
            let factors = resolve(slots, log, term, 0);
            let tokens_at = |which, base: usize, holds: &dyn Fn(usize, usize) -> bool| -> Vec<i64> {
                let tokens = tokens(circuit, which);
                let at = |x: usize| match tokens[x & t_mask] {
                    usize::MAX => 0,
                    token => holds(base + (x >> steps), token).into(),
                };
                (0..1 << term.vars).map(at).collect()
            };
            let mut weights = vec![term.coef; 1 << term.vars];
            let lag = kernels
                .iter()
                .find_map(|k| if let Kernel::Lag(lag) = k { Some(*lag) } else { None });
            for kernel in kernels {
                let values: Vec<i64> = match kernel {
                    Kernel::Last { back } => (0..1 << term.vars)
                        .map(|x| (x & t_mask == t_mask - back).into())
                        .collect(),
                    Kernel::TokenAt { which, base } => tokens_at(which, base, &|v, token| v == token),
                    Kernel::TokenBelow { which, base } => tokens_at(which, base, &|v, token| v < token),
                    Kernel::Lag(_) => continue,
                    Kernel::Fed { .. } => unreachable!("alone in its term"),
                };
                weights.iter_mut().zip(values).for_each(|(w, v)| *w *= v);
            }
            let x: Vec<usize> = (0..weights.len()).filter(|&x| weights[x] != 0).collect();
            for (row, o) in out.iter_mut().enumerate() {
                let here = |x: &&usize| lag.is_none_or(|lag| (**x & t_mask) + lag == row & t_mask);
                *o += x
                    .iter()
                    .filter(here)
                    .map(|&x| weights[x] * product(&factors, row, x))
                    .sum::<i64>();
            }
        }
    }
}

fn product(factors: &[Resolved], row: usize, x: usize) -> i64 {
    factors
        .iter()
        .map(|f| i64::from(f.values[f.point[row] + f.x[x]]))
        .product()
}

/// Sums whose x has the time of the point, or that `lag` steps before: all steps at once, in the innermost loop.
fn add_lagged(steps: usize, factors: &[Resolved], coef: i64, lag: usize, out: &mut [i64]) {
    let len = (1usize << steps).saturating_sub(lag);
    let xs = factors.first().map_or(0, |f| f.x.len());
    for (point, out) in out.chunks_mut(1 << steps).enumerate() {
        let out = &mut out[lag.min(1 << steps)..];
        for x in 0..xs {
            let (mut scalar, mut over_time) = (coef, [None, None]);
            for f in factors {
                let at = f.point[point] + f.x[x];
                let row = match f.time {
                    Time::None => {
                        scalar *= i64::from(f.values[at]);
                        continue;
                    }
                    Time::Var => &f.values[at..at + len],
                    Time::Point => &f.values[at + lag..at + lag + len],
                };
                let free = over_time
                    .iter_mut()
                    .find(|o| o.is_none())
                    .expect("at most two factors over the time");
                *free = Some(row);
            }
            if scalar == 0 {
                continue;
            }
            match over_time {
                [None, _] => out.iter_mut().for_each(|o| *o += scalar),
                [Some(a), None] => out.iter_mut().zip(a).for_each(|(o, &a)| *o += scalar * i64::from(a)),
                [Some(a), Some(b)] => {
                    out.iter_mut()
                        .zip(a)
                        .zip(b)
                        .for_each(|((o, &a), &b)| *o += scalar * i64::from(a) * i64::from(b));
                }
            }
        }
    }
}
